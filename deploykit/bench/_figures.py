"""From a report to its figures: which rows each chart draws, and the caption that says how to read it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from deploykit.bench import _charts as charts
from deploykit.bench.report import ArtifactCoverage, Drift, Report, Row, Server
from deploykit.bench.table import Key, key, labels

#: More panels than this of one kind say no more than these do; the table has all sizes.
MOST_PANELS = 6
_WIDE = 840.0


@dataclass(frozen=True)
class Figure:
    """A heading, drawings and a caption. With ``variants`` the drawings are one chart for wide and for narrow pages."""

    name: str
    heading: str
    caption: str
    panels: tuple[str, ...]
    variants: bool = False


def figures(report: Report) -> list[Figure]:
    """The figures that the report has data for, in the page's order."""
    drawn = _Drawn(report)
    return [
        found
        for found in (
            _latency(drawn),
            _searches(drawn),
            _tradeoff(drawn),
            _steps(drawn),
            _drift(drawn),
            _scaling(drawn),
            _coverage(report),
        )
        if found is not None
    ]


def finite(value: float | None) -> float | None:
    """The number; None where there is none, or it is NaN or infinite."""
    return value if value is not None and math.isfinite(value) else None


def answers(row: Row) -> bool:
    """Whether its answers lie within their tolerance, whatever a gate said of its speed."""
    return row.passed is True or row.fault == "gate"


def shape(row: Row) -> str:
    """The sizes in words: batch 16, 100 steps."""
    steps = None if row.time is None else f"{row.time:,} step{'' if row.time == 1 else 's'}"
    return ", ".join(part for part in (None if row.batch is None else f"batch {row.batch}", steps) if part) or (
        "fixed sizes"
    )


def throughput(row: Row) -> float | None:
    """Batch rows per second; worked out from the mean for a report that does not say."""
    latency = row.latency_ms
    if latency is None:
        return None
    known, mean = finite(latency.throughput), finite(latency.mean)
    return known if known is not None or not mean else 1e3 * (row.batch or 1) / mean


def covered(report: Report) -> list[tuple[str, Row, ArtifactCoverage]]:
    """Every quantized artifact once, with the name and the row that it first stands in."""
    found: dict[tuple[str | None, str | None], tuple[str, Row, ArtifactCoverage]] = {}
    names = labels(report)
    for row in report.rows:
        if row.coverage is not None:
            found.setdefault((row.artifact, row.sha256), (names[key(row)], row, row.coverage))
    return list(found.values())


class _Drawn:
    """The rows that ran, by their sizes, and what each subject is called and looks like."""

    def __init__(self, report: Report) -> None:
        self.names = labels(report)
        self.styles: dict[Key, int] = {subject: index for index, subject in enumerate(self.names)}
        self.rows = [row for row in report.rows if row.status != "unavailable"]
        self.shapes = tuple(dict.fromkeys((row.batch, row.time) for row in self.rows))

    def at(self, sizes: tuple[int | None, int | None]) -> list[Row]:
        return [row for row in self.rows if (row.batch, row.time) == sizes]

    def look(self, row: Row) -> tuple[str, int]:
        return self.names[key(row)], self.styles[key(row)]


def _median(row: Row) -> float | None:
    latency = row.latency_ms
    found = None if latency is None else finite(latency.mean if latency.p50 is None else latency.p50)
    return found if found is not None and found > 0 else None


def device_median(row: Row) -> float | None:
    """The median of the GPU's own time; None where it is not known or nothing."""
    found = None if row.device_ms is None else finite(row.device_ms.p50)
    return found if found is not None and found > 0 else None


def _latency(drawn: _Drawn) -> Figure | None:
    rows = [row for sizes in drawn.shapes for row in drawn.at(sizes)]
    boxes = [
        charts.Box(*drawn.look(row), shape(row), quantiles, "" if row.latency_ms.stable else " ~", device_median(row))
        for row in rows
        if row.latency_ms is not None and (quantiles := _quantiles(row))
    ]
    if not boxes:
        return None
    caption = (
        "Milliseconds for one inference; left is faster. The tick is the median, the dark bar the middle half of all "
        "inferences, the light bar 5 to 95 %, the thin line 1 to 99 %, the dots the fastest and the slowest one. "
        "Percentiles that too few inferences bear out are left out."
    )
    if any(box.device is not None for box in boxes):
        caption += " The ring is the median of what the GPU itself computed, by its events, without transfers."
    if any(box.note for box in boxes):
        caption += " ~ marks rows whose windows disagree: read their milliseconds with care."
    title = "Latency of each row"
    wide = charts.distributions(boxes, "latency-wide", title, _WIDE)
    narrow = charts.distributions(boxes, "latency-narrow", title, charts.PANEL)
    return Figure("latency", "Latency", caption, (wide, narrow), variants=True)


