"""Few seeds, honest words: medians, ranges and ratios paired by seed, and no winner where two ranges meet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

Order = Literal["below", "above", "unclear"]


@dataclass(frozen=True)
class Interval:
    """A median between two bounds; the bounds are None where a single number gives none."""

    median: float
    low: float | None
    high: float | None

    def against(self, value: float) -> Order:
        """On which side of ``value`` the whole interval lies; ``unclear`` where it includes it or has no bounds."""
        if self.low is None or self.high is None or self.low <= value <= self.high:
            return "unclear"
        return "below" if self.high < value else "above"

    def within(self, low: float, high: float) -> bool | None:
        """Whether all of it lies in ``low`` to ``high`` (True) or none of it (False); None where that is not clear."""
        if self.low is None or self.high is None:
            return None
        if low <= self.low and self.high <= high:
            return True
        return False if self.high < low or self.low > high else None

    def inverse(self) -> Interval:
        """Of the other over this one, where it is of this over the other."""
        bounds = (None if self.high is None else 1 / self.high, None if self.low is None else 1 / self.low)
        return Interval(1 / self.median, *bounds)

    def told(self, digits: int = 2) -> str:
        """``1.07 [1.02, 1.11]``."""
        if self.low is None or self.high is None:
            return f"{self.median:.{digits}f} (one run)"
        return f"{self.median:.{digits}f} [{self.low:.{digits}f}, {self.high:.{digits}f}]"


def spread(values: Sequence[float]) -> Interval | None:
    """Median and range; None without any value."""
    if not values:
        return None
    return Interval(median(values), min(values), max(values)) if len(values) > 1 else Interval(values[0], None, None)


def paired_ratio(one: Mapping[int, float], other: Mapping[int, float]) -> Interval | None:
    """``one`` over ``other``, seed by seed: median and range over the seeds that both have; None where they share none.

    Seeds pair what shares them: the split's order of batches, though not the weights, whose shapes differ.
    """
    return spread([one[seed] / other[seed] for seed in sorted(one.keys() & other.keys()) if other[seed]])


def paired_difference(one: Mapping[int, float], other: Mapping[int, float]) -> Interval | None:
    """``one`` minus ``other``, seed by seed, like ``paired_ratio``."""
    return spread([one[seed] - other[seed] for seed in sorted(one.keys() & other.keys())])


def separated(one: Mapping[int, float], other: Mapping[int, float]) -> Order:
    """Whether every run of ``one`` lies below or above every run of ``other``; ``unclear`` where their ranges meet.

    With three seeds each, two equals come apart like this in one of ten cases, with five in one of 126: an order seen
    is a hint, and an order that is not seen is no proof that there is none. Fewer than two seeds each show nothing.
    """
    mine, theirs = list(one.values()), list(other.values())
    if len(mine) < 2 or len(theirs) < 2:
        return "unclear"
    if max(mine) < min(theirs):
        return "below"
    return "above" if min(mine) > max(theirs) else "unclear"


def comparison(one: Mapping[int, float], other: Mapping[int, float], higher_is_better: bool) -> str:
    """What the runs allow to say of ``one``: ``better``, ``worse``, or that no difference was seen."""
    if len(one) < 2 or len(other) < 2:
        return "too few runs to say"
    side = separated(one, other)
    if side == "unclear":
        return "no difference seen"
    return "better" if (side == "above") == higher_is_better else "worse"


def best(scores: Mapping[str, Mapping[int, float]], higher_is_better: bool) -> str | None:
    """The name whose every run is better than every other's; None where there is none."""
    for name, mine in scores.items():
        others = [theirs for other, theirs in scores.items() if other != name]
        if others and all(comparison(mine, theirs, higher_is_better) == "better" for theirs in others):
            return name
    return None
