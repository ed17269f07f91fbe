"""How good a candidate is expected to be, from runs of other sizes: an index, its range, and how thin that is.

The index is a run's loss over the median loss of a reference: the GRU of the task's own study. The loss is the metric
where lower is better, and 1 minus it where it is a share to be high. 1 is as good as that GRU, and 0.95 is 5 % less
loss. Several tasks' indices are joined by their geometric mean, as ratios are (Fleming and Wallace, "How Not To Lie
With Statistics", CACM 29, 1986).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from deploykit.advise.evidence import Evidence, Quality, TaskInfo

GRU = "gru"
#: Window lengths within this factor of each other are taken as alike.
NEAR = 1.5
#: Hidden sizes within this factor of each other, and numbers of parameters, are taken as equal.
CLOSE = 1.2
#: Fewer seeds than this are called thin.
SEEDS = 3


@dataclass(frozen=True)
class Index:
    """A median with the smallest and largest of the seeds. ``thin``: sentences on what it does not rest on."""

    median: float
    low: float
    high: float
    thin: tuple[str, ...] = ()
    #: Of several tasks joined, each one's own.
    tasks: Mapping[str, Index] = field(default_factory=dict)

    def scaled(self, factor: float, thin: Iterable[str] = ()) -> Index:
        """Times ``factor``, with more to be said of it."""
        return Index(self.median * factor, self.low * factor, self.high * factor, (*self.thin, *thin), self.tasks)

    def meets(self, other: Index) -> bool:
        """Whether the two ranges overlap, so that no order is seen."""
        return self.low <= other.high and other.low <= self.high


class Judge:
    """Expected quality of any architecture and size, from all runs that are known of some tasks."""

    def __init__(self, evidences: Sequence[Evidence], tasks: Sequence[TaskInfo]) -> None:
        self._tasks = [_TaskJudge(task, [row for one in evidences for row in one.qualities]) for task in tasks]

    def index(self, architecture: str, hidden: int, steps: int, precision: str) -> Index | None:
        """None where no run of the architecture is known for any of the tasks."""
        found = {one.task.name: one.index(architecture, hidden, steps, precision) for one in self._tasks}
        known = {name: index for name, index in found.items() if index is not None}
        if not known:
            return None
        thin = dict.fromkeys(said for index in known.values() for said in index.thin)
        middle, least, most = (
            _mean([getattr(index, end) for index in known.values()]) for end in ("median", "low", "high")
        )
        return Index(middle, least, most, tuple(thin), known)

    def lacking(self, index: Index) -> tuple[str, ...]:
        """The tasks that an index does not rest on, though others do."""
        return tuple(one.task.name for one in self._tasks if one.task.name not in index.tasks)

    def train_ratio(self, architecture: str) -> float | None:
        """The time of a training step over the GRU's of as many parameters; the median over the tasks."""
        found = [ratio for one in self._tasks if (ratio := one.train_ratio(architecture)) is not None]
        return median(found) if found else None


