"""Studies of one task at several budgets: the widest is the task's own, the others show what size is worth."""

from __future__ import annotations

from collections.abc import Sequence

from .results import Results
from .statistics import comparison, paired_ratio, spread


def by_task(studies: Sequence[Results]) -> dict[str, tuple[Results, tuple[Results, ...]]]:
    """For each task, in the order given, the study of most architectures, and the others, smallest budget first."""
    found: dict[str, list[Results]] = {}
    for one in studies:
        found.setdefault(one.task, []).append(one)
    return {task: _apart(group) for task, group in found.items()}


def rows(own: Results, others: Sequence[Results]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a table: an architecture each that all budgets have, a column for each budget.

    The last column holds the largest budget's runs against the smallest's.
    """
    studies = sorted((own, *others), key=_budget)
    names = [name for name in own.architectures if all(name in one.architectures for one in studies)]
    header = ["architecture", *(f"{_budget(one):,}" for one in studies), "largest over smallest"]
    return header, [[name, *(_cell(one, name) for one in studies), _gain(studies, name)] for name in names]


def _apart(group: Sequence[Results]) -> tuple[Results, tuple[Results, ...]]:
    own = max(group, key=lambda one: len(one.architectures))
    return own, tuple(sorted((one for one in group if one is not own), key=_budget))


def _budget(results: Results) -> int:
    return int(results.settings.get("budget", 0))


def _cell(results: Results, name: str) -> str:
    found = spread(list(results.metrics("family", name).values()))
    hidden = next((one.hidden for one in results.of("family", name).values()), 0)
    return "–" if found is None else f"{found.told(3)} (hidden {hidden})"


def _gain(studies: Sequence[Results], name: str) -> str:
    small, large = (one.metrics("family", name) for one in (studies[0], studies[-1]))
    ratio = paired_ratio(large, small)
    return "–" if ratio is None else f"{ratio.told(3)}: {comparison(large, small, studies[0].higher_is_better)}"
