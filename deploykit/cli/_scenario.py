"""Options of bench that say what is timed."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from deploykit.errors import UsageError

if TYPE_CHECKING:
    from deploykit.bench.scenario import Bound, Scenario

#: As in deploykit.bench.scenario, which is not imported for --help.
NAMES = ("single-stream", "offline", "server", "streaming")
_UNITS = {"us": 1e-3, "µs": 1e-3, "ms": 1.0, "s": 1e3}

_OPTIONS = (
    click.option(
        "--scenario",
        type=click.Choice(NAMES),
        default=NAMES[0],
        show_default=True,
        help="What is timed: one inference after the other; `offline`: throughput over batches; `server`: requests "
        "that arrive by chance; `streaming`: time steps, each with the states of the last.",
    ),
    click.option("--rate", type=float, metavar="N", help="For `server`: percentiles at N requests a second."),
    click.option(
        "--bound",
        metavar="STAT=TIME",
        help="For `server`: the highest rate that holds p50, p90, p95 or p99, like p99=20ms (us, ms, s).",
    ),
)


def options(command: Callable[..., Any]) -> Callable[..., Any]:
    """All of these options; the command gets them as ``scenario``.

    Raises:
        UsageError: they do not go together.
    """

    @functools.wraps(command)
    def collected(*args: Any, scenario: str, rate: float | None, bound: str | None, **given: Any) -> Any:
        return command(*args, scenario=_scenario(scenario, rate, bound), **given)

    for option in reversed(_OPTIONS):
        collected = option(collected)
    return collected


def _scenario(name: str, rate: float | None, bound: str | None) -> Scenario:
    from deploykit.bench.scenario import SCENARIOS, Scenario

    found = next(known for known in SCENARIOS if known == name)
    return Scenario(found, rate, None if bound is None else _bound(bound))


def _bound(text: str) -> Bound:
    from deploykit.bench.scenario import Bound

    match = re.fullmatch(r"\s*(\w+)\s*=\s*([\d.eE+-]+)\s*(us|µs|ms|s)\s*", text)
    try:
        value = math.nan if match is None else float(match[2]) * _UNITS[match[3]]
    except ValueError:
        value = math.nan
    if match is None or not 0 < value < math.inf:
        raise UsageError(f"cannot read --bound {text!r}: write STAT=TIME with a unit, like p99=20ms (us, ms, s).")
    return Bound(match[1], value)
