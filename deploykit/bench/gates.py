"""Gates: limits that a user sets on latency, speed-up, the metric, and the speed-up of an earlier run.

A gate is judged on the median (or the percentile that it names). Where the 95 % interval has the limit inside it, or
an unstable latency is near it, the result says that it is uncertain: running again may turn it over. A slowdown alone
is missed only where its whole interval lies beyond the limit: two runs of one thing differ by noise, and a gate that
stands in every build must not fail for that. What cannot be judged does not pass, and neither does a gate that found
nothing to judge: silence must not look like success.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from deploykit.bench import compare, said
from deploykit.bench.report import GateResult, Latency, Report, Row, verdict
from deploykit.bench.table import row_names, scenario
from deploykit.bench.tolerance import metric_drop
from deploykit.errors import UsageError

Stat = Literal["p50", "p90", "p95", "p99", "mean"]
#: Near saturation a percentile varies with the draw of arrivals: it and a rate are known to this share of themselves.
_READS_TO = 0.10
#: Samples that a percentile needs to be reported at all; see ``stats.percentile``.
_NEEDED = {"p50": 2, "p90": 10, "p95": 20, "p99": 100}


@dataclass(frozen=True)
class MaxLatency:
    """A statistic of the latency in milliseconds; for one backend, or for every row but the reference.

    In the scenario server it is the latency of a request, its time in the queue included, at the rate given or found.
    """

    stat: Stat
    limit_ms: float
    backend: str | None = None


@dataclass(frozen=True)
class MinSpeedup:
    """A speed-up against the reference; for one backend, or for every row but the reference."""

    limit: float
    backend: str | None = None


@dataclass(frozen=True)
class MinRate:
    """Requests a second that the server scenario found to hold its bound; for one backend, or all but the reference."""

    limit: float
    backend: str | None = None


@dataclass(frozen=True)
class Baseline:
    """An earlier report, what it is called, and how many times slower a row may have become since."""

    report: Report
    name: str
    max_slowdown: float


@dataclass(frozen=True)
class Gates:
    """All gates of a run."""

    max_latency: tuple[MaxLatency, ...] = ()
    min_speedup: tuple[MinSpeedup, ...] = ()
    min_rate: tuple[MinRate, ...] = ()
    max_metric_drop: float | None = None
    baseline: Baseline | None = None


def judge(report: Report, gates: Gates) -> Report:
    """The report with what every gate said; a row that missed one does not pass."""
    if gates == Gates():
        return report
    results = tuple(_results(report, gates))
    missed: dict[str, GateResult] = {}
    for result in results:
        if not result.passed:
            missed.setdefault(result.row, result)
    rows = tuple(_marked(row, missed.get(name)) for name, row in zip(row_names(report), report.rows, strict=True))
    warnings = () if gates.baseline is None else tuple(_baseline_warnings(gates.baseline, report))
    return replace(
        report,
        rows=rows,
        gates=results,
        passed=verdict(rows) and all(result.passed for result in results),
        warnings=(*report.warnings, *warnings),
    )


def usable_baseline(report: Report, name: str, limit: float, timed: str, later: str = "this run") -> Baseline:
    """A report as the baseline of a gate on ``later``, where the scenario ``timed`` is timed.

    Raises:
        UsageError: it is of another scenario, or has no row that anything could be held against.
    """
    if scenario(report) != timed:
        raise UsageError(
            f"{name} was timed in the scenario {scenario(report)} and {later} in {timed}, so one is no baseline for "
            f"the other: name a report of the scenario {timed}."
        )
    if not any(row.speedup is not None and not compare.is_reference(report, row) for row in report.rows):
        raise UsageError(
            f"{name} has no speed-up of any row but the reference, so it is no baseline: name the JSON of a "
            "`deploykit bench` with other backends."
        )
    return Baseline(report, name, limit)


def slowdowns(before: Report, after: Report, limit: float, name: str) -> Iterator[GateResult]:
    """One result for each row of ``before`` that had a speed-up; one that is missing in ``after`` does not pass."""
    told = compare.incomparable(before, after)
    for row, old, new in compare.matched(before, after):
        if old is None or old.speedup is None or compare.is_reference(before, old):
            continue
        found = None if new is None or told is not None else compare.slowdown(old, new)
        if found is None or new is None or new.speedup is None:
            yield _unjudged("max-slowdown", row, limit, told or _why_no_slowdown(old, new, after, name))
            continue
        words = f"its speed-up is {new.speedup.median:.3g} and was {old.speedup.median:.3g} in {name}"
        yield _judged(
            "max-slowdown",
            row,
            limit,
            found.median,
            (found.median if found.low is None else found.low) <= limit,
            f"{words}: {found.median:.3g} times slower against the reference, and {limit:g} is allowed.",
            _straddles(found.low, limit, found.high),
        )


def _results(report: Report, gates: Gates) -> Iterator[GateResult]:
    for latency in gates.max_latency:
        gate = f"max-latency {latency.stat}"
        judged = _response if scenario(report) == "server" else _latency
        for name, row in _meant(report, latency.backend):
            yield judged(gate, name, row, latency)
        yield from _nothing_meant(report, gate, latency.limit_ms, latency.backend)
    for speedup in gates.min_speedup:
        for name, row in _meant(report, speedup.backend):
            yield _speedup(name, row, speedup.limit)
        yield from _nothing_meant(report, "min-speedup", speedup.limit, speedup.backend)
    for rate in gates.min_rate:
        for name, row in _meant(report, rate.backend):
            yield _rate(name, row, rate.limit)
        yield from _nothing_meant(report, "min-rate", rate.limit, rate.backend)
    if gates.max_metric_drop is not None:
        for name, row in _meant(report, None):
            yield _metric(name, row, gates.max_metric_drop)
        yield from _nothing_meant(report, "max-metric-drop", gates.max_metric_drop, None)
    if gates.baseline is not None:
        yield from slowdowns(gates.baseline.report, report, gates.baseline.max_slowdown, gates.baseline.name)


def _meant(report: Report, backend: str | None) -> Iterator[tuple[str, Row]]:
    """The rows a gate is for: those of the backend, else all but the reference's; never the unavailable ones."""
    for name, row in zip(row_names(report), report.rows, strict=True):
        named = row.backend == backend if backend is not None else not compare.is_reference(report, row)
        if named and row.status != "unavailable":
            yield name, row


