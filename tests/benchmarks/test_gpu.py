"""What of the GPU's measurements can be tested without one: the loop, the comparison and the table."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from deploykit.runtime import session
from deploykit.trt.options import Precision
from deploykit.trt.profiles import derive, fits
from tests.benchmarks import gpu
from tests.benchmarks.gpu import EAGER, Times
from tests.benchmarks.gpu_torch import tensors


def test_contestants_take_turns_and_both_times_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, order = [0], list[str]()
    monkeypatch.setattr(time, "perf_counter_ns", lambda: clock[0])

    def lasting(name: str, milliseconds: int, device: float | None) -> gpu.Run:
        def run() -> float | None:
            order.append(name)
            clock[0] += milliseconds * 1_000_000
            return device

        return run

    found = gpu.interleave({"a": lasting("a", 2, 0.5), "b": lasting("b", 3, None)}, rounds=8, each=2, warm=1)
    assert found == {"a": Times([2.0] * 16, [0.5] * 16), "b": Times([3.0] * 16, [])}
    turns = order[2::3]
    assert order[2:] == [name for name in turns for _ in range(3)], "one that is not timed, then two that are"
    assert all(sorted(turns[at : at + 2]) == ["a", "b"] for at in range(0, 16, 2))
    assert turns[::2].count("a") not in (0, 8), "nobody always comes first"


def test_answers_are_judged_by_the_bench_s_tolerance() -> None:
    expected = {"y": np.ones((2, 3), np.float32)}
    assert gpu.compare(expected, expected, "fp32") == gpu.Difference(0.0, None, passed=True)
    near = {"y": np.full((2, 3), 1.001, np.float32)}
    assert [gpu.compare(expected, near, one).passed for one in ("fp32", "fp16", "int8")] == [False, True, True]
    found = gpu.compare(expected, {"y": np.full((2, 3), 1.5, np.float32)}, "int8")
    assert (found.max_abs, found.passed) == (0.5, False)
    assert found.snr_db == pytest.approx(6.02, abs=0.01)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_a_nan_or_another_shape_does_not_pass(precision: Precision) -> None:
    expected = {"y": np.ones((2, 3), np.float32)}
    assert gpu.compare(expected, {"y": np.full((2, 3), np.nan, np.float32)}, precision).passed is False
    for wrong in ({}, {"y": np.ones((3, 2), np.float32)}):
        with pytest.raises(ValueError, match="missing or has another shape"):
            gpu.compare(expected, wrong, precision)


def test_the_table_tells_both_times_and_both_ratios() -> None:
    times = {"TensorRT": Times([1.0, 2.0, 3.0], [0.5]), EAGER: Times([4.0], [2.0]), "other": Times([8.0])}
    assert list(gpu.lines("GRU 256", "1 x 100", "fp16", times)) == [
        "| GRU 256 | 1 x 100 | fp16 | TensorRT | 2.000 (1.500 to 2.500) | 0.500 (0.500 to 0.500) | 2.00 | 4.00 |",
        f"| GRU 256 | 1 x 100 | fp16 | {EAGER} | 4.000 (4.000 to 4.000) | 2.000 (2.000 to 2.000) | 1.00 | 1.00 |",
        "| GRU 256 | 1 x 100 | fp16 | other | 8.000 (8.000 to 8.000) | – | 0.50 | – |",
    ]


@pytest.mark.parametrize("name", gpu.KINDS)
def test_every_model_is_exported_and_answers_as_its_reference(name: str, tmp_path: Path) -> None:
    from deploykit.loading import load

    kind = gpu.KINDS[name]
    ref, source = gpu.exported(kind, 8, tmp_path)
    spec = load(ref)
    feeds = spec.feeds(1, batch=2, time=5)
    names = [tensor.name for tensor in source.outputs]
    found = dict(zip(names, map(np.asarray, session(source.path).run(names, dict(feeds))), strict=True))
    assert gpu.compare(gpu.reference(spec, feeds), found, kind.precisions[0]).passed
    (profile,) = derive((gpu.SHAPES,), source.inputs, source.dims)
    for batch, steps in gpu.COMPARED:
        assert fits(profile, {name: value.shape for name, value in spec.feeds(0, batch=batch, time=steps).items()})
    copied = list(tensors(spec.module(*(torch.from_numpy(feeds[tensor.name]) for tensor in spec.inputs))))
    assert [tuple(tensor.shape) for tensor in copied] == [value.shape for value in found.values()]


def test_one_that_fails_leaves_the_others() -> None:
    def fail() -> gpu.Run:
        raise RuntimeError("no graph\nof this")

    running, failures = gpu.started({"a": fail, "b": lambda: lambda: 1.0})
    assert list(running) == ["b"]
    assert failures == ["a: failed, no graph"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_says_so_in_a_sentence() -> None:
    found = CliRunner().invoke(gpu.main, [])
    assert found.exit_code == 1
    assert found.output.startswith("Error: PyTorch sees no GPU here")
    assert CliRunner().invoke(gpu.main, ["--kinds", "GRV"]).exit_code == 2
