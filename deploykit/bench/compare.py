"""Two reports side by side: what changed around them, and what became of each row.

Milliseconds of two runs do not compare: other work on the machine, its clock and its temperature differ. Each run's
speed-up is against its own reference, measured in turn with it, so that what slows both cancels. A slowdown is
therefore the earlier speed-up over the later one, and the milliseconds are information only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import msgspec

from deploykit.bench.report import GateResult, Report, Row, Speedup
from deploykit.bench.table import row_names, scenario

SCHEMA_VERSION = 1
#: What differs between any two runs and explains nothing.
_RESTLESS = ("load_average", "gpu_state")
#: What may change a speed-up; the rest of the environment (git, memory) is told and does not warn.
_SPEED = (
    "cpu",
    "cpu_flags",
    "usable_cores",
    "frequency_policy",
    "turbo",
    "os",
    "machine",
    "python",
    "libraries",
    "kernels",
    "threads",
    "spinning",
    "denormals",
    "gpus",
)
_Key = tuple[Any, ...]


@dataclass(frozen=True)
class Change:
    """Something that the two runs do not have in common; None where one has it not."""

    name: str
    before: Any
    after: Any


@dataclass(frozen=True)
class Slowdown:
    """How many times slower, against the reference, the later run is; below 1 it became faster.

    ``low`` and ``high``: the 95 % interval, from the two speed-ups' own, which know nothing of each other.
    """

    median: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Side:
    """What one report says of a row. ``device_p50_ms`` is the GPU's own time, where the backend measures it."""

    speedup: Speedup | None
    p50_ms: float | None
    stable: bool | None
    max_abs: float | None
    snr_db: float | None
    metric: float | None
    size_bytes: int | None
    status: str
    passed: bool | None
    reason: str | None
    device_p50_ms: float | None = None


@dataclass(frozen=True)
class Pair:
    """One row in both reports, or in one alone. ``overlap``: whether the two intervals of the speed-up do."""

    row: str
    before: Side | None
    after: Side | None
    slowdown: Slowdown | None
    overlap: bool | None
    verdict_changed: bool | None


@dataclass(frozen=True)
class Comparison:
    """What ``deploykit compare`` says. ``incomparable`` is the sentence why speed-ups of these two do not compare.

    ``commands`` are what made the two, which is no setting: file names alone make them differ.
    """

    models: tuple[str, str]
    incomparable: str | None
    environment: tuple[Change, ...]
    settings: tuple[Change, ...]
    rows: tuple[Pair, ...]
    passed: tuple[bool, bool]
    commands: tuple[str | None, str | None] = (None, None)
    gates: tuple[GateResult, ...] = ()
    schema_version: int = SCHEMA_VERSION


def compare(before: Report, after: Report) -> Comparison:
    """Everything that the two reports have to say about each other."""
    told = incomparable(before, after)
    return Comparison(
        models=(before.model, after.model),
        incomparable=told,
        environment=environment_changes(before, after),
        settings=tuple(change for change in _changes(before.settings, after.settings) if change.name != "command"),
        rows=tuple(_pair(name, old, new, told is None) for name, old, new in matched(before, after)),
        passed=(before.passed, after.passed),
        commands=(_command(before), _command(after)),
    )


def _command(report: Report) -> str | None:
    found = report.settings.get("command")
    return None if found is None else str(found)


def to_json(comparison: Comparison) -> str:
    """The comparison as indented JSON; a number that is not finite becomes null."""
    return msgspec.json.format(msgspec.json.encode(comparison), indent=1).decode() + "\n"


def matched(before: Report, after: Report) -> list[tuple[str, Row | None, Row | None]]:
    """Rows of one backend, precision, artifact name, batch, time and threads, with the name that the table gives them.

    Where several artifacts have one file name, their whole paths decide.
    """
    names_before, names_after = row_names(before), row_names(after)
    left = list(range(len(after.rows)))
    found: list[tuple[str, Row | None, Row | None]] = []
    for name, old in zip(names_before, before.rows, strict=True):
        candidates = [index for index in left if _key(after.rows[index]) == _key(old)]
        same = [index for index in candidates if after.rows[index].artifact == old.artifact]
        twins = sum(_key(row) == _key(old) for row in before.rows)
        chosen = same[0] if same else candidates[0] if len(candidates) == 1 == twins else None
        if chosen is None:
            found.append((name, old, None))
        else:
            left.remove(chosen)
            found.append((names_after[chosen], old, after.rows[chosen]))
    return [*found, *((names_after[index], None, after.rows[index]) for index in left)]