def _nothing_meant(report: Report, gate: str, limit: float, backend: str | None) -> Iterator[GateResult]:
    if next(_meant(report, backend), None) is None:
        who = backend or "any backend but the reference"
        yield _unjudged(gate, backend or "all", limit, f"no row of {who} was run, so there is nothing to judge.")


def _latency(gate: str, name: str, row: Row, asked: MaxLatency) -> GateResult:
    latency = row.latency_ms
    if latency is None:
        return _unjudged(gate, name, asked.limit_ms, _why_untimed(row))
    found: float | None = getattr(latency, asked.stat)
    if found is None:
        return _unjudged(
            gate,
            name,
            asked.limit_ms,
            f"{latency.samples} samples are too few for a {asked.stat}, which needs {_NEEDED[asked.stat]}: name a "
            "lower percentile, or bench a smaller size.",
        )
    told = f"its {asked.stat} is {found:.4g} ms, and {asked.limit_ms:g} ms is allowed."
    return _judged(
        gate, name, asked.limit_ms, found, found <= asked.limit_ms, told, _shaky(latency, found, asked.limit_ms)
    )


def _response(gate: str, name: str, row: Row, asked: MaxLatency) -> GateResult:
    server = row.server
    if server is None:
        return _unjudged(gate, name, asked.limit_ms, _why_untimed(row))
    if server.rate is None:
        why = f"no rate that was tried holds {server.percentile} within {server.bound_ms:g} ms, so there is no latency."
        return _unjudged(gate, name, asked.limit_ms, why)
    at = f"{server.rate:,.4g} requests/s"
    if said.ran_away(server):
        return _unjudged(
            gate, name, asked.limit_ms, f"at {at} its queue ran away, and {asked.limit_ms:g} ms is allowed."
        )
    found: float | None = getattr(server, asked.stat)
    if found is None:
        few = f"{server.requests:,} request{'' if server.requests == 1 else 's'}"
        why = f"{few} are too few for a {asked.stat}, which needs {_NEEDED[asked.stat]}: name a higher --rate."
        return _unjudged(gate, name, asked.limit_ms, why)
    told = f"at {at} its {asked.stat}, queue included, is {found:.4g} ms, and {asked.limit_ms:g} ms is allowed."
    near = abs(found - asked.limit_ms) <= _READS_TO * asked.limit_ms
    unsure = f"This is uncertain: a percentile of a queue reads to about {_READS_TO:.0%}." if near else None
    return _judged(gate, name, asked.limit_ms, found, found <= asked.limit_ms, told, unsure)


def _speedup(name: str, row: Row, limit: float) -> GateResult:
    found = row.speedup
    if found is None:
        return _unjudged("min-speedup", name, limit, _why_untimed(row))
    told = f"it is {found.median:.3g} times as fast as {found.vs}, and {limit:g} is needed."
    unsure = _straddles(found.low, limit, found.high)
    return _judged("min-speedup", name, limit, found.median, found.median >= limit, told, unsure)