def _quantiles(row: Row) -> dict[int, float]:
    latency, median = row.latency_ms, _median(row)
    if latency is None or median is None:
        return {}
    known: Iterable[tuple[str, float | None]] = (latency.quantiles or {}).items() or (
        ("0", latency.min),
        ("95", latency.p95),
        ("99", latency.p99),
    )
    found = {int(percent): value for percent, text in known if (value := finite(text)) is not None and value > 0}
    return found | {50: median}


def _searches(drawn: _Drawn) -> Figure | None:
    made: list[tuple[str, str]] = []
    for sizes in drawn.shapes:
        found = [
            (drawn.look(row), row.server) for row in drawn.at(sizes) if row.server is not None and row.server.tries
        ]
        bound, percentile = next(((one.bound_ms, one.percentile) for _, one in found), (None, None))
        if bound is None or percentile is None:
            continue
        curves = [charts.Search(*look, _attempts(server, bound)) for look, server in found]
        where = shape(drawn.at(sizes)[0])
        title = f"{percentile} over the rate of requests at {where}"
        made.append((where, charts.searches(curves, f"rates-{len(made)}", title, percentile, bound)))
    if not made:
        return None
    caption = (
        "The rates that were tried, and the latency that requests had at each, from arrival to answer. Filled: it held "
        "the bound. Hollow: it did not, or there was more work than time. A rate that stands twice was tried again "
        "after a slow moment of the machine."
    )
    return Figure("rates", "Rates of requests", *_kept(caption, made))


def _attempts(server: Server, bound: float) -> tuple[charts.Attempt, ...]:
    return tuple(
        charts.Attempt(one.rate, found, (found is not None and found <= bound) if one.held is None else one.held)
        for one in sorted(server.tries, key=lambda one: one.rate)
        for found in (finite(one.found_ms),)
    )


def _tradeoff(drawn: _Drawn) -> Figure | None:
    panels: list[tuple[str, str, list[charts.Point]]] = []
    least = None
    for sizes in drawn.shapes:
        points = []
        for row in drawn.at(sizes):
            latency, point = _median(row), _point(row)
            if latency is not None and point is not None:
                points.append(charts.Point(*drawn.look(row), latency, point[0], answers(row)))
                least = point[1] if point[1] is not None else least
        if len(points) > 1:
            name = f"tradeoff-{len(panels)}"
            panels.append((shape(drawn.at(sizes)[0]), name, points))
    if not panels:
        return None
    caption = (
        "Left is faster, up is closer to the reference (every 20 dB are a tenth of the error). Filled and joined by "
        "the line: the Pareto front, which no other row beats in both. Hollow: another row that passed is at least as "
        "good in both, or the row is outside its tolerance."
    )
    made = [
        (where, charts.tradeoff(points, name, f"Latency against accuracy at {where}", least))
        for where, name, points in panels
    ]
    return Figure("tradeoff", "Latency against accuracy", *_kept(caption, made))


def _point(row: Row) -> tuple[float | None, float | None] | None:
    """SNR, None for no error at all, and the SNR that passes; None where no SNR is known although there is an error."""
    accuracy = row.accuracy
    if accuracy is None:
        return None
    snr = finite(accuracy.snr_db)
    if snr is None and accuracy.max_abs != 0:
        return None
    return snr, None if row.tolerance is None else row.tolerance.min_snr_db


def _steps(drawn: _Drawn) -> Figure | None:
    made: list[tuple[str, str]] = []
    grows: list[str] = []
    for sizes in drawn.shapes:
        found = [(row, curve) for row in drawn.at(sizes) if (curve := _error_curve(drawn, row)) is not None]
        if found:
            where = shape(found[0][0])
            title = f"Error over time steps at {where}"
            name = f"steps-{len(made)}"
            drawing = charts.curves([curve for _, curve in found], name, title, "time step", "mean absolute error")
            made.append((where, drawing))
        grows += [curve.name for row, curve in found if row.accuracy is not None and row.accuracy.grows]
    if not made:
        return None
    caption = "Mean absolute error of the first output at each time step. A flat line does not accumulate error."
    if grows:
        caption += f" It grows for {', '.join(dict.fromkeys(grows))}."
    return Figure("steps", "Error over time", *_kept(caption, made))


def _error_curve(drawn: _Drawn, row: Row) -> charts.Curve | None:
    accuracy = row.accuracy
    if accuracy is None or accuracy.per_step is None or len(accuracy.per_step) < 2:
        return None
    steps = next((output.steps for output in accuracy.outputs.values() if output.per_step and output.steps), None)
    return _pieces(drawn.look(row), accuracy.per_step, steps or len(accuracy.per_step))


