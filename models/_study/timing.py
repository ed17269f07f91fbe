"""Inference latency of different models, timed in turn by the bench's own stages."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from deploykit import loading
from deploykit.artifact import Artifact
from deploykit.bench import stages, stats
from deploykit.bench.model import learn
from deploykit.bench.seat import Seat
from deploykit.bench.settings import Settings, Subject
from deploykit.bench.shapes import Shape
from deploykit.errors import BackendFailedError

from .deploy import Files
from .plan import Plan
from .results import GRU, Latency
from .statistics import Interval

#: Models in one run beside the GRU: each model is up to four processes, and PyTorch's are large.
GROUP = 3
#: What is run of each model: backend, precision, kernels.
CELLS = (("torch", "float32", ""), ("ort", "float32", ""), ("ort", "int8", "portable"), ("ort", "int8", "fused"))

Cell = tuple[str, str, str]
Tick = Callable[[str], None]


@dataclass(frozen=True)
class _Place:
    files: Files
    cell: Cell
    seat: Seat


def latencies(files: Sequence[Files], plan: Plan, threads: int, tick: Tick = lambda _: None) -> Iterator[list[Latency]]:
    """Batch 1 at the plan's window, a list for each run of the bench.

    In each run the GRU and up to ``GROUP`` others take turns, all backends of all of them, window by window in an order
    drawn anew each round; a ratio is of one backend's windows to the GRU's of the same round.
    """
    gru = next((one for one in files if one.job.architecture == GRU and not one.job.variant), files[0])
    others = [one for one in files if one is not gru]
    groups = [others[start : start + GROUP] for start in range(0, len(others), GROUP)] or [[]]
    for number, group in enumerate(groups):
        tick(f"latency of {', '.join(one.job.architecture for one in group) or GRU} beside the {GRU}'s")
        found = _together([gru, *group], plan, threads)
        yield [one for one in found if number == 0 or (one.architecture, one.variant) != (GRU, "")]


def _together(files: Sequence[Files], plan: Plan, threads: int) -> list[Latency]:
    settings = Settings(threads=threads, seconds=plan.bench_seconds, rounds=plan.bench_rounds)
    places = [_Place(one, cell, Seat(_subject(one, cell), settings)) for one in files for cell in CELLS]
    with contextlib.ExitStack() as workers:
        for place in places:
            place.seat.open(workers)
        reference = places[0].seat
        if reference.error is not None:
            raise BackendFailedError(f"the {GRU} cannot be timed: {reference.error}")
        # All models of a task take the same inputs, so that what the reference tells holds for every seat.
        model, (shape,) = learn(reference, settings, lambda _: [Shape(1, files[0].job.window)])
        stages.time_latency(model, [place.seat for place in places], shape, settings, lambda _: None)
    base = {place.cell: place.seat for place in places[: len(CELLS)]}
    return [_latency(place, base[place.cell], shape) for place in places]


def _latency(place: _Place, base: Seat, shape: Shape) -> Latency:
    seat, job = place.seat, place.files.job
    backend, precision, kernels = place.cell
    row = Latency(job.architecture, job.variant, job.shape.hidden, backend, precision, kernels, 1, job.window)
    reason = seat.unavailable or seat.failed
    if reason is not None or not seat.windows.get(shape):
        return replace(row, reason=reason or "it was not timed.")
    found = stats.latency(seat.windows[shape], 1)
    quantiles = found.quantiles or {}
    ratio = None
    if base.failed is None and len(base.windows.get(shape, [])) == len(seat.windows[shape]):
        ratio = stats.speedup(seat.windows[shape], base.windows[shape], vs=GRU, seed=0)
    return replace(
        row,
        p50_ms=found.p50,
        p25_ms=quantiles.get("25"),
        p75_ms=quantiles.get("75"),
        ratio=None if ratio is None else Interval(ratio.median, ratio.low, ratio.high),
        stable=found.stable,
    )


def _subject(files: Files, cell: Cell) -> Subject:
    backend, precision, kernels = cell
    if backend == "torch":
        return Subject("torch", Artifact.of_model(files.model, loading.model_name(files.model)))
    if kernels == "fused":
        return Subject(backend, files.fused, None if files.fused is not None else files.reason)
    return Subject(backend, files.plain if precision == "float32" else files.int8)
