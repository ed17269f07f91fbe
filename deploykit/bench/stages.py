"""The stages of a run: accuracy, invariances, latency, metric. Each takes the seats through one kind of measurement."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from deploykit.bench import accuracy, drift
from deploykit.bench.invariance import Probe, batch_probe, noise, prefix_probe
from deploykit.bench.model import Model
from deploykit.bench.report import Check, Invariance, MetricResult
from deploykit.bench.seat import Seat
from deploykit.bench.settings import Settings
from deploykit.bench.shapes import Shape
from deploykit.bench.tolerance import judge_metric
from deploykit.bench.worker import Stats, Timed
from deploykit.errors import BackendFailedError, WrongAnswerError
from deploykit.trt.profiles import fits

if TYPE_CHECKING:
    from deploykit.types import Array, Feeds

Tick = Callable[[str], None]

#: Every check pools at least this many rows x steps over several seeds, or ``MAX_SEEDS`` of them.
POOLED, MIN_SEEDS, MAX_SEEDS = 64, 2, 8
#: Input sets that timing takes in rotation: at most so many, and no more bytes than this unless two need more.
INPUT_SETS, INPUT_BYTES = 8, 64 * 2**20
#: Warm-up of each shape: at least so many inferences and so many seconds.
WARM_COUNT, WARM_SECONDS = 3, 0.2
#: A slow subject gets fewer rounds, but at least these.
MIN_ROUNDS = 5
_TIMING_SEED, _PROBE_SEED = 1_000_000, 2_000_000


def check_accuracy(
    model: Model, seats: Sequence[Seat], shapes: Sequence[Shape], asked: Sequence[Shape], seed: int, tick: Tick
) -> list[str]:
    """Compare every live seat with the reference at every shape; returns warnings on shapes that could not be checked.

    The reference is a seat too: run a second time, it shows whether it repeats itself.

    Raises:
        BackendFailedError: the reference fails at a shape that was asked for.
    """
    warnings = []
    for number, shape in enumerate(shapes):
        tick(f"accuracy at {shape}")
        first = seed + 1 + number * MAX_SEEDS
        try:
            runs = [_run(model, first + index, shape) for index in range(_seeds(shape))]
        except BackendFailedError as error:
            if shape in asked or not model.reference.connected.alive:
                raise
            warnings.append(f"not checked at {shape}, where the reference itself fails: {error}")
            continue
        for seat in seats:
            if not seat.live:
                continue
            # Nobody promised these sizes: an engine has its profiles, and whoever asks for others is told so.
            if shape not in asked and not _held(seat, runs[0][0]):
                seat.warnings.append(f"not checked at {shape}, which lies in none of the engine's profiles.")
                continue
            with seat.attempt():
                _compare(model, seat, shape, runs)
    return warnings


def check_sources(model: Model, seats: Sequence[Seat]) -> None:
    """Say of each artifact that it was exported from other weights than the model has now: that explains an error."""
    current = model.description.source_sha256
    for seat in seats:
        if seat.live and current and seat.artifact.source_sha256 not in (None, current):
            seat.warnings.append(
                "its model has other weights or another structure than when this was exported: export it again, or, "
                "where its factory draws new weights each time, pass --weights."
            )


def check_invariance(model: Model, seats: Sequence[Seat], shape: Shape, seed: int) -> None:
    """Find how far each live seat's answers depend on batch neighbours and on later steps."""
    batch = batch_probe(model.description, shape, model.sample, model.batch_axes, seed + _PROBE_SEED)
    prefix = prefix_probe(model.description, shape, model.sample, model.time_axes, seed + _PROBE_SEED + 2)
    batch_reference, prefix_reference = (_reference_deviation(model.reference, probe) for probe in (batch, prefix))
    causal = None if prefix_reference is None else prefix_reference[0] <= noise(prefix_reference[1])
    if not causal:
        prefix = None
    for seat in seats:
        if seat.live:
            with seat.attempt():
                rows, steps = (
                    _hold(seat, probe, reference, what, when) if probe is None or _takes(seat, probe, when) else None
                    for probe, reference, what, when in (
                        (batch, batch_reference, "a row's answer", "its batch neighbours change"),
                        (prefix, prefix_reference, "the answer to the first steps", "other steps follow"),
                    )
                )
                seat.invariance = Invariance(rows, steps, causal)


def time_latency(model: Model, seats: Sequence[Seat], shape: Shape, settings: Settings, tick: Tick) -> None:
    """Time every live seat at one shape in interleaved windows (A B C, C A B, …); all samples are kept."""
    sets = _input_sets(model, shape, settings.seed + _TIMING_SEED)
    pairs = dict(model.carried) if settings.scenario.name == "streaming" else None
    if pairs:
        sets = [{**feeds, **drift.zeros(feeds, pairs)} for feeds in sets]
    slowest = 0.0
    for seat in seats:
        if seat.live:
            with seat.attempt():
                seat.connected.call("prepare", str(shape), sets, pairs)
                warm: Timed = seat.connected.call("window", str(shape), WARM_SECONDS, WARM_COUNT)
                slowest = max(slowest, min(warm.samples) / 1e9)
                seat.windows[shape], seat.device[shape] = [], []
    rounds = (
        min(settings.rounds, max(MIN_ROUNDS, math.ceil(settings.seconds / slowest))) if slowest else settings.rounds
    )
    order = list(seats)
    shuffle = random.Random(settings.seed).shuffle
    for number in range(rounds):
        tick(f"latency at {shape}, round {number + 1} of {rounds}")
        # Whoever came after the same other in every round would have its caches and clock frequency to thank or blame.
        shuffle(order)
        for seat in order:
            if seat.live:
                with seat.attempt():
                    found: Timed = seat.connected.call("window", str(shape), settings.seconds / rounds, 1)
                    seat.windows[shape].append(found.samples)
                    seat.device[shape] += found.device_ms


