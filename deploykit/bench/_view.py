"""What the page says of a report, as words: the verdict, the headline numbers, the rows of its tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deploykit.bench._figures import answers, device_median, finite, shape, throughput
from deploykit.bench.report import GateResult, MetricResult, Report, Row, Server, Speedup
from deploykit.bench.said import ran_away
from deploykit.bench.table import DASH, key, labels, number, remarks, scenario
from deploykit.units import size

_VERDICTS = {"failed": "failed", "unavailable": "missing"}


@dataclass(frozen=True)
class Cell:
    """A cell of a table: what it says, and under it in small what that is to be read with."""

    label: str
    main: str
    under: str = ""
    kind: str = "number"


@dataclass(frozen=True)
class Line:
    """A row of a table: its heading, the rest of its cells, and whether it stands out."""

    name: str
    cells: tuple[Cell, ...]
    kind: str = ""


@dataclass(frozen=True)
class Group:
    """Rows of the same sizes."""

    title: str
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Fact:
    """A headline number: what it is, the number, and what it is to be read with."""

    name: str
    value: str
    under: str


def verdict_words(report: Report) -> str:
    """The verdict in a sentence or two."""
    names = labels(report)
    ran = {names[key(row)] for row in report.rows if row.status == "ok" and answers(row)}
    bad = list(dict.fromkeys(names[key(row)] for row in report.rows if row.passed is False and not answers(row)))
    missed = dict.fromkeys(gate.name for gate in report.gates if not gate.passed)
    gone = list(dict.fromkeys(names[key(row)] for row in report.rows if row.status == "unavailable"))
    many = "Every answer" if len(ran) != 1 else f"Every answer of {next(iter(ran))}"
    if bad:
        failed = [names[key(row)] for row in report.rows if row.fault == "error" or row.status == "failed"]
        outside = [name for name in bad if name not in failed]
        said = f"Outside its tolerance of {report.reference}: {', '.join(outside)}. " if outside else ""
        said += f"Did not run to the end: {', '.join(name for name in bad if name in failed)}. " if failed else ""
    else:
        said = f"{many} lies within its tolerance of {report.reference}. " if ran else "Nothing ran. "
    said += f"Gates missed: {', '.join(missed)}. " if missed else ""
    return said + (f"Not available here: {', '.join(gone)}." if gone else "")


def facts(report: Report) -> tuple[str, list[Fact]]:
    """The fastest that passed: what it is, and its numbers; nothing where nothing beside the reference was timed."""
    rows = _fastest(report)
    if not rows:
        return "", []
    first, reference = rows[0], _reference(report, rows[0])
    ratios = [row.speedup.median for row in rows if row.speedup is not None]
    found = []
    if first.speedup is not None:
        over = f"; {min(ratios):.2f} to {max(ratios):.2f} over {len(ratios)} sizes" if len(ratios) > 1 else ""
        found.append(
            Fact(
                f"Speed against {first.speedup.vs}",
                f"{first.speedup.median:.2f}×",
                f"{_speed_words(first.speedup)}{over}",
            )
        )
    if first.latency_ms is not None:
        found.append(Fact("Latency", f"{_plain(first.latency_ms.p50)} ms", "median"))
    if first.size_bytes is not None:
        found.append(Fact("Size", size(first.size_bytes), _size_words(first, reference)))
    if first.accuracy is not None:
        snr = finite(first.accuracy.snr_db)
        # The word joiner keeps a line from breaking behind the minus of an exponent.
        error = f"largest error {_error(first)}".replace("e-", "e-\u2060")
        found.append(Fact("Accuracy", "exact" if snr is None else f"{snr:.1f} dB", f"SNR; {error}" if snr else error))
    if first.metric is not None:
        value, under = _metric(first.metric, "reference")
        found.append(Fact(_words(first.metric.name), value, under))
    return f"Fastest that passed: {labels(report)[key(first)]}, here at {shape(first)}", found


def groups(report: Report) -> list[Group]:
    """The rows of the main table, those of the same sizes together, and last those that have none."""
    names = labels(report)
    timed = scenario(report) if any(row.latency_ms is not None for row in report.rows) else ""
    metric = _metric_name(report)
    gpu = bool(timed) and any(row.device_ms is not None for row in report.rows)
    ran = [row for row in report.rows if row.status != "unavailable"]
    gone = [row for row in report.rows if row.status == "unavailable"]
    found = []
    for sizes in dict.fromkeys((row.batch, row.time) for row in ran):
        rows = [row for row in ran if (row.batch, row.time) == sizes]
        lines = [Line(names[key(row)], _cells(row, timed, metric, gpu), _kind(row)) for row in rows]
        found.append(Group(shape(rows[0]).capitalize(), tuple(lines)))
    if gone:
        lines = [Line(names[key(row)], _cells(row, timed, metric, gpu), _kind(row)) for row in gone]
        found.append(Group("Not run", tuple(lines)))
    return found


def notes(report: Report) -> list[tuple[str, list[str]]]:
    """What is to be said of each subject, and of the run as a whole."""
    found: dict[str, list[str]] = {}
    for name, text in remarks(report):
        found.setdefault(name, []).append(text)
    if report.warnings:
        found["The run"] = list(report.warnings)
    return list(found.items())


def gates(report: Report) -> list[Line]:
    """What each gate said of each row."""
    return [
        Line(
            gate.name,
            (
                Cell("Row", gate.row, kind=""),
                Cell("Found", DASH if finite(gate.found) is None else _in_its_unit(gate.name, gate.found or 0.0)),
                Cell("Limit", _in_its_unit(gate.name, gate.limit)),
                Cell("Result", _gate_words(gate), kind="outcome"),
                Cell("Why", gate.reason or "", kind=""),
            ),
            "" if gate.passed else "bad",
        )
        for gate in report.gates
    ]


def _gate_words(gate: GateResult) -> str:
    return "missed" if not gate.passed else "passed" if gate.reason is None else "passed, uncertain"


def _in_its_unit(gate: str, value: float) -> str:
    name = gate.split(maxsplit=1)[0]
    if name == "max-metric-drop":
        return f"{value:.2%}"
    return f"{_plain(value)}{ {'max-latency': ' ms', 'min-rate': '/s'}.get(name, '×') }"


def processes(report: Report) -> list[Line]:
    """One line for each subject that was opened: its file, its memory, its start, what it had to hold."""
    names = labels(report)
    first = {names[key(row)]: row for row in reversed(report.rows) if row.status != "unavailable"}
    return [Line(name, _process(first[name])) for name in dict.fromkeys(names.values()) if name in first]


def checks(report: Report) -> list[tuple[str, Row]]:
    """The subjects with comparisons to show, each once."""
    names = labels(report)
    found = {names[key(row)]: row for row in reversed(report.rows) if row.checks or row.invariance}
    return [(name, found[name]) for name in dict.fromkeys(names.values()) if name in found]


def facts_of(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Names and values of the environment or the settings, in words."""
    return [(_words(name), _value(name, value)) for name, value in values.items()]


