"""What every backend promises, held against every backend that can run here; the PyTorch reference is one of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from deploykit import registry
from deploykit.artifact import FORMATS, Artifact
from deploykit.backends import Backend, Runner, RunOptions
from deploykit.errors import BackendFailedError, BackendUnavailableError
from tests.backends.models import INPUTS, OUTPUTS, onnx_artifact, torch_artifact
from tests.trt import recording
from tests.trt.conftest import stand_in  # noqa: F401 - a fixture
from tests.trt.engines import build

if TYPE_CHECKING:
    from deploykit.types import Array

NAMES = registry.backend_names()
RUNNING = [name for name in NAMES if registry.backend(name).available() is None]
#: What runs on a stand-in of its library where the true one is missing.
PLAYED = sorted({"trt", "trt-graph"} - set(RUNNING))
#: An engine's profile: it holds every shape of this file.
SHAPES = {"x": ((1, 1, 4), (2, 5, 4), (4, 128, 4))}


def artifact_for(backend: Backend, folder: Path) -> Artifact:
    if "torch" in backend.accepts:
        return torch_artifact("gated" if backend.precision == "int8" else "recurrent")
    if "onnx" in backend.accepts:
        return onnx_artifact(folder)
    if "trt-engine" in backend.accepts:
        return build(folder, onnx_artifact(folder).path, [SHAPES], INPUTS, OUTPUTS)
    pytest.fail(f"the contract has no artifact for {sorted(backend.accepts)}: add one here.")


@pytest.fixture(params=[*RUNNING, *(pytest.param(name, id=f"{name}, played") for name in PLAYED)])
def runner(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Runner]:
    if request.param in PLAYED:
        recording.install(request.getfixturevalue("monkeypatch"), request.getfixturevalue("stand_in"))
    backend = registry.backend(request.param)
    with backend.open(artifact_for(backend, tmp_path), RunOptions()) as opened:
        yield opened


def feeds(batch: int = 2, time: int = 5, seed: int = 0) -> dict[str, Array]:
    return {"x": np.random.default_rng(seed).standard_normal((batch, time, 4)).astype(np.float32)}


@pytest.mark.parametrize("name", NAMES)
def test_a_backend_says_what_it_is(name: str) -> None:
    backend = registry.backend(name)
    assert backend.accepts
    assert backend.accepts <= set(FORMATS)
    assert backend.summary
    reason = backend.available()
    assert reason is None or (reason.endswith(".") and "\n" not in reason)


def test_the_reference_and_onnxruntime_run_everywhere() -> None:
    assert {"torch", "ort", "null"} <= set(RUNNING)


@pytest.mark.parametrize("name", sorted(set(NAMES) - set(RUNNING)))
def test_opening_an_unavailable_backend_says_why(name: str) -> None:
    backend = registry.backend(name)
    with pytest.raises(BackendUnavailableError) as error:
        backend.open(torch_artifact(), RunOptions())
    assert str(error.value) == backend.available()


def test_outputs_are_arrays_by_name_of_the_right_shape(runner: Runner) -> None:
    for batch, time in ((1, 1), (2, 5), (3, 120)):
        outputs = runner.infer(feeds(batch, time))
        assert list(outputs) == ["y", "h"]
        for spec in OUTPUTS:
            assert isinstance(outputs[spec.name], np.ndarray)
            assert outputs[spec.name].shape == spec.shape({"batch": batch, "time": time})
            assert str(outputs[spec.name].dtype) == spec.dtype


def test_the_same_inputs_give_the_same_outputs_and_are_left_alone(runner: Runner) -> None:
    given = feeds()
    first, second = runner.infer(given), runner.infer(given)
    assert np.array_equal(given["x"], feeds()["x"])
    for name in first:
        assert np.array_equal(first[name], second[name])


def test_results_are_finished_and_stay_as_they_are(runner: Runner) -> None:
    first = runner.infer(feeds(seed=0))
    before = {name: value.copy() for name, value in first.items()}
    second = runner.infer(feeds(seed=1))
    for name, value in first.items():
        assert np.array_equal(value, before[name])
        value.fill(9)  # a caller's own array: to write into it must neither fail nor reach the next result
    again = runner.infer(feeds(seed=1))
    for name in second:
        assert np.array_equal(second[name], again[name])


def test_read_only_inputs_and_views_are_taken(runner: Runner) -> None:
    plain = feeds(4, 6)["x"]
    view = np.asfortranarray(plain)
    view.flags.writeable = False
    expected, found = runner.infer({"x": plain}), runner.infer({"x": view})
    for name in expected:
        assert np.array_equal(expected[name], found[name])


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"z": np.zeros((2, 5, 4), np.float32)},
        {**feeds(), "z": np.zeros(1, np.float32)},
        {"x": np.zeros((2, 5, 3), np.float32)},
        {"x": np.zeros((5, 4), np.float32)},
        {"x": np.zeros((2, 5, 4), np.float64)},
        {"x": np.zeros((2, 5, 4), np.int64)},
    ],
    ids=["none", "another name", "one too many", "static dim", "rank", "float64", "int64"],
)
def test_wrong_inputs_are_one_sentence_and_the_runner_lives_on(runner: Runner, wrong: dict[str, Array]) -> None:
    with pytest.raises(BackendFailedError) as error:
        runner.infer(wrong)
    assert str(error.value).endswith(".")
    assert "\n" not in str(error.value)
    assert set(runner.infer(feeds())) == {"y", "h"}


def test_closing_twice_does_no_harm(runner: Runner, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    runner.close()
    runner.close()
    backend = registry.backend(request.node.callspec.params["runner"])
    with backend.open(artifact_for(backend, tmp_path), RunOptions()) as other:
        assert set(other.infer(feeds())) == {"y", "h"}


def test_two_runners_do_not_disturb_each_other(runner: Runner, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    backend = registry.backend(request.node.callspec.params["runner"])
    expected = runner.infer(feeds())
    with backend.open(artifact_for(backend, tmp_path), RunOptions(threads=2)) as other:
        other.infer(feeds(seed=1))
    found = runner.infer(feeds())
    for name in expected:
        assert np.array_equal(expected[name], found[name])
