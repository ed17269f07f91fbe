"""Backends for the harness's own tests: a recurrence in NumPy as the reference, and copies of it with one fault each.

They run in workers, which import this module by name; ``REFERENCE`` needs no PyTorch, so that a worker starts fast.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from deploykit.artifact import Artifact, ModelRef
from deploykit.backends import Backend, Runner, RunOptions
from deploykit.backends._feeds import check_feeds
from deploykit.bench import Subject
from deploykit.errors import BackendFailedError
from deploykit.types import DimRange, Metric, ModelSpec, TensorSpec

if TYPE_CHECKING:
    from torch import nn

    from deploykit.types import Array, Feeds, Infer

Outputs = dict[str, "Array"]
SPECS = (TensorSpec.parse("x:float32[batch,time,4]"),)


def recurrence(x: Array, decay: float = 0.5) -> Outputs:
    """``y[t] = tanh(x[t] + decay * y[t-1])`` for x float32 [batch, time, 4]; ``h`` is the last step."""
    steps, state = [], np.zeros(x[:, 0].shape, np.float32)
    for step in range(x.shape[1]):
        state = np.tanh(x[:, step] + np.float32(decay) * state)
        steps.append(state)
    return {"y": np.stack(steps, axis=1), "h": state}


def mean_square(infer: Infer) -> float:
    x = np.random.default_rng(7).standard_normal((2, 20, 4)).astype(np.float32)
    return float(np.square(infer({"x": x})["y"]).mean())


def spec_of(metric: Metric | None, dims: Mapping[str, DimRange]) -> ModelSpec:
    return ModelSpec(cast("nn.Module", object()), SPECS, (), name="fake", metric=metric, dims=dims)


class FakeRunner(Runner):
    def __init__(self, spec: ModelSpec, change: Callable[[Feeds, Outputs], Outputs]) -> None:
        self.spec = spec
        self._change = change

    def infer(self, feeds: Feeds) -> Outputs:
        check_feeds(feeds, self.spec.inputs)
        return self._change(feeds, recurrence(feeds["x"]))


class FakeBackend(Backend):
    accepts = frozenset({"torch"})

    def __init__(
        self,
        change: Callable[[Feeds, Outputs], Outputs] = lambda feeds, outputs: outputs,
        *,
        metric: Metric | None = None,
        dims: Mapping[str, DimRange] | None = None,
        missing: str | None = None,
    ) -> None:
        self._change = change
        self._metric = metric
        self._dims = dims or {}
        self._missing = missing

    def available(self) -> str | None:
        return self._missing

    def open(self, artifact: Artifact, options: RunOptions) -> Runner:
        return FakeRunner(spec_of(self._metric, self._dims), self._change)


def _roll(feeds: Feeds, outputs: Outputs) -> Outputs:
    return {**outputs, "y": np.roll(outputs["y"], 1, axis=1)}


def _swap(feeds: Feeds, outputs: Outputs) -> Outputs:
    return {name: np.ascontiguousarray(value[::-1]) for name, value in outputs.items()}


def _nan(feeds: Feeds, outputs: Outputs) -> Outputs:
    y = outputs["y"].copy()
    y[-1] = np.nan
    return {**outputs, "y": y}


def _short(feeds: Feeds, outputs: Outputs) -> Outputs:
    return {**outputs, "y": outputs["y"][:, :-1]}


def _crash(feeds: Feeds, outputs: Outputs) -> Outputs:
    os._exit(7)


def _hang(feeds: Feeds, outputs: Outputs) -> Outputs:
    time.sleep(3600)
    return outputs


def _chatty(feeds: Feeds, outputs: Outputs) -> Outputs:
    print("printed garbage", flush=True)  # noqa: T201
    os.write(1, b"written garbage\n")
    return outputs


def _raise(feeds: Feeds, outputs: Outputs) -> Outputs:
    raise ValueError("the kernel broke\nsecond line")


def _names(feeds: Feeds, outputs: Outputs) -> Outputs:
    return {"y": outputs["y"], "state": outputs["h"]}


def _double(feeds: Feeds, outputs: Outputs) -> Outputs:
    return {**outputs, "h": outputs["h"].astype(np.float64)}


def _half(feeds: Feeds, outputs: Outputs) -> Outputs:
    return {name: value.astype(np.float16) for name, value in outputs.items()}


def _coarse(feeds: Feeds, outputs: Outputs) -> Outputs:
    """Like eight bits: an error of 1 % of the range, far outside float32's tolerance."""
    return {name: (np.round(value * 50) / 50).astype(np.float32) for name, value in outputs.items()}


def _ruined(feeds: Feeds, outputs: Outputs) -> Outputs:
    """Like two bits."""
    return {name: np.round(value).astype(np.float32) for name, value in outputs.items()}


