"""The report as a table for a terminal, with every reason and warning below it in words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from deploykit.bench.report import Latency, MetricResult, Report, Row
from deploykit.units import size

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_DASH = "–"
_WIDEST = 400  # of a table that is laid out without regard to the terminal
_SPARE = ("tail", "SNR dB", "size", "B×T")  # columns to leave out on a narrow terminal, the first one first
_Key = tuple[str, str | None, str | None]


def show(report: Report, console: Console) -> None:
    """Print the report: one line for each row, then what is to be said about rows, then the verdict."""
    from rich.text import Text

    console.print(_fitting(report, console), crop=False)
    for line in notes(report):
        console.print(Text(line), soft_wrap=not console.is_terminal)
    for line in gate_lines(report):
        console.print(Text(line), soft_wrap=not console.is_terminal)
    console.print(Text("passed" if report.passed else "failed", style="bold green" if report.passed else "bold red"))


def notes(report: Report) -> Iterator[str]:
    """Reasons and warnings, each once, with the row they belong to."""
    seen: dict[str, None] = {}
    names = labels(report)
    for row in report.rows:
        name = names[_key(row)]
        said = [str(row.artifact)] if "#" in name else []
        said += [row.reason] if row.reason and row.fault != "gate" else []  # gates have lines of their own
        said += row.warnings
        if row.latency_ms is not None and not row.latency_ms.stable:
            said.append(f"unstable at {sizes(row)}: its windows disagree, so read its latency with care.")
        seen.update((f"{name}: {text}", None) for text in said)
    yield from seen
    yield from report.warnings


def gate_lines(report: Report) -> Iterator[str]:
    """Each gate that was missed or is uncertain, with its reason, and how many passed."""
    for gate in report.gates:
        if not gate.passed:
            yield f"gate failed: {gate.name}, {gate.row}: {gate.reason}"
        elif gate.reason is not None:
            yield f"gate passed, uncertain: {gate.name}, {gate.row}: {gate.reason}"
    if report.gates:
        yield f"gates: {sum(gate.passed for gate in report.gates)} of {len(report.gates)} passed"


def _fitting(report: Report, console: Console) -> Table:
    """The whole table, or on a narrow terminal one without the columns that are missed least."""
    from rich.measure import Measurement

    table = _table(report)
    room = console.options.update(max_width=_WIDEST)
    # A file or a pipe has no width of its own: there nothing is left out.
    for count in range(1, len(_SPARE) + 1):
        if not console.is_terminal or Measurement.get(console, room, table).maximum <= console.width:
            break
        table = _table(report, _SPARE[:count])
    table.width = Measurement.get(console, room, table).maximum
    return table


def _table(report: Report, omit: Sequence[str] = ()) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, padding=0, title=f"{report.model}, against {report.reference}")
    names = labels(report)
    cells = [{"backend": names[_key(row)], **_cells(row)} for row in report.rows]
    headings = {"tail": _tail_heading(report), "metric": _metric_heading(report)}
    columns = [column for column in cells[0] if column not in omit]
    for column in columns:
        numbers = column not in ("backend", "verdict")
        table.add_column(headings.get(column, column), justify="right" if numbers else "left", no_wrap=True)
    for row in cells:
        table.add_row(*(row[column] for column in columns))
    return table


def _cells(row: Row) -> dict[str, str]:
    accuracy = row.accuracy
    return {
        "B×T": sizes(row),
        "p50 ms": _number(row.latency_ms.p50 if row.latency_ms else None),
        "tail": _tail(row.latency_ms),
        "speed-up": _speedup(row),
        "max err": _DASH if accuracy is None else f"{accuracy.max_abs:.1e}",
        "SNR dB": _DASH if accuracy is None or accuracy.snr_db is None else f"{accuracy.snr_db:.1f}",
        "metric": _metric(row.metric),
        "size": size(row.size_bytes),
        "verdict": _verdict(row),
    }


def labels(report: Report) -> dict[_Key, str]:
    """What each subject is called: backend and precision, and a number where two artifacts would have one name."""
    named: dict[str, list[_Key]] = {}
    for key in dict.fromkeys(map(_key, report.rows)):
        named.setdefault(f"{key[0].rpartition(':')[2]} {_short(key[1])}".strip(), []).append(key)
    return {
        key: name if len(keys) == 1 else f"{name} #{number}"
        for name, keys in named.items()
        for number, key in enumerate(keys, 1)
    }


def _key(row: Row) -> _Key:
    return row.backend, row.precision, row.artifact


def _short(precision: str | None) -> str:
    return {"float32": "fp32", "float16": "fp16"}.get(precision or "", precision or "")


def row_names(report: Report) -> tuple[str, ...]:
    """What each row is called, in order: its subject and its sizes, like ``ort int8 1×100``."""
    names = labels(report)
    return tuple(names[_key(row)] + (f" {sizes(row)}" if row.status != "unavailable" else "") for row in report.rows)


def sizes(row: Row) -> str:
    """Batch and time, like 1×100."""
    return "×".join(_DASH if size is None else str(size) for size in (row.batch, row.time))


def _tail_heading(report: Report) -> str:
    known = [row.latency_ms for row in report.rows if row.latency_ms is not None]
    return "p99 ms" if known and all(latency.p99 is not None for latency in known) else "tail ms"


def _tail(latency: Latency | None) -> str:
    """p99 where there are samples enough to know it, else p95 and said to be that, else nothing."""
    if latency is None or (latency.p99 is None and latency.p95 is None):
        return _DASH
    return _number(latency.p99) if latency.p99 is not None else f"p95 {_number(latency.p95)}"


def _speedup(row: Row) -> str:
    speedup = row.speedup
    if speedup is None:
        return _DASH
    if speedup.low is None or speedup.high is None or speedup.low == speedup.high:
        return _number(speedup.median)
    return f"{_number(speedup.median)} ({_number(speedup.low)}–{_number(speedup.high)})"


def _metric_heading(report: Report) -> str:
    names = [row.metric.name for row in report.rows if row.metric is not None]
    return names[0] if names and len(names[0]) <= 14 else "metric"


def _metric(metric: MetricResult | None) -> str:
    """The value and its change, in percent of the reference's; where that is 0, the change itself."""
    if metric is None:
        return _DASH
    change = metric.value - metric.reference
    shown = f"{change / abs(metric.reference):+.2%}" if metric.reference else f"{change:+.2g}"
    return f"{metric.value:.4g} {shown}"


def _verdict(row: Row) -> str:
    """``~`` marks an unstable latency."""
    if row.status != "ok":
        return {"failed": "failed", "unavailable": "missing"}[row.status]
    shaky = row.latency_ms is not None and not row.latency_ms.stable
    return ("pass" if row.passed else "gate" if row.fault == "gate" else "outside") + (" ~" if shaky else "")


def _number(value: float | None) -> str:
    return _DASH if value is None else f"{value:.3g}"