class _TaskJudge:
    def __init__(self, task: TaskInfo, rows: Iterable[Quality]) -> None:
        self.task = task
        self._rows = [row for row in rows if row.task == task.name and row.metrics]
        self._anchor = self._reference()

    def _reference(self) -> Quality | None:
        """The GRU of the budget that most architectures were trained at."""
        budgets = [row for row in self._rows if row.kind == "budget"]
        grus = [row for row in budgets if row.architecture == GRU]

        def company(gru: Quality) -> int:
            return len({row.architecture for row in budgets if _alike(row.parameters, gru.parameters, CLOSE)})

        return max(grus, key=company, default=None)

    def index(self, architecture: str, hidden: int, steps: int, precision: str) -> Index | None:
        if self._anchor is None:
            return None
        own = self._curve(architecture)
        if not own:
            return None
        found = self._of_size(architecture, own, hidden)
        if found is None:
            return None
        factor, thin = self._of_steps(architecture, steps)
        found = found.scaled(factor, thin)
        if precision == "int8":
            share, thin = self._of_int8(architecture)
            found = found.scaled(share, thin)
        return found

    def train_ratio(self, architecture: str) -> float | None:
        anchor = self._anchor.parameters if self._anchor else 0
        return next(
            (
                row.train_ratio
                for row in self._rows
                if row.kind == "budget" and row.architecture == architecture and _alike(row.parameters, anchor, CLOSE)
            ),
            None,
        )

    def _loss(self, value: float) -> float:
        return 1 - value if self.task.higher_is_better else value

    def _ratios(self, row: Quality, other: Quality) -> list[float]:
        """Each run's loss over the median of ``other``'s, so that the spread is the row's own."""
        base = median(map(self._loss, other.metrics.values()))
        return [self._loss(value) / base for value in row.metrics.values()]

    def _curve(self, architecture: str) -> list[tuple[Quality, Index]]:
        """The architecture's runs of all hidden sizes, smallest first, as indices."""
        assert self._anchor is not None
        rows = [row for row in self._rows if row.kind == "budget" and row.architecture == architecture]
        curve = []
        for row in sorted(rows, key=lambda row: row.hidden):
            ratios = self._ratios(row, self._anchor)
            seeds = len(ratios)
            thin = () if seeds >= SEEDS else (f"{seeds} run{'s' * (seeds > 1)} of {architecture} on {self.task.name}",)
            curve.append((row, Index(median(ratios), min(ratios), max(ratios), thin)))
        return curve

    def _of_size(self, architecture: str, own: Sequence[tuple[Quality, Index]], hidden: int) -> Index | None:
        """None for what is smaller than all that was trained, where nothing tells what that costs."""
        row, index = own[0]
        gru = self._curve(GRU)
        if len(own) == 1 and len(gru) < 2 and hidden < row.hidden and not _alike(row.hidden, hidden, CLOSE):
            return None
        if len(own) > 1 or len(gru) < 2 or _alike(row.hidden, hidden, CLOSE):
            return self._along(own, hidden)
        # So many times as wide as it was trained: what that is worth is known of the GRU.
        anchor = next(row for row, _ in gru if row is self._anchor)
        here, there = (self._along(gru, round(anchor.hidden * size / row.hidden)) for size in (hidden, row.hidden))
        said = (
            f"{architecture} on {self.task.name} was trained at hidden size {row.hidden} alone, and is taken to gain "
            "and lose by size as the GRU does"
        )
        factor = here.median / there.median
        # Whoever is smaller than all that was trained is never taken to be better for it.
        return index.scaled(max(factor, 1.0) if hidden < row.hidden else factor, (said,))

    def _along(self, curve: Sequence[tuple[Quality, Index]], hidden: int) -> Index:
        """Between the two nearest sizes, linear in the logarithm of the hidden size; beyond them ``_beyond``."""
        sizes = [row.hidden for row, _ in curve]
        if hidden <= sizes[0] or hidden >= sizes[-1]:
            return self._beyond(curve, hidden)
        after = next(place for place, size in enumerate(sizes) if size >= hidden)
        (low, one), (high, other) = curve[after - 1], curve[after]
        share = math.log(hidden / low.hidden) / math.log(high.hidden / low.hidden)
        median_, least, most = (
            (1 - share) * getattr(one, end) + share * getattr(other, end) for end in ("median", "low", "high")
        )
        return Index(median_, least, most, tuple(dict.fromkeys((*one.thin, *other.thin))))

    def _beyond(self, curve: Sequence[tuple[Quality, Index]], hidden: int) -> Index:
        """Level upwards, as nothing is known of more. Downwards on the slope of the two smallest, never a gain: level
        would praise what is too small to be any good."""
        below = hidden <= curve[0][0].hidden
        row, index = curve[0] if below else curve[-1]
        if _alike(row.hidden, hidden, CLOSE):
            return index
        side = "under" if below else "over"
        said = f"no {row.architecture} on {self.task.name} was trained at a hidden size {side} {row.hidden}"
        if not below or len(curve) < 2:
            return index.scaled(1.0, (said,))
        other, higher = curve[1]
        slope = math.log(index.median / higher.median) / math.log(row.hidden / other.hidden)
        return index.scaled((hidden / row.hidden) ** min(slope, 0.0), (said,))

    def _of_steps(self, architecture: str, steps: int) -> tuple[float, tuple[str, ...]]:
        """What another number of steps than the task's changes against the GRU's, where windows were swept."""
        window = self.task.window
        if _alike(steps, window, NEAR):
            return 1.0, ()
        ratios = self._by_window(architecture)
        if architecture == GRU and ratios:
            return 1.0, ()
        if not ratios:
            return 1.0, (f"{architecture} on {self.task.name} was trained at {window} steps, not at {steps}",)
        factor = _level(ratios, steps) / _level(ratios, window)
        if _alike(steps, min(ratios, key=lambda one: abs(math.log(one / steps))), NEAR):
            return factor, ()
        ends = min(ratios), max(ratios)
        if ends[0] <= steps <= ends[1]:
            return factor, ()
        return factor, (f"{architecture} on {self.task.name} was trained at {ends[0]} to {ends[1]} steps",)

    def _by_window(self, architecture: str) -> dict[int, float]:
        """The architecture's loss over the GRU's at each window that was swept."""
        rows = {(row.architecture, row.window): row for row in self._rows if row.kind == "window"}
        return {
            window: median(self._ratios(row, rows[GRU, window]))
            for (name, window), row in sorted(rows.items(), key=lambda item: item[0][1])
            if name == architecture and (GRU, window) in rows
        }

    def _of_int8(self, architecture: str) -> tuple[float, tuple[str, ...]]:
        """What int8 costs: the median of int8's loss over float's, seed by seed, of all of the architecture's sizes."""
        found = [
            self._loss(row.int8[seed]) / self._loss(row.metrics[seed])
            for row in self._rows
            if row.architecture == architecture
            for seed in row.int8.keys() & row.metrics.keys()
        ]
        if not found:
            return 1.0, (f"int8 of {architecture} was not judged on {self.task.name}",)
        return median(found), ()


def _alike(one: float, other: float, factor: float) -> bool:
    return max(one, other) <= factor * min(one, other)


def _level(points: Mapping[int, float], at: int) -> float:
    """Between the nearest points, linear in the logarithm of the steps; level beyond the ends."""
    places = sorted(points)
    if at <= places[0] or at >= places[-1]:
        return points[places[0] if at <= places[0] else places[-1]]
    after = next(place for place in places if place >= at)
    before = places[places.index(after) - 1]
    share = math.log(at / before) / math.log(after / before)
    return (1 - share) * points[before] + share * points[after]


def _mean(values: Sequence[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))