def _coupled(feeds: Feeds, outputs: Outputs) -> Outputs:
    """One scale for the whole batch and sequence, as quantizers take it."""
    x = feeds["x"]
    scale = np.float32(np.abs(x).max() / 127)
    return recurrence(np.round(x / scale) * scale)


def _ahead(feeds: Feeds, outputs: Outputs) -> Outputs:
    return recurrence(feeds["x"] + np.float32(1e-2) * feeds["x"][:, -1:])


def _drifting(feeds: Feeds, outputs: Outputs) -> Outputs:
    error = np.float32(1e-3) * np.arange(outputs["y"].shape[1], dtype=np.float32)[None, :, None]
    return {**outputs, "y": outputs["y"] + error}


def _overflow(feeds: Feeds, outputs: Outputs) -> Outputs:
    """Computed in float16 on the way, where what is beyond 65504 is Inf."""
    with np.errstate(over="ignore"):
        wide = (outputs["y"] * np.float32(1e6)).astype(np.float16)
    return {**outputs, "y": (wide / np.float16(100)).astype(np.float32)}


class _Leak:
    """Keeps what it has computed, in a process that may not grow by more than 200 MB."""

    def __init__(self) -> None:
        self._kept: list[Array] = []

    def __call__(self, feeds: Feeds, outputs: Outputs) -> Outputs:
        import resource

        if not self._kept:
            pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
            limit = pages * resource.getpagesize() + 200 * 2**20
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        self._kept.append(np.ones(5_000_000, np.float64))
        return outputs


class _Late:
    """Crashes only after so many inferences: in the middle of the timing."""

    def __init__(self, after: int) -> None:
        self._left = after

    def __call__(self, feeds: Feeds, outputs: Outputs) -> Outputs:
        self._left -= 1
        if self._left < 0:
            os._exit(9)
        return outputs


class _Forgetful:
    """Answers differently every time."""

    def __init__(self) -> None:
        self._calls = 0

    def __call__(self, feeds: Feeds, outputs: Outputs) -> Outputs:
        self._calls += 1
        return {name: value * np.float32(1 + 0.01 * self._calls) for name, value in outputs.items()}


def _bidirectional(feeds: Feeds, outputs: Outputs) -> Outputs:
    backward = recurrence(feeds["x"][:, ::-1])["y"][:, ::-1]
    return {"y": outputs["y"] + backward}


def _refuse_single(feeds: Feeds, outputs: Outputs) -> Outputs:
    if feeds["x"].shape[1] < 2:
        raise BackendFailedError("at least 2 steps are needed.")
    return outputs


def broken_metric(infer: Infer) -> float:
    raise KeyError("no such output")


def fragile_metric(infer: Infer) -> float:
    """Takes an input that ``CRASH_IN_METRIC`` crashes on."""
    return float(infer({"x": np.full((1, 1, 4), 99, np.float32)})["y"].mean())


def deadly_metric(infer: Infer) -> float:
    """Ends the reference's own process once another backend answers it: one whose answers are not float32's."""
    if mean_square(infer) != mean_square(lambda feeds: recurrence(feeds["x"])):
        os._exit(5)
    return 1.0


def _crash_at_99(feeds: Feeds, outputs: Outputs) -> Outputs:
    if feeds["x"].max() == 99:
        os._exit(6)
    return outputs


METRIC = Metric("mean_square", higher_is_better=True, evaluate=mean_square)

REFERENCE = FakeBackend(metric=METRIC)
PLAIN = FakeBackend()
SHORT_RANGE = FakeBackend(dims={"time": DimRange(2, 50), "batch": DimRange(1, 8)})
BROKEN_METRIC = FakeBackend(metric=Metric("score", higher_is_better=True, evaluate=broken_metric))
FRAGILE_METRIC = FakeBackend(metric=Metric("score", higher_is_better=True, evaluate=fragile_metric))
DEADLY_METRIC = FakeBackend(metric=Metric("score", higher_is_better=True, evaluate=deadly_metric))
CRASH_IN_METRIC = FakeBackend(_crash_at_99)
REFERENCE_NAN = FakeBackend(_nan)
REFERENCE_FORGETFUL = FakeBackend(_Forgetful())
REFERENCE_BIDIRECTIONAL = FakeBackend(_bidirectional)
REFERENCE_REFUSES_SINGLE = FakeBackend(_refuse_single)
ROLLED = FakeBackend(_roll)
SWAPPED = FakeBackend(_swap)
NAN = FakeBackend(_nan)
SHORT = FakeBackend(_short)
CRASH = FakeBackend(_crash)
OVERFLOW = FakeBackend(_overflow)
LEAK = FakeBackend(_Leak())
CRASH_LATE = FakeBackend(_Late(60))
HANG = FakeBackend(_hang)
CHATTY = FakeBackend(_chatty)
RAISE = FakeBackend(_raise)
NAMES = FakeBackend(_names)
DOUBLE = FakeBackend(_double)
HALF = FakeBackend(_half)
COARSE = FakeBackend(_coarse)
RUINED = FakeBackend(_ruined)
COUPLED = FakeBackend(_coupled)
AHEAD = FakeBackend(_ahead)
DRIFTING = FakeBackend(_drifting)
MISSING = FakeBackend(missing="libfake is not installed: run pip install libfake.")


