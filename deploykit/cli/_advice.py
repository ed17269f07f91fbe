"""Advice as text and as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deploykit.cli import _table
from deploykit.units import milliseconds, size

if TYPE_CHECKING:
    from deploykit.advise import Advice
    from deploykit.advise.choose import Candidate
    from deploykit.advise.quality import Index

SCHEMA_VERSION = 1
#: Rows of the front that are shown; all of it is in the JSON.
FRONT = 12
_DASH = "–"


def show(advice: Advice, *, trained: bool, data: Path | None) -> None:
    """What to take, why, what else there was, and what all that does not rest on."""
    taken = advice.choice.taken
    click.echo("nothing keeps the limits" if taken is None else f"take {taken.name}")
    click.echo()
    for line in _why(advice):
        click.echo(f"  · {line}")
    stat = advice.question.stat
    titles = ("", "architecture", "hidden", "precision", "backend", stat, "size", "loss", "runs", "training", "misses")
    right = ("hidden", stat, "size", "loss", "training")
    click.echo("\nbest of each architecture (* on the Pareto front of loss, latency and size)")
    _table.show(titles, [_row(one, stat) for one in advice.each], right)
    front = sorted((one for one in advice.choice.candidates if one.front), key=lambda one: one.latency(stat) or 0.0)
    click.echo(f"\nPareto front, {_some(len(front))}")
    _table.show(titles, [_row(one, stat) for one in _spread(front)], right)
    click.echo(f"\n{_legend(advice)}")
    if advice.thin or advice.failed:
        click.echo("\nthin evidence")
        for line in (*advice.thin, *advice.failed):
            click.echo(f"  · {line.rstrip('.')}")
    if data is not None and not trained:
        click.echo(f"  · nothing was trained on {data}: add --measure")
    if taken is not None:
        click.echo(f"\nnext: {_next(taken)}")


def none_fits(advice: Advice) -> str:
    """One sentence on what comes nearest to the limits."""
    one = advice.choice.nearest
    if one is None:
        return "nothing that was measured fits these options: widen them, or add --measure."
    return f"nothing keeps the limits; the nearest, {one.name}, has {' and '.join(one.missed)}: allow more."


def as_data(advice: Advice) -> dict[str, Any]:
    """The advice as JSON holds it."""
    choice, question = advice.choice, advice.question
    return {
        "schema_version": SCHEMA_VERSION,
        "question": question,
        "recommended": None if choice.taken is None else _data(choice.taken),
        "nearest": None if choice.nearest is None else _data(choice.nearest),
        "leader": None if choice.leader is None else _data(choice.leader),
        "equals": len(choice.equals),
        "why": [*_why(advice)],
        "thin": list(advice.thin),
        "failed": list(advice.failed),
        "tasks": advice.tasks,
        "sources": advice.sources,
        "measured": advice.measured,
        "best_of_each": [_data(one) for one in advice.each],
        "candidates": [_data(one) for one in choice.candidates],
    }


def _data(one: Candidate) -> dict[str, Any]:
    index = one.index
    return {
        "architecture": one.architecture,
        "hidden_size": one.hidden,
        "backend": one.backend,
        "precision": one.precision,
        "kernels": one.kernels or None,
        "latency_ms": dict(one.estimate.latency_ms),
        "size_bytes": one.estimate.size_bytes,
        "parameters": one.estimate.parameters,
        "int8_mac_share": one.estimate.mac_share,
        "loss": None if index is None else {**_range(index), "tasks": {k: _range(v) for k, v in index.tasks.items()}},
        "train_ratio": one.train_ratio,
        "measured": one.estimate.measured,
        "stable": one.estimate.stable,
        "pareto": one.front,
        "misses": list(one.missed),
        "thin": [*one.estimate.thin, *(() if index is None else index.thin)],
    }


def _range(index: Index) -> dict[str, float]:
    return {"median": index.median, "low": index.low, "high": index.high}


def _why(advice: Advice) -> Iterator[str]:
    choice, question = advice.choice, advice.question
    stat = question.stat
    within = sum(not one.missed for one in choice.candidates)
    limits = [f"{name} {milliseconds(value)}" for name, value in question.latency.items()]
    limits += [] if question.size_bytes is None else [size(question.size_bytes)]
    asked = f"{question.steps} steps, batch {question.batch}, {question.threads} thread{'s' * (question.threads > 1)}"
    kept = (
        f"{within} of {len(choice.candidates)} candidates keep {' and '.join(limits)}"
        if limits
        else (f"{len(choice.candidates)} candidates, and no limits")
    )
    yield f"{kept}, at {asked}"
    taken, leader = choice.taken, choice.leader
    if taken is None or leader is None or taken.index is None or leader.index is None:
        one = choice.nearest
        if one is not None:
            yield f"the nearest is {one.name}: {'; '.join(one.missed)}"
        return
    how = "measured" if taken.estimate.measured else "estimated"
    size_told = size(taken.estimate.size_bytes)
    yield f"{stat} {milliseconds(taken.latency(stat))} and {size_told}, {how}"
    if taken.key == leader.key:
        yield f"no other within the limits loses less: {_loss(taken.index)} of the reference's loss"
    else:
        times = (leader.latency(stat) or 0.0) / (taken.latency(stat) or 1.0)
        yield (
            f"the least loss within the limits has {leader.name}: {_loss(leader.index)} of the reference's, against "
            f"{_loss(taken.index)}"
        )
        yield (
            f"runs of few seeds do not tell the two apart: {len(choice.equals)} candidates count as equals of the "
            f"least, and the fastest of them is taken, {times:.2g} times as fast as that one"
        )
    if taken.precision == "int8" and taken.estimate.mac_share is not None and taken.estimate.mac_share < 0.5:
        yield f"int8 here is mostly how weights are stored: {taken.estimate.mac_share:.0%} of the work is int8"


def _row(one: Candidate, stat: str) -> tuple[str, ...]:
    kernels = f" {one.kernels}" if one.kernels else ""
    index = one.index
    return (
        "*" if one.front else "",
        one.architecture,
        str(one.hidden),
        one.precision,
        f"{one.backend}{kernels}",
        milliseconds(one.latency(stat)) + ("" if one.estimate.measured else " ≈"),
        size(one.estimate.size_bytes),
        _DASH if index is None else f"{index.median:.3f}",
        _DASH if index is None else f"{index.low:.3f} to {index.high:.3f}",
        _DASH if one.train_ratio is None else f"x{one.train_ratio:.2f}",
        "; ".join(one.missed),
    )


def _legend(advice: Advice) -> str:
    told = "; ".join(f"{task.name} ({task.what}, by {task.metric})" for task in advice.tasks)
    return (
        "loss: over that of the study's GRU, below 1 is better; runs: the smallest and the largest of the seeds; "
        "training: the time of a step over the GRU's of as many parameters; ≈ was not measured at this size on a "
        f"machine like this one. Tasks: {told}."
    )


def _loss(index: Index) -> str:
    return f"{index.median:.3f} ({index.low:.3f} to {index.high:.3f})"


def _some(count: int) -> str:
    return f"{count} candidates" if count <= FRONT else f"{FRONT} of {count} candidates, evenly over latency"


def _spread(front: list[Candidate]) -> list[Candidate]:
    """At most ``FRONT`` of them, both ends among them."""
    if len(front) <= FRONT:
        return front
    return [front[round(place * (len(front) - 1) / (FRONT - 1))] for place in range(FRONT)]


def _next(one: Candidate) -> str:
    quantized = ""
    if one.precision == "int8":
        quantized = f", deploykit quantize --int8{' --kernels fused' if one.kernels == 'fused' else ''}"
    return (
        f"build it with deploykit.models.family.encoder({one.architecture!r})(features, {one.hidden}), train it, then "
        f"deploykit export{quantized}, deploykit bench --backend {one.backend}."
    )