def _drift(drawn: _Drawn) -> Figure | None:
    """The drift is the subject's and the same in all its rows: one chart for all sizes."""
    found = {drawn.look(row): row.drift for row in drawn.rows if row.drift is not None}
    curves = [curve for look, drift in found.items() if (curve := _drift_curve(look, drift)) is not None]
    if not curves:
        return None
    title = "Error over streamed steps"
    caption = (
        "Mean absolute error of the first output in a stream of single steps, where the subject and the reference each "
        "carry the states that they made themselves. A flat line does not drift."
    )
    grows = [name for (name, _), drift in found.items() if drift.grows]
    if grows:
        caption += f" It grows for {', '.join(grows)}."
    drawing = charts.curves(curves, "drift-0", title, "streamed step", "mean absolute error")
    return Figure("drift", "Drift", *_kept(caption, [(title, drawing)]))


def _drift_curve(look: tuple[str, int], drift: Drift) -> charts.Curve | None:
    return _pieces(look, drift.per_step, drift.steps) if len(drift.per_step) > 1 else None


def _pieces(look: tuple[str, int], values: Sequence[float], steps: int) -> charts.Curve | None:
    """The error in equal pieces of so many steps; None without any error: a line along the axis says nothing."""
    if not any(finite(value) for value in values):
        return None
    each = steps / len(values)
    points = ((each * (index + 0.5), value) for index, value in enumerate(values) if finite(value) is not None)
    return charts.Curve(*look, tuple(points))


def _scaling(drawn: _Drawn) -> Figure | None:
    timed = [row for row in drawn.rows if _median(row) is not None]
    over_batch = _series(drawn, timed, lambda row: row.time, lambda row: row.batch, throughput)
    over_time = _series(drawn, timed, lambda row: row.batch, lambda row: row.time, _median)
    made: list[tuple[str, str]] = []
    for fixed, curves in over_batch:
        where = "batch" if fixed is None else f"batch, at {fixed:,} step{'' if fixed == 1 else 's'}"
        title = f"Throughput over {where}"
        made.append((title, charts.curves(curves, f"batch-{len(made)}", title, "batch", "batch rows per second", True)))
    for fixed, curves in over_time:
        title = "Latency over time steps" + ("" if fixed is None else f", at batch {fixed}")
        made.append((title, charts.curves(curves, f"time-{len(made)}", title, "time steps", "median ms", True)))
    if not made:
        return None
    caption = "How throughput (higher is better) changes with the batch, and latency (lower is better) with the steps."
    return Figure("scaling", "Scaling", *_kept(caption, made))


_Curves = list[tuple[int | None, list[charts.Curve]]]


def _series(
    drawn: _Drawn,
    rows: Sequence[Row],
    fixed: Callable[[Row], int | None],
    along: Callable[[Row], int | None],
    value: Callable[[Row], float | None],
) -> _Curves:
    """For each fixed size at which the other one was varied, one curve of each subject."""
    found: _Curves = []
    for size in dict.fromkeys(map(fixed, rows)):
        points: dict[tuple[str, int], dict[int, float]] = {}
        for row in rows:
            place, height = along(row), value(row)
            if fixed(row) == size and place is not None and height:
                points.setdefault(drawn.look(row), {})[place] = height
        curves = [charts.Curve(*look, tuple(sorted(at.items()))) for look, at in points.items() if len(at) > 1]
        found += [(size, curves)] if curves else []
    return found


def _coverage(report: Report) -> Figure | None:
    made = []
    for number, (name, row, coverage) in enumerate(covered(report)):
        bars = [_bar("weights", coverage, "weight_bytes"), _bar("MACs", coverage, "macs")]
        title = f"{name}: {row.artifact}"
        made.append((title, charts.stacked(bars, f"coverage-{number}", f"int8 coverage of {title}")))
    if not made:
        return None
    caption = (
        "Shares of the float weight bytes and of the multiply-accumulates (MACs). int8: int8 weights and int8 "
        "arithmetic. int8 storage: int8 weights, float arithmetic. float32: left as it was."
    )
    return Figure("coverage", "int8 coverage", *_kept(caption, made))


def _bar(name: str, coverage: ArtifactCoverage, what: str) -> charts.Bar:
    total = sum(getattr(row, what) for row in coverage.rows) or 1
    shares = {"int8": 0.0, "int8-storage": 0.0, "float32": 0.0}
    for row in coverage.rows:
        shares[row.became] = shares.get(row.became, 0.0) + getattr(row, what) / total
    return charts.Bar(name, shares["int8"], shares["int8-storage"], shares["float32"])


def _kept(caption: str, panels: Sequence[tuple[str, str]]) -> tuple[str, tuple[str, ...]]:
    """The caption and as many panels as there is room for, and a word on those left out."""
    if len(panels) > MOST_PANELS:
        caption += f" Drawn are the first {MOST_PANELS} of {len(panels)}."
    return caption, tuple(_titled(*panel) for panel in panels[:MOST_PANELS])


def _titled(title: str, drawing: str) -> str:
    from html import escape

    # The drawing says its own title to a screen reader, so this one is for the eye alone.
    return f'<p class="panel-title" aria-hidden="true">{escape(title)}</p>{drawing}'