class Accumulator(Runner):
    """A stream that sums up: ``h_out`` is ``h_in`` and a hundredth of every step's x; ``y`` is the sum after each.

    ``bias`` is an error of one call, small enough for any single sequence, that the state keeps. ``forgets``: whoever
    streams it gets every step from a state of zero. ``nan_after`` so many calls, its answers are no numbers.
    """

    def __init__(self, bias: float, forgets: bool, nan_after: int | None) -> None:
        inputs = (*SPECS, TensorSpec.parse("h_in:float32[batch,4]"))
        self.spec = replace(spec_of(None, {}), inputs=inputs, sample=_walk)
        self._bias = np.float32(bias)
        self._forgets = forgets
        self._left = nan_after

    def infer(self, feeds: Feeds) -> Outputs:
        check_feeds(feeds, self.spec.inputs)
        steps = feeds["h_in"][:, None] + np.cumsum(np.float32(0.01) * feeds["x"], axis=1, dtype=np.float32)
        if self._left is not None:
            self._left -= 1
            if self._left < 0:
                steps = steps * np.float32(np.nan)
        return {"y": steps, "h_out": steps[:, -1] + self._bias}

    def carry(self, pairs: Mapping[str, str]) -> Callable[[Feeds], Outputs]:
        step = super().carry(pairs)
        if not self._forgets:
            return step

        def forgetful(feeds: Feeds) -> Outputs:
            zero = np.zeros((len(feeds["x"]), 4), np.float32)
            return {"y": self.infer({**feeds, "h_in": zero})["y"]}

        return forgetful


def _walk(seed: int, **sizes: int) -> Outputs:
    generator = np.random.default_rng(seed)
    x = generator.standard_normal((sizes["batch"], sizes["time"], 4)).astype(np.float32)
    return {"x": x, "h_in": generator.uniform(-1, 1, (sizes["batch"], 4)).astype(np.float32)}


class AccumulatorBackend(Backend):
    accepts = frozenset({"torch"})

    def __init__(self, bias: float = 0.0, *, forgets: bool = False, nan_after: int | None = None) -> None:
        self._made = (bias, forgets, nan_after)

    def available(self) -> str | None:
        return None

    def open(self, artifact: Artifact, options: RunOptions) -> Runner:
        return Accumulator(*self._made)


STREAM = AccumulatorBackend()
STREAM_ACCUMULATING = AccumulatorBackend(2e-5)
STREAM_COARSE = AccumulatorBackend(2e-3)
STREAM_FORGETFUL = AccumulatorBackend(forgets=True)
STREAM_NAN = AccumulatorBackend(nan_after=700)


class OnDevice(FakeRunner):
    """Says that a GPU took ``quarters`` of a millisecond for each row of its batch."""

    def __init__(self, spec: ModelSpec, quarters: float) -> None:
        super().__init__(spec, lambda feeds, outputs: outputs)
        self._quarters = quarters

    def infer(self, feeds: Feeds) -> Outputs:
        self.device_ms = 0.25 * self._quarters * len(feeds["x"])
        return super().infer(feeds)


class OnDeviceBackend(FakeBackend):
    def __init__(self, quarters: float) -> None:
        super().__init__()
        self._quarters = quarters

    def open(self, artifact: Artifact, options: RunOptions) -> Runner:
        return OnDevice(spec_of(None, {}), self._quarters)


class StreamOnDevice(Accumulator):
    """A stream whose every step took a GPU an eighth of a millisecond."""

    def infer(self, feeds: Feeds) -> Outputs:
        self.device_ms = 0.125
        return super().infer(feeds)


class StreamOnDeviceBackend(AccumulatorBackend):
    def open(self, artifact: Artifact, options: RunOptions) -> Runner:
        return StreamOnDevice(*self._made)


ON_DEVICE = OnDeviceBackend(1)
ON_NO_DEVICE = OnDeviceBackend(float("nan"))
STREAM_ON_DEVICE = StreamOnDeviceBackend()


def subject(name: str, precision: str = "float32") -> Subject:
    """The fake of that name in this module, as a subject."""
    artifact = Artifact.of_model(ModelRef("fake"), "fake")
    return Subject(f"{__name__}:{name}", replace(artifact, precision=precision))
