"""``deploykit compare``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deploykit.cli import _gates, _shared, _table
from deploykit.errors import GateError
from deploykit.units import size

if TYPE_CHECKING:
    from deploykit.bench.compare import Change, Comparison, Pair, Side
    from deploykit.bench.report import Speedup

_DASH = "–"


@click.command(
    short_help="Two reports of bench side by side.",
    help="""Hold two reports of `deploykit bench --json` against each other: what changed in the environment and the
settings, then row by row the speed-up against each run's own reference, accuracy, metric and size.

Milliseconds of two runs do not compare and are shown for information only. Ends with 0, or with 3 when --max-slowdown
is given and a row of BEFORE is slower than that in AFTER, or missing there.""",
)
@click.argument("before", type=click.Path(path_type=Path))
@click.argument("after", type=click.Path(path_type=Path))
@click.option(
    "--max-slowdown",
    metavar="X",
    help="How many times slower, against the reference, is allowed, beyond what noise explains.",
)
@_shared.json_option
def command(before: Path, after: Path, max_slowdown: str | None, json_target: str | None) -> None:
    from deploykit.bench.compare import compare, to_json
    from deploykit.bench.gates import slowdowns, usable_baseline
    from deploykit.bench.report import read
    from deploykit.bench.table import scenario

    limit = _gates.slowdown(max_slowdown)
    old, new = read(before), read(after)
    found = compare(old, new)
    if limit is not None:
        usable_baseline(old, str(before), limit, scenario(new), str(after))
        found = replace(found, gates=tuple(slowdowns(old, new, limit, str(before))))
    if json_target != "-":
        _show(found, str(before), str(after))
    if json_target is not None:
        _shared.emit_json(to_json(found), json_target)
    told = _gates.missed(found.gates)
    if told is not None:
        raise GateError(told)


def _show(found: Comparison, before: str, after: str) -> None:
    for name, path, side in (("before:", before, 0), ("after: ", after, 1)):
        click.echo(f"{name} {path} ({found.models[side]}, {_verdict(found.passed[side])})")
        if found.commands[side] is not None:
            click.echo(f"        {found.commands[side]}")
    click.echo()
    if found.incomparable is not None:
        click.echo(f"warning: {found.incomparable}\n")
    _show_changes("environment", found.environment)
    _show_changes("settings", found.settings)
    both = [pair for pair in found.rows if pair.before is not None and pair.after is not None]
    if both:
        titles: tuple[str, ...] = ("speed", "before", "after", "slowdown", "intervals", "p50 ms (information only)")
        gpu = any(_on_gpu(pair) for pair in both)
        titles += ("GPU p50 ms",) * gpu
        lines = [_speed(pair) + (_gpu(pair),) * gpu for pair in both]
        _table.show(titles, lines, right=("before", "after", "slowdown"))
        click.echo()
        titles = ("answers", "max err", "SNR dB", "metric", "size", "verdict")
        _table.show(titles, [_answers(pair) for pair in both])
        click.echo()
    for line in _said(found):
        click.echo(line)


def _show_changes(what: str, changes: tuple[Change, ...]) -> None:
    if not changes:
        click.echo(f"{what}: the same in both\n")
        return
    _table.show((what, "before", "after"), [(c.name, _shown(c.before), _shown(c.after)) for c in changes])
    click.echo()


def _speed(pair: Pair) -> tuple[str, ...]:
    assert pair.before is not None
    assert pair.after is not None
    ratio = pair.slowdown
    slower = _DASH if ratio is None else f"{ratio.median:.3g}"
    overlap = {None: _DASH, True: "overlap", False: "apart"}[pair.overlap]
    times = _arrow(_number(pair.before.p50_ms), _number(pair.after.p50_ms))
    return pair.row, _speedup(pair.before.speedup), _speedup(pair.after.speedup), slower, overlap, times


def _on_gpu(pair: Pair) -> bool:
    return all(side is not None and side.device_p50_ms is not None for side in (pair.before, pair.after))


def _gpu(pair: Pair) -> str:
    assert pair.before is not None
    assert pair.after is not None
    return _arrow(*(_number(side.device_p50_ms) for side in (pair.before, pair.after))) if _on_gpu(pair) else _DASH


def _answers(pair: Pair) -> tuple[str, ...]:
    assert pair.before is not None
    assert pair.after is not None
    old, new = pair.before, pair.after
    return (
        pair.row,
        _arrow(*(_DASH if side.max_abs is None else f"{side.max_abs:.1e}" for side in (old, new))),
        _arrow(*(_DASH if side.snr_db is None else f"{side.snr_db:.1f}" for side in (old, new))),
        _arrow(*(_DASH if side.metric is None else f"{side.metric:.4g}" for side in (old, new))),
        _arrow(size(old.size_bytes), size(new.size_bytes)),
        _arrow(_outcome(old), _outcome(new)),
    )


def _said(found: Comparison) -> Iterator[str]:
    for pair in found.rows:
        if pair.after is None:
            yield f"only before: {pair.row}"
        elif pair.before is None:
            yield f"only after: {pair.row}"
        elif pair.verdict_changed:
            reason = pair.after.reason or pair.before.reason or "no reason was given."
            yield f"verdict changed: {pair.row}, {_outcome(pair.before)} → {_outcome(pair.after)}: {reason}"
    for gate in found.gates:
        if not gate.passed or gate.reason is not None:
            yield f"gate {'passed' if gate.passed else 'failed'}: {gate.name}, {gate.row}: {gate.reason}"


def _outcome(side: Side) -> str:
    return side.status if side.status != "ok" else _verdict(bool(side.passed))


def _verdict(passed: bool) -> str:
    return "passed" if passed else "failed"


def _arrow(before: str, after: str) -> str:
    return before if before == after else f"{before} → {after}"


def _speedup(speedup: Speedup | None) -> str:
    if speedup is None:
        return _DASH
    if speedup.low is None or speedup.high is None or speedup.low == speedup.high:
        return f"{speedup.median:.3g}"
    return f"{speedup.median:.3g} ({speedup.low:.3g}–{speedup.high:.3g})"


def _number(value: float | None) -> str:
    return _DASH if value is None else f"{value:.3g}"


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)