def take_stats(seats: Sequence[Seat]) -> None:
    """Ask each live seat for its memory, load times and notes, before the metric's data counts as the reference's."""
    for seat in seats:
        if seat.live:
            with seat.attempt():
                stats: Stats = seat.connected.call("stats")
                seat.stats = stats
                seat.warnings += stats.notes


def judge_metrics(model: Model, seats: Sequence[Seat], tick: Tick) -> None:
    """The model's metric on every live seat. The reference's worker computes it, so only it needs the metric's data."""
    name = model.description.metric
    if name is None:
        return
    tick(f"{name} of the reference")
    reference = _metric(model.reference, name)
    for seat in seats:
        if seat.live:
            tick(f"{name} of {seat.subject.backend} {seat.artifact.precision}")
            with seat.attempt():
                value = reference if seat is model.reference else _remote_metric(model.reference, seat, name)
                seat.metric = MetricResult(name, value, reference, model.description.higher_is_better)
                seat.reject(judge_metric(seat.metric, seat.allowed))
            if not model.reference.connected.alive:
                raise BackendFailedError(f"computing {name} of {seat.subject.backend}: {seat.failed}")


def _run(model: Model, seed: int, shape: Shape) -> tuple[Feeds, accuracy.Outputs]:
    feeds = model.feeds(seed, shape)
    return feeds, model.expected(feeds, shape)


def _seeds(shape: Shape) -> int:
    return min(max(MIN_SEEDS, math.ceil(POOLED / ((shape.batch or 1) * (shape.time or 1)))), MAX_SEEDS)


def _compare(model: Model, seat: Seat, shape: Shape, runs: Sequence[tuple[Feeds, accuracy.Outputs]]) -> None:
    pairs = []
    for feeds, expected in runs:
        found = seat.infer(feeds)
        wrong = accuracy.mismatch(expected, found, half=seat.artifact.precision in ("float16", "fp16"))
        if wrong is not None:
            raise WrongAnswerError(f"at {shape}, {wrong}")
        pairs.append((expected, found))
    measured = accuracy.measure(pairs, seat.allowed, batch_axes=model.batch_axes, time_axes=model.time_axes)
    reason = accuracy.judge(measured, seat.allowed)
    seat.accuracy[shape] = measured
    seat.checks.append(
        Check(shape.batch, shape.time, len(runs), measured.max_abs, measured.snr_db, reason is None, reason)
    )
    seat.reject(None if reason is None else f"at {shape}, {reason}")


def _reference_deviation(reference: Seat, probe: Probe | None) -> tuple[float, float] | None:
    if probe is None:
        return None
    try:
        found = _deviation(reference, probe)
    except BackendFailedError:
        if not reference.connected.alive:
            raise
        return None  # the reference cannot run these sizes or magnitudes, so nothing can be asked of the others
    return found if found is not None and math.isfinite(found[0]) else None


def _deviation(seat: Seat, probe: Probe) -> tuple[float, float] | None:
    return probe.deviation(seat.infer(probe.plain), seat.infer(probe.changed))


def _takes(seat: Seat, probe: Probe, when: str) -> bool:
    """Whether an engine takes both inputs of a probe; a warning where it does not."""
    for feeds in (probe.plain, probe.changed):
        if not _held(seat, feeds):
            shapes = ", ".join(f"{name} {'x'.join(map(str, value.shape))}" for name, value in feeds.items())
            seat.warnings.append(
                f"not checked when {when}: that needs {shapes}, which lies in none of the engine's profiles."
            )
            return False
    return True


def _held(seat: Seat, feeds: Mapping[str, Array]) -> bool:
    """Whether an engine takes inputs of these shapes; what is no engine takes all of the model's."""
    engine = seat.artifact.engine
    shapes = {name: value.shape for name, value in feeds.items()}
    return engine is None or any(fits(profile, shapes) for profile in engine.profiles)


def _hold(seat: Seat, probe: Probe | None, reference: tuple[float, float] | None, what: str, when: str) -> float | None:
    """The seat's deviation, with a warning where it is more than the reference's own and float32's noise explain."""
    found = None if probe is None or reference is None else _deviation(seat, probe)
    if found is None or reference is None:
        return None
    if not math.isfinite(found[0]):
        raise WrongAnswerError(f"{what} becomes NaN or Inf when {when}.")
    if found[0] > max(10 * reference[0], noise(reference[1])):
        seat.warnings.append(
            f"{what} changes by up to {found[0]:.2g} when {when} (the reference's by {reference[0]:.2g})."
        )
    return found[0]


def _input_sets(model: Model, shape: Shape, seed: int) -> list[dict[str, Array]]:
    sets = [model.feeds(seed, shape)]
    size = max(1, sum(value.nbytes for value in sets[0].values()))
    count = min(INPUT_SETS, max(2, INPUT_BYTES // size))
    return [*sets, *(model.feeds(seed + index, shape) for index in range(1, count))]


def _metric(reference: Seat, name: str) -> float:
    try:
        value: float = reference.connected.call("metric", False)
    except BackendFailedError as error:
        raise BackendFailedError(f"computing {name}: {error}") from error
    return value


def _remote_metric(reference: Seat, seat: Seat, name: str) -> float:
    try:
        value: float = reference.connected.call("metric", True, answer=seat.infer)
    except BackendFailedError as error:
        raise BackendFailedError(f"computing {name}: {error}") from error
    return value
