"""Runs the bench: opens every subject in a process of its own, takes them through the stages, and writes the report."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

from deploykit.artifact import Artifact
from deploykit.bench import drift, server, shapes, stages
from deploykit.bench.environment import gpu_state
from deploykit.bench.model import learn
from deploykit.bench.report import Report
from deploykit.bench.rows import make_report
from deploykit.bench.seat import Seat
from deploykit.bench.settings import Settings, Subject
from deploykit.errors import BackendFailedError, BackendUnavailableError, UsageError

__all__ = ["Progress", "Settings", "Subject", "bench"]

Progress = Callable[[str, float], None]


def bench(
    subjects: Sequence[Subject],
    reference: Artifact | Subject,
    settings: Settings | None = None,
    progress: Progress | None = None,
) -> Report:
    """Hold every subject against the reference, which is a row of its own; a subject that fails is a row that says so.

    ``reference`` is an artifact of format ``torch`` (or a subject whose runner has a ``spec``). ``progress`` is called
    with what is being done and the share that is done already, 0 to 1.

    Raises:
        BackendFailedError: the reference cannot be opened, or fails at a shape that was asked for.
        ModelError: the reference returns NaN or Inf.
        UsageError: a size, the data or a precision does not fit, or the model is not described in full.
    """
    settings = settings or Settings()
    first = reference if isinstance(reference, Subject) else Subject("torch", reference)
    seats = [Seat(subject, settings) for subject in (first, *(subject for subject in subjects if subject != first))]
    for seat in seats:
        if seat.subject.artifact is not None:
            _ = seat.allowed  # an unknown precision is found before anything has been started
    try:
        with contextlib.ExitStack() as workers:
            return _run(seats, settings, _Meter(progress, len(seats)), workers)
    # A subject's errors end in its row, so what comes up to here is the reference's own.
    except (BackendFailedError, BackendUnavailableError) as error:
        raise type(error)(f"the reference ({first.backend}) failed: {error}") from error


def _run(seats: Sequence[Seat], settings: Settings, meter: _Meter, workers: contextlib.ExitStack) -> Report:
    reference = seats[0]
    for seat in seats:
        meter.tick(f"opening {seat.subject.backend}")
        seat.open(workers)
        _require(reference)
    model, asked = learn(
        reference,
        settings,
        lambda description: shapes.requested(
            description, settings.batches, settings.times, **settings.scenario.defaults
        ),
    )
    settings.scenario.require(model.carried)
    if settings.drift_asked and not model.carried:
        raise UsageError(
            "--drift streams a model with carried states, and this one has none: export it with --streaming, or leave "
            "--drift out."
        )
    checked = shapes.checked(model.description, asked)
    further = len(seats) * (bool(model.carried and settings.drift) + (settings.scenario.name == "server") * len(asked))
    meter.plan(len(checked) + (len(asked) * settings.rounds if settings.latency else 0) + len(seats) + further)
    stages.check_sources(model, seats)
    warnings = stages.check_accuracy(model, seats, checked, asked, settings.seed, meter.tick)
    _require(reference)
    stages.check_invariance(model, seats, asked[0], settings.seed)
    _require(reference)
    warnings += drift.check_drift(model, seats, settings.drift, settings.seed, meter.tick)
    _require(reference)
    if settings.latency:
        for shape in asked:
            stages.time_latency(model, seats, shape, settings, meter.tick)
            _require(reference)
            if settings.scenario.name == "server":
                server.measure_server(seats, shape, settings, meter.tick)
                _require(reference)
    # Now, as a GPU's clocks fall soon after its work ends.
    state = gpu_state() if settings.latency else None
    stages.take_stats(seats)
    stages.judge_metrics(model, seats, meter.tick)
    _require(reference)
    return make_report(model, seats, asked, settings, warnings, state)


def _require(reference: Seat) -> None:
    """Without a reference there is nothing to report."""
    if reference.error is not None:
        raise reference.error
    if reference.unavailable is not None:
        raise BackendUnavailableError(reference.unavailable)


class _Meter:
    """Counts steps into a share; the steps are about equally long, and no more is promised."""

    def __init__(self, progress: Progress | None, opening: int) -> None:
        self._progress = progress
        self._done, self._total = 0, opening * 2

    def plan(self, more: int) -> None:
        """Set how many steps there will be from here on."""
        self._total = self._done + more

    def tick(self, what: str) -> None:
        """Say what begins now."""
        if self._progress is not None:
            self._progress(what, min(1.0, self._done / max(1, self._total)))
        self._done += 1