def _fastest(report: Report) -> list[Row]:
    """The rows of the subject with the largest mean speed-up, among those that passed and are not the reference."""
    found: dict[Any, list[Row]] = {}
    reference = key(report.rows[0]) if report.rows else None
    for row in report.rows:
        if key(row) != reference:
            found.setdefault(key(row), []).append(row)
    whole = [rows for rows in found.values() if all(row.passed and _log_speed(row) > -math.inf for row in rows)]
    return max(whole, key=lambda rows: sum(map(_log_speed, rows)) / len(rows), default=[])


def _log_speed(row: Row) -> float:
    found = None if row.speedup is None else finite(row.speedup.median)
    return math.log(found) if found is not None and found > 0 else -math.inf


def _reference(report: Report, row: Row) -> Row | None:
    fitting = (
        other
        for other in report.rows
        if other.backend == report.reference and (other.batch, other.time) == (row.batch, row.time)
    )
    return next(fitting, None)


def _speed_words(found: Speedup) -> str:
    low, high = finite(found.low), finite(found.high)
    if low is None or high is None:
        return "one round, so no interval"
    interval = f"95\u00a0% interval {low:.2f} to {high:.2f}"
    if low <= 1 <= high:
        return f"{interval}: no difference that this run could show"
    return interval


def _size_words(row: Row, reference: Row | None) -> str:
    if reference is None or not reference.size_bytes or not row.size_bytes:
        return ""
    ratio = reference.size_bytes / row.size_bytes
    if f"{ratio:.2f}" == "1.00":
        return f"as large as {reference.backend}'s"
    return f"{ratio:.2f} times smaller" if ratio >= 1 else f"{1 / ratio:.2f} times larger"


def _cells(row: Row, timed: str, metric: str, gpu: bool) -> tuple[Cell, ...]:
    """``timed`` is the scenario; empty where nothing was timed. ``gpu``: some row knows the GPU's own time."""
    found = [*_timing(row)] if timed else []
    if gpu:
        found.insert(1, Cell("GPU, ms", *_gpu(row)))
    found += [Cell("Requests/s", *_requests(row.server))] if timed == "server" else []
    accuracy = row.accuracy
    snr = None if accuracy is None else finite(accuracy.snr_db)
    exact = accuracy is not None and snr is None and accuracy.max_abs == 0
    found.append(Cell("SNR, dB", "exact" if exact else DASH if snr is None else f"{snr:.1f}"))
    found.append(Cell("Largest error", _error(row), _agreement(row)))
    if metric:
        found.append(Cell(metric, *((DASH,) if row.metric is None else _metric(row.metric))))
    found.append(Cell("Size", size(row.size_bytes)))
    found.append(Cell("Verdict", *_verdict(row), kind="outcome"))
    return tuple(found)


def _timing(row: Row) -> list[Cell]:
    latency, rate = row.latency_ms, throughput(row)
    if latency is None:
        return [Cell(label, DASH) for label in ("Median, ms", "Tail, ms", "Rows/s", "Speed-up")]
    tail = ("p99", latency.p99) if latency.p99 is not None else ("p95", latency.p95)
    return [
        Cell("Median, ms", _plain(latency.p50), "unstable" if not latency.stable else ""),
        Cell("Tail, ms", _plain(tail[1]), tail[0] if tail[1] is not None else ""),
        Cell("Rows/s", _plain(rate)),
        Cell("Speed-up", *_speedup(row.speedup)),
    ]


