"""How far a stream's answers leave the reference's over many steps, where each carries the states that it made itself.

A check of one sequence begins from a state that both are given. A server's stream does not end: an error that a state
keeps comes back with every step, and may fade, stay or grow. Batch 1, states from zero; the reference and a subject get
the same inputs, block by block, and never each other's states.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from deploykit.bench import accuracy
from deploykit.bench.model import Model
from deploykit.bench.report import Drift, Tolerance
from deploykit.bench.seat import Seat
from deploykit.bench.shapes import Shape, limits
from deploykit.errors import ModelError, WrongAnswerError
from deploykit.types import BATCH, TIME

if TYPE_CHECKING:
    import numpy.typing as npt

    from deploykit.types import Array, Feeds

    Floats = npt.NDArray[np.float64]

#: The reference is timed over so many steps, and gets no more of them than fit into so many seconds.
TRIAL_STEPS, REFERENCE_SECONDS = 100, 20.0
#: Steps in one command, fewer where their outputs would take more bytes: all that is held at a time.
BLOCK_STEPS, BLOCK_BYTES = 500, 32 * 2**20
_SEED = 3_000_000


def zeros(feeds: Feeds, pairs: Mapping[str, str]) -> dict[str, Array]:
    """The states before the first step."""
    return {name: np.zeros_like(feeds[name]) for name in pairs}


def steps_within(wanted: int, trial_seconds: float) -> int:
    """How many of the ``wanted`` steps the reference may have, after ``TRIAL_STEPS`` of them took so long."""
    fitting = wanted if trial_seconds <= 0 else int(REFERENCE_SECONDS / trial_seconds * TRIAL_STEPS)
    return min(wanted, max(TRIAL_STEPS, fitting))


def check_drift(
    model: Model,
    seats: Sequence[Seat],
    wanted: int,
    seed: int,
    tick: Callable[[str], None],
    clock: Callable[[], float] = time.monotonic,
) -> list[str]:
    """Stream every live seat beside the reference; returns warnings on the run. Nothing for a model without states.

    Raises:
        BackendFailedError: the reference fails.
        ModelError: it returns NaN or Inf.
    """
    others = [seat for seat in seats if seat.live and seat is not model.reference]
    if not model.carried or wanted < 1 or not others:
        return []
    tick("drift: the reference's speed")
    blocks = _Inputs(model, seed + _SEED)
    pairs: Mapping[str, str] | None = dict(model.carried)
    trial = blocks.take(min(TRIAL_STEPS, wanted))
    begin = clock()
    expected = _stream(model.reference, trial, pairs)
    steps = steps_within(wanted, clock() - begin)
    size = max(1, min(BLOCK_STEPS, BLOCK_BYTES * len(trial) // max(1, _bytes(expected))))
    tallies = {id(seat): _Tally(seat.allowed) for seat in others}
    done, told, block = 0, 0, trial
    while True:
        if any(accuracy.not_finite(value) for value in expected.values()):
            raise ModelError(f"the reference itself returns NaN or Inf within {done + len(block)} streamed steps.")
        for seat in others:
            if seat.live:
                with seat.attempt():
                    _compare(seat, block, pairs, expected, tallies[id(seat)], done)
        done += len(block)
        if done >= steps or not any(seat.live for seat in others):
            break
        if done * 4 // steps > told:  # at the quarters: the meter takes its ticks as equally long
            told = done * 4 // steps
            tick(f"drift: {done:,} of {steps:,} steps")
        pairs, block = None, blocks.take(min(size, steps - done))
        expected = _stream(model.reference, block, None)
    for seat in others:
        if seat.live:
            seat.drift = tallies[id(seat)].drift()
            seat.reject(seat.drift.reason)
    return [] if steps >= wanted else [_fewer(steps, wanted)]


def _fewer(steps: int, wanted: int) -> str:
    return (
        f"drift was measured over {steps:,} steps and not {wanted:,}, which would have taken the reference more than "
        f"{REFERENCE_SECONDS:g} s."
    )


class _Inputs:
    """The inputs of one stream, step after step: pieces of sequences as long as the model samples them."""

    def __init__(self, model: Model, seed: int) -> None:
        self._model = model
        self._seed = seed
        self._left: Iterator[dict[str, Array]] = iter(())
        self._begun = False

    def take(self, count: int) -> list[dict[str, Array]]:
        """The inputs of ``count`` more steps; the states, zero, are in the stream's first alone."""
        found: list[dict[str, Array]] = []
        while len(found) < count:
            feeds = next(self._left, None)
            if feeds is None:
                self._left = self._sequence()
                continue
            states = {name: feeds.pop(name) for name in self._model.carried}
            found.append(feeds if self._begun else {**feeds, **{k: np.zeros_like(v) for k, v in states.items()}})
            self._begun = True
        return found

    def _sequence(self) -> Iterator[dict[str, Array]]:
        description, seed = self._model.description, self._seed
        self._seed += 1
        bounds = limits(description, TIME)
        axes = {tensor.name: tensor.dims.index(TIME) for tensor in description.inputs if TIME in tensor.dims}
        own = {tensor.name for tensor in description.inputs} - set(self._model.carried)
        batch = limits(description, BATCH).clamp(1)
        # An input without a time axis, such as lengths, holds for its own number of steps alone: then no cutting.
        if set(axes) != own:
            return iter([self._model.feeds(seed, Shape(batch, bounds.clamp(1)))])
        step = bounds.clamp(1)
        count = max(1, min(BLOCK_STEPS, bounds.high // step))
        return _cut(self._model.feeds(seed, Shape(batch, step * count)), axes, step, count)


def _cut(feeds: Feeds, axes: Mapping[str, int], step: int, count: int) -> Iterator[dict[str, Array]]:
    for number in range(count):
        piece = slice(number * step, (number + 1) * step)
        yield {
            name: np.ascontiguousarray(value[(slice(None),) * axes[name] + (piece,)]) if name in axes else value
            for name, value in feeds.items()
        }


def _stream(seat: Seat, block: list[dict[str, Array]], pairs: Mapping[str, str] | None) -> dict[str, Array]:
    found: dict[str, Array] = seat.connected.call("stream", block, pairs)
    return found


def _bytes(outputs: Mapping[str, Array]) -> int:
    return sum(value.nbytes for value in outputs.values())


def _compare(
    seat: Seat,
    block: list[dict[str, Array]],
    pairs: Mapping[str, str] | None,
    expected: Mapping[str, Array],
    tally: _Tally,
    done: int,
) -> None:
    found = _stream(seat, block, pairs)
    wrong = accuracy.mismatch(expected, found, half=seat.artifact.precision in ("float16", "fp16"))
    if wrong is not None:
        raise WrongAnswerError(f"its answer drifts: within {done + len(block):,} streamed steps, {wrong}")
    tally.add(expected, found)


@dataclass
class _Output:
    """Sums of each step of one output."""

    inexact: bool
    size: int
    noise: list[Floats] = field(default_factory=list)
    signal: list[Floats] = field(default_factory=list)
    mean_abs: list[Floats] = field(default_factory=list)
    max_abs: float = 0.0
    outside: list[Floats] = field(default_factory=list)
    unequal: list[Floats] = field(default_factory=list)


class _Tally:
    """The errors of one seat, kept as sums of each step: the outputs of 10,000 steps need not be held."""

    def __init__(self, allowed: Tolerance) -> None:
        self._allowed = allowed
        self._outputs: dict[str, _Output] = {}

    def add(self, expected: Mapping[str, Array], found: Mapping[str, Array]) -> None:
        """Further steps, stacked along the first axis."""
        for name, value in expected.items():
            reference = value.reshape(len(value), -1).astype(np.float64)
            error = np.abs(found[name].reshape(len(value), -1).astype(np.float64) - reference)
            bound = self._allowed.of(name)
            own = self._outputs.setdefault(name, _Output(bool(np.issubdtype(value.dtype, np.inexact)), error.shape[1]))
            own.noise.append(np.square(error).sum(axis=1))
            own.signal.append(np.square(reference).sum(axis=1))
            own.mean_abs.append(error.mean(axis=1) if error.shape[1] else np.zeros(len(error)))
            own.max_abs = max(own.max_abs, float(error.max(initial=0.0)))
            limit = bound.atol + bound.rtol * np.abs(reference)
            own.outside.append((error > limit).sum(axis=1).astype(np.float64))
            own.unequal.append((error > 0).sum(axis=1).astype(np.float64))

    def drift(self) -> Drift:
        """What came of it, and why it does not pass."""
        errors = {name: _joined(own) for name, own in self._outputs.items()}
        steps = len(next(iter(errors.values()))["noise"])
        tenth = max(1, steps // 10)
        first = next(iter(errors.values()))["mean_abs"]
        parts = {"all": slice(None), "first": slice(tenth), "last": slice(steps - tenth, None)}
        snr = {
            part: {name: _snr(error, piece) for name, error in errors.items() if self._outputs[name].inexact}
            for part, piece in parts.items()
        }
        reasons = (self._judge(name, errors[name], tenth, snr) for name in errors)
        return Drift(
            steps=steps,
            max_abs=max(own.max_abs for own in self._outputs.values()),
            snr_db=_least(snr["all"]),
            snr_first_db=_least(snr["first"]),
            snr_last_db=_least(snr["last"]),
            per_step=tuple(float(value) for value in accuracy.downsample(first, accuracy.STEP_POINTS)),
            grows=accuracy.grows(first),
            reason=next((reason for reason in reasons if reason is not None), None),
        )

    def _judge(self, name: str, error: dict[str, Floats], tenth: int, snr: Mapping[str, Any]) -> str | None:
        own, bound, steps = self._outputs[name], self._allowed.of(name), len(error["noise"])
        where = np.flatnonzero(error["outside"])
        silent = own.inexact and not error["signal"].any()
        if (bound.by_element or silent) and where.size:
            return (
                f"its answer drifts: over {steps:,} streamed steps its output {name!r} is outside |error| <= "
                f"{bound.atol:g} + {bound.rtol:g} |reference| from step {where[0] + 1:,} on in {where.size:,} of them: "
                f"the largest error is {own.max_abs:.3g}."
            )
        if bound.min_snr_db is None:
            return None
        told = f"over the last {tenth:,} of {steps:,} streamed steps its output {name!r}"
        last, first = snr["last"].get(name), snr["first"].get(name)
        if last is not None and last < bound.min_snr_db:
            begun = "" if first is None else f" ({first:.1f} dB over the first {tenth:,})"
            return (
                f"its answer drifts: {told} has an SNR of {last:.1f} dB{begun}, and {bound.min_snr_db:g} dB is needed."
            )
        equal = 1 - float(error["unequal"][-tenth:].sum()) / max(1, tenth * own.size)
        if not own.inexact and equal < bound.min_equal:
            return (
                f"its answer drifts: {told} equals the reference in {equal:.1%}, and {bound.min_equal:.0%} is needed."
            )
        return None


def _joined(own: _Output) -> dict[str, Floats]:
    names = ("noise", "signal", "mean_abs", "outside", "unequal")
    return {name: np.concatenate(getattr(own, name)) for name in names}


def _snr(error: Mapping[str, Floats], piece: slice) -> float | None:
    noise, signal = float(error["noise"][piece].sum()), float(error["signal"][piece].sum())
    return 10 * math.log10(signal / noise) if noise > 0 and signal > 0 else None


def _least(values: Mapping[str, float | None]) -> float | None:
    return min((value for value in values.values() if value is not None), default=None)
