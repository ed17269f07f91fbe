"""From what the seats found out to the rows of a report, with its verdicts and plain statements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from deploykit.artifact import Artifact
from deploykit.bench.environment import environment
from deploykit.bench.model import Model
from deploykit.bench.report import ArtifactCoverage, Report, Row, Speedup, verdict
from deploykit.bench.seat import Seat
from deploykit.bench.settings import Settings
from deploykit.bench.shapes import Shape
from deploykit.bench.stats import device_time, latency, speedup
from deploykit.errors import WrongAnswerError


def make_report(
    model: Model,
    seats: Sequence[Seat],
    asked: Sequence[Shape],
    settings: Settings,
    warnings: Sequence[str],
    gpu_state: Sequence[Mapping[str, Any]] | None = None,
) -> Report:
    """One row for each live or failed seat and shape, one for each unavailable seat.

    ``gpu_state`` is what the GPUs were doing when the timing had just ended.
    """
    rows = tuple(row for seat in seats for row in _rows(model, seat, seats, asked))
    denormals = [seat.stats.denormals for seat in seats if seat.stats is not None]
    return Report(
        model=model.reference.artifact.name,
        environment=environment(settings.threads, denormals, gpu_state),
        reference=model.reference.subject.backend,
        rows=rows,
        passed=verdict(rows),
        warnings=tuple(warnings),
        settings=_settings(settings),
    )


def _settings(settings: Settings) -> dict[str, Any]:
    return {
        "seconds": settings.seconds,
        "rounds": settings.rounds,
        "seed": settings.seed,
        "latency": settings.latency,
        "data": None if settings.data is None else settings.data.name,
        "command": settings.command,
        "drift": settings.drift,
        **settings.scenario.told(),
    }


def _rows(model: Model, seat: Seat, seats: Sequence[Seat], asked: Sequence[Shape]) -> list[Row]:
    artifact = seat.subject.artifact
    if seat.unavailable is not None:
        return [
            Row(
                backend=seat.subject.backend,
                precision=None if artifact is None else artifact.precision,
                artifact=None if artifact is None else shown(artifact),
                batch=None,
                time=None,
                threads=seat.settings.threads,
                status="unavailable",
                reason=seat.unavailable,
            )
        ]
    return [_row(model, seat, seats, shape) for shape in asked]


def _row(model: Model, seat: Seat, seats: Sequence[Seat], shape: Shape) -> Row:
    artifact, failed = seat.artifact, seat.failed
    stats = seat.stats
    # A failed subject keeps the accuracy it had shown until then, but no latency: its windows are not whole.
    timed = bool(seat.windows.get(shape)) and failed is None
    return Row(
        backend=seat.subject.backend,
        precision=artifact.precision,
        artifact=shown(artifact),
        batch=shape.batch,
        time=shape.time,
        threads=seat.settings.threads,
        status="ok" if failed is None else "failed",
        reason=failed or next(iter(seat.objections), None),
        latency_ms=latency(seat.windows[shape], shape.batch) if timed else None,
        speedup=_speedup(model.reference, seat, shape) if timed else None,
        accuracy=seat.accuracy.get(shape),
        metric=seat.metric,
        size_bytes=_size(model, seat),
        peak_memory_bytes=None if stats is None else stats.peak_memory_bytes,
        passed=failed is None and not seat.objections,
        format=artifact.format,
        sha256=artifact.sha256 or None,
        tolerance=seat.allowed,
        checks=tuple(seat.checks),
        invariance=seat.invariance,
        load_ms=None if stats is None else stats.load_ms,
        first_ms=None if stats is None else stats.first_ms,
        fault=_fault(seat),
        coverage=_coverage(artifact),
        warnings=(*seat.warnings, *_unsaid(seat), *_slower_or_larger(model, seat, seats, shape)),
        drift=seat.drift,
        server=seat.server.get(shape),
        device_ms=device_time(seat.device[shape]) if timed else None,
    )


def _fault(seat: Seat) -> Literal["error", "answer"] | None:
    if seat.failed is not None:
        return "answer" if isinstance(seat.error, WrongAnswerError) else "error"
    return "answer" if seat.objections else None


def _unsaid(seat: Seat) -> list[str]:
    """That it drifts, where another reason is the row's."""
    reason = None if seat.drift is None else seat.drift.reason
    return [reason] if reason is not None and reason != (seat.failed or next(iter(seat.objections), None)) else []


def _coverage(artifact: Artifact) -> ArtifactCoverage | None:
    found = artifact.coverage
    if found is None:
        return None
    weights, macs = (sum(getattr(row, what) for row in found.rows) for what in ("weight_bytes", "macs"))
    return ArtifactCoverage(found.rows, weights, macs, found.weight_share, found.mac_share)


def shown(artifact: Artifact) -> str:
    """How a report names an artifact: as it was given, or relative to the current folder."""
    text = artifact.model.ref if artifact.format == "torch" and artifact.model is not None else str(artifact.path)
    file, colon, factory = text.rpartition(":") if artifact.format == "torch" else (text, "", "")
    path = Path(file)
    if path.is_absolute():
        path = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else Path(path.name)
    return f"{path.as_posix()}{colon}{factory}" if file else text


def _speedup(reference: Seat, seat: Seat, shape: Shape) -> Speedup:
    return speedup(reference.windows[shape], seat.windows[shape], vs=reference.subject.backend, seed=seat.settings.seed)


def _size(model: Model, seat: Seat) -> int | None:
    if seat is model.reference:
        return model.description.weight_bytes
    artifact = seat.artifact
    if seat.stats is not None and seat.stats.size_bytes is not None:
        return seat.stats.size_bytes
    if artifact.size_bytes:
        return artifact.size_bytes
    return artifact.path.stat().st_size if artifact.path.is_file() else None


def _parent(model: Model, seat: Seat, seats: Sequence[Seat]) -> Seat | None:
    """The seat whose artifact this one was made from; the reference where it is not in this run."""
    if seat is model.reference:
        return None
    parent = seat.artifact.parent
    known = (other for other in seats if other.live and parent and other.artifact.sha256 == parent)
    return next(known, model.reference)


def _slower_or_larger(model: Model, seat: Seat, seats: Sequence[Seat], shape: Shape) -> list[str]:
    parent = _parent(model, seat, seats)
    if parent is None or not seat.live:
        return []
    kind = "reference" if parent is model.reference else "parent"
    name = f"its {kind} ({parent.subject.backend} {parent.artifact.precision})"
    said = []
    if seat.windows.get(shape) and parent.windows.get(shape):
        ratio = _speedup(parent, seat, shape)
        if ratio.high is not None and ratio.high < 1:
            said.append(f"slower than {name}: {ratio.median:.2f} times its speed.")
    size, other = _size(model, seat), _size(model, parent)
    # A file holds a graph beside its weights, so one of the reference's own precision is always a little larger.
    if size is not None and other is not None and size > other and seat.artifact.precision != parent.artifact.precision:
        said.append(f"larger than {name}: {size} bytes against {other}.")
    return said
