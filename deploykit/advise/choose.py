"""Weighs candidates: which keep the limits, which are on the Pareto front, and which of them to take.

The choice. Of the candidates within all limits the one with the smallest quality index leads. Whoever's range overlaps
with the leader's, and whose index is no more than ``EQUAL`` times its, is its equal, as a few seeds tell no order; of
these equals the one with the lowest latency is taken, the smaller file where latencies are level. The front is of
index, latency and size: who is on it is beaten by nobody in all three (Pareto; "not dominated").
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from deploykit.advise.cost import Cell, Costs, Estimate
from deploykit.advise.quality import Index, Judge
from deploykit.advise.question import Question

#: Hidden sizes that are weighed, as far as they lie within the measured ones.
HIDDEN = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
#: Latencies and sizes within this factor are no reason to prefer one of two.
LEVEL = 1.05
#: Ranges of few seeds are wide, and those that are scaled wider: more loss than this is never given away for speed.
EQUAL = 1.03


@dataclass(frozen=True)
class Candidate:
    """One network as it would be deployed. ``missed``: the limits that it does not keep, in words.

    ``index`` is None where nothing is known of its quality. Neither that nor an index over fewer tasks than the others'
    (``judged`` is False) compares with theirs, which keeps it from being recommended and off the front.
    """

    architecture: str
    hidden: int
    backend: str
    precision: str
    kernels: str
    estimate: Estimate
    index: Index | None
    train_ratio: float | None = None
    judged: bool = True
    missed: tuple[str, ...] = ()
    front: bool = False

    @property
    def cell(self) -> Cell:
        """Architecture with backend, precision and kernels."""
        return self.architecture, (self.backend, self.precision, self.kernels)

    @property
    def key(self) -> tuple[str, int, str, str, str]:
        """What tells it from the others."""
        return self.architecture, self.hidden, self.backend, self.precision, self.kernels

    @property
    def network(self) -> tuple[str, int]:
        """Architecture and hidden size: what has to be trained, and built to be measured."""
        return self.architecture, self.hidden

    @property
    def name(self) -> str:
        """``gru 64, int8 on ort (fused kernels)``."""
        kernels = f" ({self.kernels} kernels)" if self.kernels else ""
        return f"{self.architecture} {self.hidden}, {self.precision} on {self.backend}{kernels}"

    def latency(self, stat: str) -> float | None:
        """That statistic in milliseconds."""
        return self.estimate.latency_ms.get(stat)


@dataclass(frozen=True)
class Choice:
    """``candidates``: all that were weighed. ``nearest`` is there where none keeps the limits and ``taken`` is None.

    ``leader`` has the best index within the limits, ``equals`` are those whose runs overlap with its own.
    """

    candidates: tuple[Candidate, ...]
    taken: Candidate | None
    leader: Candidate | None
    equals: tuple[Candidate, ...]
    nearest: Candidate | None


def weigh(question: Question, costs: Costs, judge: Judge, causal: Mapping[str, bool]) -> Choice:
    """Every candidate that something is known of, and the choice among them."""
    found = [*_candidates(question, costs, judge, causal)]
    front = pareto([(one, point) for one in found if one.judged and (point := _point(one, question.stat)) is not None])
    candidates = tuple(replace(one, front=one.key in front) for one in found)
    able = [one for one in candidates if not one.missed and _point(one, question.stat) is not None]
    if not able:
        return Choice(candidates, None, None, (), _nearest(candidates, question))
    leader = min(able, key=lambda one: (_index(one).median, one.latency(question.stat)))
    equals = _equals(able, leader)
    return Choice(candidates, _cheapest(equals, question.stat), leader, tuple(equals), None)


def pareto(points: Sequence[tuple[Candidate, tuple[float, ...]]]) -> set[tuple[str, int, str, str, str]]:
    """Keys of those that no other matches in every number while being better in one."""

    def beaten(mine: tuple[float, ...]) -> bool:
        return any(all(a <= b for a, b in zip(theirs, mine, strict=True)) and theirs != mine for _, theirs in points)

    return {one.key for one, mine in points if not beaten(mine)}


def best_of_each(choice: Choice, stat: str) -> list[Candidate]:
    """One candidate of each architecture: what would be taken of it alone, or what misses the limits least."""
    found = []
    for name in dict.fromkeys(one.architecture for one in choice.candidates):
        own = [one for one in choice.candidates if one.architecture == name and _point(one, stat) is not None]
        able = [one for one in own if not one.missed]
        if able:
            leader = min(able, key=lambda one: _index(one).median)
            found.append(_cheapest(_equals(able, leader), stat))
        elif own:
            found.append(min(own, key=lambda one: (len(one.missed), one.latency(stat))))
    return sorted(found, key=lambda one: (bool(one.missed), _index(one).median))


def _candidates(question: Question, costs: Costs, judge: Judge, causal: Mapping[str, bool]) -> Iterable[Candidate]:
    for cell in costs.cells():
        architecture, (backend, precision, kernels) = cell
        if not _wanted(question, cell, causal):
            continue
        known = costs.hidden(cell)
        within = [size for size in HIDDEN if known[0] <= size <= known[-1]] if known else []
        for hidden in sorted({*within, *known}):
            estimate = costs.estimate(cell, hidden, question.steps)
            if estimate is None or not estimate.latency_ms:
                continue
            # Weights stored as int8 that are made float before they are used answer as rounded weights do: what int8
            # was judged to cost is the most that they can.
            index = judge.index(architecture, hidden, question.steps, precision)
            unjudged = tuple(_unjudged(index, judge))
            yield Candidate(
                architecture,
                hidden,
                backend,
                precision,
                kernels,
                estimate,
                index,
                judge.train_ratio(architecture),
                not unjudged,
                (*_missed(question, estimate), *unjudged),
            )


def _wanted(question: Question, cell: Cell, causal: Mapping[str, bool]) -> bool:
    architecture, (backend, precision, _) = cell
    return (
        (not question.architectures or architecture in question.architectures)
        and (not question.backends or backend in question.backends)
        and (not question.precisions or precision in question.precisions)
        and (not question.causal or causal.get(architecture, False))
    )


def _missed(question: Question, estimate: Estimate) -> Iterable[str]:
    from deploykit.units import milliseconds, size

    for stat, limit in question.latency.items():
        value = estimate.latency_ms.get(stat)
        if value is None:
            yield f"{stat} is not known: too few runs were timed"
        elif value > limit:
            yield f"{stat} {milliseconds(value)}, over {milliseconds(limit)}"
    if question.size_bytes is not None and estimate.size_bytes > question.size_bytes:
        yield f"{size(estimate.size_bytes)}, over {size(question.size_bytes)}"


def _unjudged(index: Index | None, judge: Judge) -> Iterable[str]:
    """What of the tasks that were asked for nothing is known of."""
    if index is None:
        yield "no run of it is known"
    elif lacking := judge.lacking(index):
        yield f"not judged on {', '.join(lacking)}"


def _point(one: Candidate, stat: str) -> tuple[float, float, float] | None:
    latency = one.latency(stat)
    if one.index is None or latency is None:
        return None
    return one.index.median, latency, float(one.estimate.size_bytes)


def _index(one: Candidate) -> Index:
    assert one.index is not None
    return one.index


def _equals(able: Sequence[Candidate], leader: Candidate) -> list[Candidate]:
    """The leader, and whoever no run tells from it, as long as the medians are close."""
    best = _index(leader)
    return [one for one in able if _index(one).meets(best) and _index(one).median <= EQUAL * best.median]


def _cheapest(equals: Sequence[Candidate], stat: str) -> Candidate:
    """The lowest latency; among those level with it the smallest file, then the best index."""
    times = {one.key: one.latency(stat) or 0.0 for one in equals}
    least = min(times.values())
    level = [one for one in equals if times[one.key] <= LEVEL * least]
    return min(level, key=lambda one: (one.estimate.size_bytes, _index(one).median))


def _nearest(candidates: Sequence[Candidate], question: Question) -> Candidate | None:
    """What exceeds the limits by the smallest factor, the largest of its factors counting."""

    def excess(one: Candidate) -> float:
        factors = [(one.latency(stat) or float("inf")) / limit for stat, limit in question.latency.items()]
        if question.size_bytes is not None:
            factors.append(one.estimate.size_bytes / question.size_bytes)
        return max(factors, default=float("inf"))

    return min((one for one in candidates if one.judged), key=excess, default=None)