def _rate(name: str, row: Row, limit: float) -> GateResult:
    found = row.server
    if found is None or found.percentile is None:
        told = "it failed, so there is no rate." if row.status == "failed" else "this run looked for no highest rate."
        return _unjudged("min-rate", name, limit, told)
    unsure = "This is uncertain: the search ended for its time." if found.capped else None
    needed = f"{limit:,.10g} are needed."
    if found.rate is None:
        told = f"no rate that was tried holds {found.percentile} within {found.bound_ms:g} ms, and {needed}"
        return _unjudged("min-rate", name, limit, told if unsure is None else f"{told} {unsure}")
    passed = found.rate >= limit
    if abs(found.rate - limit) <= _READS_TO * limit:
        unsure = f"This is uncertain: a rate reads to about {_READS_TO:.0%}."
    elif passed:  # a search that went on could only have found more
        unsure = None
    told = f"it holds {found.percentile} within {found.bound_ms:g} ms up to {found.rate:,.4g} requests/s, and {needed}"
    return _judged("min-rate", name, limit, found.rate, passed, told, unsure)


def _metric(name: str, row: Row, limit: float) -> GateResult:
    if row.metric is None:
        told = (
            "it did not come to the metric." if row.status == "failed" else "the model brings no metric: leave it out."
        )
        return _unjudged("max-metric-drop", name, limit, told)
    drop = metric_drop(row.metric)
    if not math.isfinite(drop):
        return _unjudged("max-metric-drop", name, limit, f"its {row.metric.name} is not finite.")
    told = f"its {row.metric.name} is {drop:.2%} worse than the reference's, and {limit:.2%} is allowed."
    return _judged("max-metric-drop", name, limit, drop, drop <= limit, told, None)


def _judged(gate: str, row: str, limit: float, found: float, passed: bool, told: str, unsure: str | None) -> GateResult:
    if passed:
        return GateResult(gate, row, limit, found, passed, None if unsure is None else f"{told} {unsure}")
    return GateResult(gate, row, limit, found, passed, told if unsure is None else f"{told} {unsure}")


def _unjudged(gate: str, row: str, limit: float, why: str) -> GateResult:
    return GateResult(gate, row, limit, None, False, why)


def _straddles(low: float | None, limit: float, high: float | None) -> str | None:
    if low is None or high is None:
        return "This is uncertain: one round gives no interval."
    if low <= limit <= high and low < high:
        return f"This is uncertain: the interval {low:.3g} to {high:.3g} holds the limit."
    return None


def _shaky(latency: Latency, found: float, limit: float) -> str | None:
    """An unstable latency makes a verdict uncertain only where the limit is near: within a standard deviation."""
    if latency.stable or (latency.cv is not None and abs(found - limit) > latency.cv * latency.mean):
        return None
    return "This is uncertain: the latency is unstable, and the limit is near."


def _why_untimed(row: Row) -> str:
    return "it failed, so there is no latency." if row.status == "failed" else "this run timed nothing."


def _why_no_slowdown(old: Row, new: Row | None, after: Report, name: str) -> str:
    if new is not None:
        return _why_untimed(new)
    gone = next((row for row in after.rows if row.backend == old.backend and row.status == "unavailable"), None)
    if gone is not None:
        return f"it stands in {name}, and {old.backend} is unavailable now: {gone.reason}"
    return f"it stands in {name} and is missing in this run: name the same artifacts, sizes and threads."


def _marked(row: Row, missed: GateResult | None) -> Row:
    if missed is None or row.status == "unavailable":
        return row
    return replace(
        row,
        passed=False,
        fault=row.fault or "gate",
        reason=row.reason or f"gate {missed.name}: {missed.reason}",
    )


def _baseline_warnings(baseline: Baseline, report: Report) -> Iterator[str]:
    yield (
        f"held against {baseline.name} by speed-up against {report.reference}, each run's own: milliseconds of two "
        "runs do not compare."
    )
    changed = compare.speed_changes(baseline.report, report)
    if changed:
        told = "; ".join(f"{change.name} was {change.before} and is {change.after}" for change in changed)
        yield f"{baseline.name} comes from another environment, which may change a speed-up: {told}."
    for name, old, new in compare.matched(baseline.report, report):
        if new is None or new.status == "unavailable" or compare.is_reference(report, new):
            continue
        if old is None or old.speedup is None:
            yield f"{name} has no speed-up in {baseline.name}, so there is nothing to hold it against."
        elif not old.passed:
            yield f"{name} did not pass in {baseline.name}: {old.reason}"