def _gpu(row: Row) -> tuple[str, str]:
    """The median of the GPU's own time, and its share of the median latency."""
    own = device_median(row)
    whole = None if row.latency_ms is None else finite(row.latency_ms.p50)
    return _plain(own), f"{own / whole:.0%} of the median" if own is not None and whole else ""


def _requests(found: Server | None) -> tuple[str, str]:
    """The rate, and the percentile that it was held against or has."""
    if found is None:
        return DASH, ""
    if found.percentile is not None:
        return _plain(found.rate), f"{found.percentile} within {found.bound_ms:g} ms"
    if ran_away(found):
        return DASH, f"its queue ran away at {_plain(found.rate)}"
    return _plain(found.rate), "" if found.p99 is None else f"p99 {_plain(found.p99)} ms"


def _plain(value: float | None) -> str:
    """Three digits, and never an exponent for what is large."""
    found = finite(value)
    return f"{found:,.0f}" if found is not None and abs(found) >= 100 else number(found)


def _speedup(found: Speedup | None) -> tuple[str, str]:
    if found is None or finite(found.median) is None:
        return DASH, ""
    low, high = finite(found.low), finite(found.high)
    return f"{found.median:.2f}", "" if low is None or high is None or low == high else f"{low:.2f} to {high:.2f}"


def _error(row: Row) -> str:
    found = None if row.accuracy is None else finite(row.accuracy.max_abs)
    return DASH if found is None else f"{found:.1e}" if found else "0"


def _agreement(row: Row) -> str:
    share = None if row.accuracy is None else finite(row.accuracy.argmax_agreement)
    if share is None:
        return ""
    # Rounded down: 99.996 % must not read as all of them.
    return f"argmax {'100' if share == 1 else format(math.floor(share * 1e4) / 100, '.2f')} %"


def _metric(found: MetricResult, against: str = "vs") -> tuple[str, str]:
    value, reference = finite(found.value), finite(found.reference)
    shown = DASH if value is None else f"{value:.4g}"
    if reference is None:
        return shown, ""
    if value is None:
        return shown, f"{against} {reference:.4g}"
    change = value - reference
    told = f"{change / abs(reference):+.2%}" if reference else f"{change:+.2g}"
    return shown, f"{against} {reference:.4g}, {told}"


def _metric_name(report: Report) -> str:
    names = {_words(row.metric.name) for row in report.rows if row.metric is not None}
    return next(iter(names)) if len(names) == 1 else "Metric" if names else ""


def _verdict(row: Row) -> tuple[str, str]:
    if row.status != "ok":
        return _VERDICTS[row.status], ""
    return ("passed" if row.passed else "missed a gate" if row.fault == "gate" else "outside"), ""


def _kind(row: Row) -> str:
    return "gone" if row.status == "unavailable" else "" if row.passed else "bad"


def _process(row: Row) -> tuple[Cell, ...]:
    allowed = row.tolerance
    if allowed is None:
        rule = DASH
    elif allowed.min_snr_db is None:
        rule = f"|error| ≤ {allowed.atol:g} + {allowed.rtol:g} |reference|"
    else:
        rule = f"SNR ≥ {allowed.min_snr_db:g} dB on every output"
    return (
        Cell("Artifact", row.artifact or DASH, f"sha256 {row.sha256[:12]}…" if row.sha256 else "", "path"),
        Cell("Format", row.format or DASH, row.precision or "", ""),
        Cell("Load, ms", _plain(row.load_ms)),
        Cell("First, ms", _plain(row.first_ms)),
        Cell("Peak memory", size(row.peak_memory_bytes)),
        Cell("Passes with", rule, "" if allowed is None else f"metric within {allowed.max_metric_drop:.1%}", ""),
    )


def _words(name: str) -> str:
    known = {"cpu": "CPU", "cpu_flags": "CPU flags", "os": "OS", "git": "Repository", "memory_bytes": "Memory"}
    known |= {
        "latency": "Latency timed",
        "seconds": "Seconds per row",
        "gpus": "GPUs",
        "gpu_state": "GPUs after timing",
    }
    return known.get(name) or name.replace("_", " ").capitalize()


def _short(value: Any) -> str:
    return DASH if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _value(name: str, value: Any) -> str:
    if value is None:
        return "the model's own sample" if name == "data" else DASH
    if isinstance(value, int):
        plain = size(value) if name == "memory_bytes" else str(value)
        return ("yes" if value else "no") if isinstance(value, bool) else plain
    if name == "git" and isinstance(value, Mapping):
        return f"{str(value.get('commit'))[:12]}{', with changes' if value.get('dirty') else ''}"
    if isinstance(value, Mapping):
        return ", ".join(f"{one} {_short(told)}" for one, told in value.items()) or DASH
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(_value("", part) if isinstance(part, Mapping) else str(part) for part in value) or DASH
    return str(value)