def is_reference(report: Report, row: Row) -> bool:
    """Whether this row is the reference itself, at any size; it comes first."""
    first = report.rows[0]
    return (row.backend, row.precision, row.artifact) == (first.backend, first.precision, first.artifact)


def incomparable(before: Report, after: Report) -> str | None:
    """Why the speed-ups of two reports are against different things; None where the reference is one and the same."""
    if before.model != after.model:
        return f"one is of the model {before.model} and the other of {after.model}, so their speed-ups do not compare."
    if scenario(before) != scenario(after):
        return (
            f"one was timed in the scenario {scenario(before)} and the other in {scenario(after)}, so their speed-ups "
            "do not compare."
        )
    old, new = before.rows[0], after.rows[0]
    if (before.reference, old.precision) != (after.reference, new.precision):
        return (
            f"one is against {before.reference} {old.precision} and the other against {after.reference} "
            f"{new.precision}, so their speed-ups do not compare."
        )
    if old.size_bytes and new.size_bytes and old.size_bytes != new.size_bytes:
        return (
            f"{before.model} has {new.size_bytes} bytes of weights now and had {old.size_bytes}: it is another model, "
            "so the speed-ups do not compare."
        )
    return None


def slowdown(before: Row, after: Row) -> Slowdown | None:
    """The earlier speed-up over the later one; None where either has none."""
    old, new = before.speedup, after.speedup
    if old is None or new is None or not new.median:
        return None
    ratio = old.median / new.median
    below = _apart(old.low, old.median, new.median, new.high)
    above = _apart(old.median, old.high, new.low, new.median)
    return Slowdown(ratio, None if below is None else ratio / below, None if above is None else ratio * above)


def _apart(*ends: float | None) -> float | None:
    """How far an end of a ratio lies from its middle, as a factor: two independent errors add up by their squares.

    ``ends`` are the nearer and the farther end of what may lie between, twice; None where one is not known or is 0.
    """
    low, high, other_low, other_high = ends
    if not low or not high or not other_low or not other_high:
        return None
    return math.exp(math.hypot(math.log(high / low), math.log(other_high / other_low)))


def environment_changes(before: Report, after: Report) -> tuple[Change, ...]:
    """What differs in machine, software and git state, besides what always does."""
    changes = _changes(before.environment, after.environment)
    return tuple(change for change in changes if change.name.partition(".")[0] not in _RESTLESS)


def speed_changes(before: Report, after: Report) -> tuple[Change, ...]:
    """Those changes that may have changed a speed-up."""
    return tuple(change for change in environment_changes(before, after) if change.name.partition(".")[0] in _SPEED)


def _changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[Change]:
    old, new = _flat(before), _flat(after)
    for name in dict.fromkeys((*old, *new)):
        if old.get(name) != new.get(name):
            yield Change(name, old.get(name), new.get(name))


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat.update({f"{name}.{inner}": found for inner, found in value.items()})
        elif isinstance(value, Sequence) and any(isinstance(part, Mapping) for part in value):
            flat.update(_flat({f"{name}.{number}": part for number, part in enumerate(value)}))
        else:
            flat[name] = list(value) if isinstance(value, tuple) else value
    return flat


def _key(row: Row) -> _Key:
    name = None if row.artifact is None else PurePosixPath(row.artifact).name
    return row.backend, row.precision, name, row.batch, row.time, row.threads


def _pair(name: str, before: Row | None, after: Row | None, comparable: bool) -> Pair:
    if before is None or after is None:
        return Pair(name, _side(before), _side(after), None, None, None)
    return Pair(
        name,
        _side(before),
        _side(after),
        slowdown(before, after) if comparable else None,
        _overlap(before.speedup, after.speedup) if comparable else None,
        before.passed != after.passed,
    )


def _overlap(before: Speedup | None, after: Speedup | None) -> bool | None:
    if before is None or after is None or before.low is None or before.high is None:
        return None
    if after.low is None or after.high is None:
        return None
    return before.low <= after.high and after.low <= before.high


def _side(row: Row | None) -> Side | None:
    if row is None:
        return None
    return Side(
        speedup=row.speedup,
        p50_ms=None if row.latency_ms is None else row.latency_ms.p50,
        stable=None if row.latency_ms is None else row.latency_ms.stable,
        max_abs=None if row.accuracy is None else row.accuracy.max_abs,
        snr_db=None if row.accuracy is None else row.accuracy.snr_db,
        metric=None if row.metric is None else row.metric.value,
        size_bytes=row.size_bytes,
        status=row.status,
        passed=row.passed,
        reason=row.reason,
        device_p50_ms=None if row.device_ms is None else row.device_ms.p50,
    )
