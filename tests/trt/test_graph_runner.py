"""Engines replayed from CUDA graphs: stand-ins of TensorRT, of pycuda, and of the driver's functions for graphs."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from onnx import helper

from deploykit.artifact import Artifact
from deploykit.backends import RunOptions
from deploykit.backends.ort import BACKEND as ORT
from deploykit.errors import BackendFailedError, BackendUnavailableError
from deploykit.trt import graph_runner, graphs
from deploykit.trt.graph_runner import GraphRunner
from tests.backends.models import INPUTS, OUTPUTS, onnx_artifact
from tests.trt import recording
from tests.trt.engines import build, model
from tests.trt.recording import Recording
from tests.trt.test_runner import PAIRS, WIDE, by_numpy, cell, chunks, feeds, refused


@pytest.fixture
def played(stand_in: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Iterator[Recording]:
    """In the end every graph is released, and none outlived what it was recorded from."""
    from pycuda import _state

    state = _state.reset()
    found = recording.install(monkeypatch, stand_in)
    yield found
    gc.collect()
    assert found.broken == []
    assert not +found.live
    assert state.broken == []
    assert state.pushed == 0
    assert set(+state.live) <= {"context"}


@pytest.fixture
def engine(played: Recording, tmp_path: Path) -> Artifact:
    return build(tmp_path, onnx_artifact(tmp_path).path, [WIDE], INPUTS, OUTPUTS)


def test_it_answers_as_onnxruntime_does_and_records_each_shape_once(
    played: Recording, engine: Artifact, tmp_path: Path
) -> None:
    with GraphRunner(engine) as runner, ORT.open(onnx_artifact(tmp_path), RunOptions()) as reference:
        assert played.captures == 1  # the tuned shape, when it is opened: an engine that cannot be says so then
        for number in range(3):
            for batch, time in ((1, 1), (4, 128), (3, 7)):
                given = feeds(batch, time, seed=number)
                expected, found = reference.infer(given), runner.infer(given)
                assert list(found) == ["y", "h"]
                for name, value in expected.items():
                    np.testing.assert_allclose(found[name], value, atol=1e-6)
        assert (played.captures, played.launches) == (4, 9)
        assert any("CUDA graph" in note for note in runner.notes)
        assert runner.device_ms == 0.25
        refused(lambda: runner.infer(feeds(9, 1)), "9x1x4", "4x128x4")


def test_the_graphs_kept_are_bounded_and_the_oldest_goes_first(
    played: Recording, engine: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pycuda import _state

    monkeypatch.setattr(graph_runner, "KEPT", 2)
    with GraphRunner(engine) as runner:
        for time in (1, 2, 1, 3, 1, 2):
            runner.infer(feeds(1, time))
            assert played.live["executable"] <= 2
            assert _state.STATE.live["memory"] <= 2 * 3  # three tensors each
        assert played.captures == 1 + 4  # 2 was forgotten for 3, and 1 never was
    assert played.order.count("executable") == 5


@pytest.mark.parametrize("stand_in", ["8.6.1"], indirect=True)
def test_contexts_that_cannot_share_a_profile_are_not_kept_side_by_side(played: Recording, engine: Artifact) -> None:
    with GraphRunner(engine) as runner:
        for time in (1, 2, 1):
            runner.infer(feeds(1, time))
            assert played.live["executable"] == 1


def test_an_engine_that_cannot_be_recorded_is_unavailable_and_says_why(played: Recording, engine: Artifact) -> None:
    played.refuses = 900
    refused(lambda: GraphRunner(engine), "operation not permitted", "loops", "trt", kind=BackendUnavailableError)


def test_an_engine_that_tensorrt_refuses_to_record_ends_the_capture(
    played: Recording, engine: Artifact, monkeypatch: pytest.MonkeyPatch, stand_in: Any
) -> None:
    through = played.enqueue

    def refuse(context: Any, stream: int) -> bool:
        return through(context, stream) and stream not in played._capturing

    monkeypatch.setattr(played, "enqueue", refuse)
    refused(lambda: GraphRunner(engine), "TensorRT failed", kind=BackendUnavailableError)
    assert played._capturing == {}


def test_sizes_that_the_data_decides_cannot_be_recorded(played: Recording, tmp_path: Path) -> None:
    found = model([helper.make_node("NonZero", ["x"], ["y"])], ["x:float32[n]"], ["y:int64[1,k]"])
    made = build(tmp_path, found, [{"x": ((1,), (4,), (9,))}])
    refused(lambda: GraphRunner(made), "'y'", "backend trt", kind=BackendUnavailableError)


def test_an_old_driver_is_named_with_the_one_that_is_needed(played: Recording, engine: Artifact) -> None:
    from pycuda import _state

    _state.STATE.driver = 11030
    refused(lambda: GraphRunner(engine), "11.4", "11.3", kind=BackendUnavailableError)
    _state.STATE.driver = 11040
    GraphRunner(engine).close()


def test_a_launch_that_fails_is_a_sentence(
    played: Recording, engine: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    with GraphRunner(engine) as runner:
        runner.infer(feeds())
        with monkeypatch.context() as patch:
            patch.setattr(played, "cuGraphLaunch", lambda *_: 719)
            refused(lambda: runner.infer(feeds()), "launch", kind=BackendFailedError)
        assert runner.infer(feeds())["y"].shape == (2, 5, 3)


def test_a_stream_is_replayed_with_its_states_on_the_gpu(played: Recording, tmp_path: Path) -> None:
    with GraphRunner(cell(tmp_path)) as runner:
        step, plain = runner.carry(PAIRS), by_numpy(runner)
        for number, chunk in enumerate(chunks(10)):
            given = {"x": chunk, **({"h_in": np.zeros((2, 3), np.float32)} if number == 0 else {})}
            np.testing.assert_array_equal(step(given)["y"], plain(given)["y"])
        # One for each of the two directions between a state's places, one for plain inference, one when it was opened.
        assert played.captures == 4


def test_graphs_go_before_the_contexts_they_were_recorded_from(played: Recording, engine: Artifact) -> None:
    import weakref

    runner = GraphRunner(engine)
    runner.infer(feeds())
    played.order.clear()
    for recorded in runner._recorded.values():
        weakref.finalize(recorded.lane._context, played.order.append, "context")
    del recorded
    runner.close()
    runner.close()
    assert played.order == ["executable", "context"]
    refused(lambda: runner.infer(feeds()), "closed")


def test_a_thousand_replays_leave_nothing_behind(played: Recording, engine: Artifact) -> None:
    from pycuda import _state

    with GraphRunner(engine) as runner:
        for time in (1, 2, 3):
            runner.infer(feeds(1, time))
        made, captures = dict(_state.STATE.made), played.captures
        for number in range(1000):
            runner.infer(feeds(1, 1 + number % 3))
        assert (dict(_state.STATE.made), played.captures) == (made, captures)


def test_without_a_drivers_library_graphs_are_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    import ctypes

    def missing(name: str) -> Any:
        raise OSError(f"{name}: cannot open shared object file")

    graphs._library.cache_clear()
    monkeypatch.setattr(ctypes, "CDLL", missing)
    refused(lambda: graphs.require("13.0"), "update the driver", kind=BackendUnavailableError)
