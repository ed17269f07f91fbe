"""Options of bench, validate and ship that set tolerances and gates, and the files of a report for other programs."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from deploykit import files, registry
from deploykit.cli import _shared
from deploykit.errors import UnknownNameError, UsageError

if TYPE_CHECKING:
    from deploykit.bench.gates import Baseline, Gates, MaxLatency, MinRate, MinSpeedup
    from deploykit.bench.report import GateResult, Report
    from deploykit.bench.scenario import Scenario
    from deploykit.bench.tolerance import Override, Overrides

DEFAULT_SLOWDOWN = 1.10
_STATS = ("p50", "p90", "p95", "p99", "mean")
_UNITS = {"us": 1e-3, "µs": 1e-3, "ms": 1.0, "s": 1e3}
#: How the parts of --tolerance are written, and what they set.
_TOLERANCES = {"atol": "atol", "rtol": "rtol", "snr": "min_snr_db"}


@dataclass(frozen=True)
class Asked:
    """What was asked for, still as written."""

    max_latency: tuple[str, ...] = ()
    min_speedup: tuple[str, ...] = ()
    min_rate: tuple[str, ...] = ()
    max_metric_drop: str | None = None
    min_snr: str | None = None
    atol: str | None = None
    rtol: str | None = None
    tolerance: tuple[str, ...] = ()
    baseline: Path | None = None
    max_slowdown: str | None = None
    junit: Path | None = None
    csv: Path | None = None

    def overrides(self) -> Overrides:
        """The tolerances in place of the defaults.

        Raises:
            UsageError: one cannot be read.
        """
        from deploykit.bench.tolerance import Override, Overrides

        every = Override(
            _number("--atol", self.atol),
            _number("--rtol", self.rtol),
            _number("--min-snr", self.min_snr, least=-math.inf),
            _number("--max-metric-drop", self.max_metric_drop),
        )
        return Overrides(every, _by_output(self.tolerance))

    def gates(self, scenario: Scenario) -> Gates:
        """The gates on a run of that scenario; the baseline is read now: a wrong path must not cost a whole run.

        Raises:
            UsageError: one cannot be read, or means nothing.
            ArtifactError: the baseline is no report.
        """
        from deploykit.bench.gates import Gates

        return Gates(
            tuple(map(_max_latency, self.max_latency)),
            tuple(map(_min_speedup, self.min_speedup)),
            self._min_rate(scenario),
            max_metric_drop=_number("--max-metric-drop", self.max_metric_drop),
            baseline=self._baseline(scenario.name),
        )

    def write(self, report: Report) -> None:
        """Write the files that were asked for."""
        if self.junit is not None:
            from deploykit.bench.junit import to_junit

            files.write_text(self.junit, to_junit(report), "--junit")
        if self.csv is not None:
            from deploykit.bench.csv import to_csv

            files.write_text(self.csv, to_csv(report), "--csv")

    def _min_rate(self, scenario: Scenario) -> tuple[MinRate, ...]:
        if self.min_rate and scenario.bound is None:
            without = "" if scenario.rate is None else ", and leave out --rate"
            raise UsageError(
                "--min-rate needs the highest rate of requests that holds a bound: add --scenario server --bound "
                f"p99=20ms{without}."
            )
        return tuple(map(_min_rate, self.min_rate))

    def _baseline(self, scenario: str) -> Baseline | None:
        limit = slowdown(self.max_slowdown)
        if self.baseline is None:
            if limit is not None:
                raise UsageError("--max-slowdown needs an earlier report to hold against: add --baseline FILE.json.")
            return None
        from deploykit.bench.gates import usable_baseline
        from deploykit.bench.report import read

        limit = DEFAULT_SLOWDOWN if limit is None else limit
        return usable_baseline(read(self.baseline), str(self.baseline), limit, scenario)


_TOLERANCE_OPTIONS = (
    click.option("--min-snr", metavar="DB", help="Signal-to-noise ratio that every float output needs, in decibels."),
    click.option("--atol", metavar="X", help="Every element within X + rtol |reference|, int8's too."),
    click.option("--rtol", metavar="X", help="Every element within atol + X |reference|, int8's too."),
    click.option(
        "--tolerance",
        multiple=True,
        metavar="OUTPUT:SPEC",
        help="For one output, like logits:atol=1e-3,rtol=1e-3,snr=30; repeatable.",
    ),
    click.option("--max-metric-drop", metavar="SHARE", help="Loss of the model's metric that is allowed; 0.02 is 2 %."),
)
_LATENCY_OPTIONS = (
    click.option(
        "--max-latency",
        multiple=True,
        metavar="[BACKEND:]STAT=TIME",
        help="Gate on p50, p90, p95, p99 or mean, like p99=5ms (us, ms, s) or ort:p99=5ms; of a request with its time "
        "in the queue where bench times the scenario `server`; repeatable.",
    ),
    click.option(
        "--min-speedup",
        multiple=True,
        metavar="[BACKEND:]X",
        help="Gate on the median speed-up against the reference, like 1.5 or ort:1.5; repeatable.",
    ),
    click.option(
        "--baseline",
        type=click.Path(path_type=Path, dir_okay=False),
        help="JSON of an earlier bench: no row may have become slower against the reference, or be missing.",
    ),
    click.option(
        "--max-slowdown",
        metavar="X",
        help=f"How many times slower than in --baseline is allowed, beyond what noise explains; "
        f"default: {DEFAULT_SLOWDOWN:.2f}.",
    ),
)
_RATE_OPTION = click.option(
    "--min-rate",
    multiple=True,
    metavar="[BACKEND:]N",
    help="Gate on the requests a second that hold --bound, like 200 or ort:200; repeatable.",
)
_FILE_OPTIONS = (
    _shared.output_option("--junit", help="Write the verdicts as JUnit XML, for CI systems."),
    _shared.output_option("--csv", help="Write one line for each row as CSV, flat."),
)


def options(*, latency: bool, scenarios: bool = False) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """All of these options; the command gets them as ``asked``.

    Without ``latency``, none that needs timing; without ``scenarios``, none that needs one besides the usual one.
    """

    def collect(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def collected(*args: Any, **given: Any) -> Any:
            own = {field.name: given.pop(field.name) for field in fields(Asked) if field.name in given}
            return command(*args, asked=Asked(**own), **given)

        timed = (*(_LATENCY_OPTIONS if latency else ()), *((_RATE_OPTION,) if scenarios else ()))
        wanted = (*_TOLERANCE_OPTIONS, *timed, *_FILE_OPTIONS)
        for option in reversed(wanted):
            collected = option(collected)
        return collected

    return collect


def slowdown(text: str | None) -> float | None:
    """The limit of --max-slowdown.

    Raises:
        UsageError: it is no number above 0.
    """
    return _number("--max-slowdown", text, above_zero=True)


def missed(results: Iterable[GateResult]) -> str | None:
    """One sentence that names the gates that were missed; None where there are none."""
    named = [f"{gate.name} ({gate.row}: {str(gate.reason).rstrip('.')})" for gate in results if not gate.passed]
    return f"gate failed: {'; '.join(named)}." if named else None


def statistic(option: str, text: str) -> tuple[str, float]:
    """A statistic of latency and its milliseconds, written ``p99=5ms``.

    Raises:
        UsageError: it is written in another way.
        UnknownNameError: there is no such statistic.
    """
    stat, equals, time = text.partition("=")
    stat, parts = stat.strip(), re.fullmatch(r"(.*\d.*?)\s*(us|µs|ms|s)", time.strip())
    if not equals or parts is None:
        raise UsageError(f"cannot read {option} {text!r}: write STAT=TIME with a unit, like p99=5ms (us, ms, s).")
    if stat not in _STATS:
        raise UnknownNameError(f"statistic in {option}", stat, _STATS)
    value = _number(option, parts[1], above_zero=True)
    assert value is not None
    return stat, value * _UNITS[parts[2]]


def _max_latency(text: str) -> MaxLatency:
    from deploykit.bench.gates import MaxLatency, Stat

    backend, _, rest = text.rpartition(":")
    stat, milliseconds = statistic("--max-latency", rest)
    return MaxLatency(cast(Stat, stat), milliseconds, _backend(backend))


def _min_speedup(text: str) -> MinSpeedup:
    from deploykit.bench.gates import MinSpeedup

    return MinSpeedup(*_for_backend("--min-speedup", text))


def _min_rate(text: str) -> MinRate:
    from deploykit.bench.gates import MinRate

    return MinRate(*_for_backend("--min-rate", text))


def _for_backend(option: str, text: str) -> tuple[float, str | None]:
    backend, _, rest = text.rpartition(":")
    value = _number(option, rest, above_zero=True)
    assert value is not None
    return value, _backend(backend)


def _backend(name: str) -> str | None:
    known = [known for known in registry.backend_names() if not registry.backend(known).hidden]
    if name and ":" not in name and name not in known:
        raise UnknownNameError("backend", name, known)
    return name or None


def _by_output(texts: Iterable[str]) -> dict[str, Override]:
    from deploykit.bench.tolerance import Override

    found: dict[str, dict[str, float]] = {}
    for text in texts:
        output, colon, spec = text.rpartition(":")
        parts = [part.partition("=") for part in spec.split(",")]
        if not colon or not output or not all(equals for _, equals, _ in parts):
            raise UsageError(f"cannot read --tolerance {text!r}: write OUTPUT:SPEC, like logits:atol=1e-3,snr=30.")
        for key, _, value in parts:
            if key.strip() not in _TOLERANCES:
                raise UnknownNameError("part of --tolerance", key.strip(), _TOLERANCES)
            least = -math.inf if key.strip() == "snr" else 0.0
            number = _number(f"{key.strip()} in --tolerance", value, least=least)
            assert number is not None
            found.setdefault(output, {})[_TOLERANCES[key.strip()]] = number
    return {output: Override(**values) for output, values in found.items()}


def _number(name: str, text: str | None, *, least: float = 0.0, above_zero: bool = False) -> float | None:
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value < least or (above_zero and value <= 0):
        bound = " above 0" if above_zero else "" if least < 0 else " of at least 0"
        raise UsageError(f"{name} {text!r} is no number{bound}: write one like 1.5.")
    return value
