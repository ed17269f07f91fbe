"""The report as a table for a terminal, with every reason and warning below it in words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from deploykit.bench import said as sentences
from deploykit.bench.report import Latency, MetricResult, Report, Row
from deploykit.units import size

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

DASH = "–"
_WIDEST = 400  # of a table that is laid out without regard to the terminal
_SPARE = ("tail", "SNR dB", "size", "GPU ms", "B×T")  # columns to leave out on a narrow terminal, the first one first
Key = tuple[str, str | None, str | None]


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
    for name, text in remarks(report):
        yield f"{name}: {text}"
    yield from report.warnings


def remarks(report: Report) -> Iterator[tuple[str, str]]:
    """What is to be said about a subject: its name and one sentence, each once."""
    seen: dict[tuple[str, str], None] = {}
    names = labels(report)
    shaky: dict[str, list[str]] = {}
    for row in report.rows:
        name = names[key(row)]
        said = [str(row.artifact)] if "#" in name else []
        said += [row.reason] if row.reason and row.fault != "gate" else []  # gates have lines of their own
        said += row.warnings
        said += [sentences.drift(row.drift)] if row.drift is not None and row.drift.reason is None else []
        said += [] if row.server is None else [sentences.server(row.server, sizes(row), row.latency_ms)]
        if row.latency_ms is not None and not row.latency_ms.stable:
            shaky.setdefault(name, []).append(sizes(row))
        seen.update(((name, text), None) for text in said)
    if scenario(report) == "offline":
        for name in dict.fromkeys(names.values()):
            own = [row for row in report.rows if names[key(row)] == name]
            seen.update(((name, text), None) for text in sentences.best(own))
    for name in dict.fromkeys(names.values()):
        yield from (remark for remark in seen if remark[0] == name)
        if name in shaky:
            at = ", ".join(shaky[name])
            yield name, f"unstable at {at}: its windows disagree, so read its latency with care."


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

    timed = scenario(report)
    title = f"{report.model}, against {report.reference}{'' if timed == sentences.SINGLE else f', {timed}'}"
    table = Table(box=box.SIMPLE_HEAD, padding=0, title=title)
    names = labels(report)
    gpu = any(row.device_ms is not None for row in report.rows)
    cells = [{"backend": names[key(row)], **_cells(row, timed, gpu)} for row in report.rows]
    headings = {"tail": _tail_heading(report), "metric": _metric_heading(report)}
    columns = [column for column in cells[0] if column not in omit]
    for column in columns:
        numbers = column not in ("backend", "verdict")
        table.add_column(headings.get(column, column), justify="right" if numbers else "left", no_wrap=True)
    for row in cells:
        table.add_row(*(row[column] for column in columns))
    return table


def _cells(row: Row, timed: str, gpu: bool) -> dict[str, str]:
    accuracy = row.accuracy
    further = {}
    if gpu:
        further["GPU ms"] = number(None if row.device_ms is None else row.device_ms.p50)
    if timed == "offline":
        further["rows/s"] = _rate(sentences.throughput(row) or None)
    if timed == "server":
        further["req/s"] = _rate(None if row.server is None else sentences.served(row.server))
    return {
        "B×T": sizes(row),
        "p50 ms": number(row.latency_ms.p50 if row.latency_ms else None),
        "tail": _tail(row.latency_ms),
        **further,
        "speed-up": _speedup(row),
        "max err": DASH if accuracy is None else f"{accuracy.max_abs:.1e}",
        "SNR dB": DASH if accuracy is None or accuracy.snr_db is None else f"{accuracy.snr_db:.1f}",
        "metric": _metric(row.metric),
        "size": size(row.size_bytes),
        "verdict": _verdict(row),
    }


def scenario(report: Report) -> str:
    """What was timed."""
    return str(report.settings.get("scenario", sentences.SINGLE))


def _rate(value: float | None) -> str:
    return DASH if value is None else f"{value:,.0f}" if value >= 100 else number(value)


def labels(report: Report) -> dict[Key, str]:
    """What each subject is called: backend and precision, and a number where two artifacts would have one name."""
    named: dict[str, list[Key]] = {}
    for one in dict.fromkeys(map(key, report.rows)):
        named.setdefault(f"{one[0].rpartition(':')[2]} {_short(one[1])}".strip(), []).append(one)
    return {
        one: name if len(keys) == 1 else f"{name} #{place}"
        for name, keys in named.items()
        for place, one in enumerate(keys, 1)
    }


def key(row: Row) -> Key:
    """What tells one subject from another."""
    return row.backend, row.precision, row.artifact


def _short(precision: str | None) -> str:
    return {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}.get(precision or "", precision or "")


def row_names(report: Report) -> tuple[str, ...]:
    """What each row is called, in order: its subject and its sizes, like ``ort int8 1×100``."""
    names = labels(report)
    return tuple(names[key(row)] + (f" {sizes(row)}" if row.status != "unavailable" else "") for row in report.rows)


def sizes(row: Row) -> str:
    """Batch and time steps, like 16×100."""
    return "×".join(DASH if length is None else str(length) for length in (row.batch, row.time))


def _tail_heading(report: Report) -> str:
    known = [row.latency_ms for row in report.rows if row.latency_ms is not None]
    return "p99 ms" if known and all(latency.p99 is not None for latency in known) else "tail ms"


def _tail(latency: Latency | None) -> str:
    """p99 where there are samples enough to know it, else p95 and said to be that, else nothing."""
    if latency is None or (latency.p99 is None and latency.p95 is None):
        return DASH
    return number(latency.p99) if latency.p99 is not None else f"p95 {number(latency.p95)}"


def _speedup(row: Row) -> str:
    speedup = row.speedup
    if speedup is None:
        return DASH
    if speedup.low is None or speedup.high is None or speedup.low == speedup.high:
        return number(speedup.median)
    return f"{number(speedup.median)} ({number(speedup.low)}–{number(speedup.high)})"


def _metric_heading(report: Report) -> str:
    names = [row.metric.name for row in report.rows if row.metric is not None]
    return names[0] if names and len(names[0]) <= 14 else "metric"


def _metric(metric: MetricResult | None) -> str:
    """The value and its change, in percent of the reference's; where that is 0, the change itself."""
    if metric is None:
        return DASH
    if metric.value is None or metric.reference is None:
        return DASH if metric.value is None else f"{metric.value:.4g}"
    change = metric.value - metric.reference
    shown = f"{change / abs(metric.reference):+.2%}" if metric.reference else f"{change:+.2g}"
    return f"{metric.value:.4g} {shown}"


def _verdict(row: Row) -> str:
    """``~`` marks an unstable latency."""
    if row.status != "ok":
        return {"failed": "failed", "unavailable": "missing"}[row.status]
    shaky = row.latency_ms is not None and not row.latency_ms.stable
    return ("pass" if row.passed else "gate" if row.fault == "gate" else "outside") + (" ~" if shaky else "")


def number(value: float | None) -> str:
    """Three digits; a dash for None."""
    return DASH if value is None else f"{value:.3g}"
