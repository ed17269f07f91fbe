"""What a candidate costs: latency and size between the sizes that were measured.

Latency is linear in the number of steps between two measured ones, as a recurrence is, and in the logarithms of hidden
size and time between two hidden sizes, as work grows by a power of the width. A file's size is between two hidden sizes
by the same rule.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median

from deploykit.advise.evidence import STATS, Cost, Evidence, same_machine

Variant = tuple[str, str, str]
#: An architecture with backend, precision and kernels.
Cell = tuple[str, Variant]
#: Batch size, threads, features and outputs.
Kind = tuple[int, int, int, int]

#: How many parameters an architecture of a hidden size has more than the one that was measured.
More = Callable[[str, int], int]


@dataclass(frozen=True)
class Estimate:
    """``latency_ms`` by statistic and the file's size in bytes. ``measured``: this very size and number of steps was
    timed, on the machine that runs this; else ``thin`` says what was not."""

    latency_ms: Mapping[str, float]
    size_bytes: int
    parameters: int
    measured: bool = False
    stable: bool = True
    mac_share: float | None = None
    thin: tuple[str, ...] = ()


@dataclass(frozen=True)
class Group:
    """The costs of one machine, at one batch size, number of features, of outputs and of threads."""

    costs: tuple[Cost, ...] = ()
    machine: Mapping[str, object] = field(default_factory=dict)
    here: bool = False

    @property
    def kind(self) -> Kind:
        """Batch size, threads, features and outputs."""
        first = self.costs[0]
        return first.batch, first.threads, first.features, first.outputs

    def cells(self) -> dict[Cell, dict[int, dict[int, Cost]]]:
        """By cell, the costs by hidden size and number of steps."""
        found: dict[Cell, dict[int, dict[int, Cost]]] = {}
        for cost in self.costs:
            cell = (cost.architecture, cost.variant)
            found.setdefault(cell, {}).setdefault(cost.hidden, {})[cost.steps] = cost
        return found


class Costs:
    """Estimates from a grid of measurements, corrected by those that were taken here."""

    def __init__(self, grid: Group, own: Sequence[Cost] = (), more: More | None = None) -> None:
        """``own`` was measured here; ``more`` says how many parameters a network has more than the grid's."""
        self._grid = grid.cells()
        self._here = grid.here
        self._own = {(cost.architecture, cost.hidden, cost.steps, cost.variant): cost for cost in own}
        self._factors = self._compare(own)
        self._more = more

    def cells(self) -> list[Cell]:
        """Every architecture with each way to run it that something is known of."""
        own = dict.fromkeys((name, variant) for name, _, _, variant in self._own)
        return list(dict.fromkeys([*self._grid, *own]))

    def hidden(self, cell: Cell) -> list[int]:
        """The hidden sizes that the cell was measured at."""
        own = {hidden for name, hidden, _, variant in self._own if (name, variant) == cell}
        return sorted(own | self._grid.get(cell, {}).keys())

    def estimate(self, cell: Cell, hidden: int, steps: int) -> Estimate | None:
        """None where nothing is known at that size, or between."""
        name, variant = cell
        own = self._own.get((name, hidden, steps, variant))
        if own is not None:
            return _exact(own, here=True)
        found = self._resized(self._between(cell, hidden, steps), cell, hidden)
        if found is None or not self._own:
            return found
        factor = self._factors.get(variant)
        if factor is None:
            return None  # it does not run here, or was not timed: another machine's number would stand beside ours
        said = f"times of another machine, x{factor:.2f} as those measured on both"
        times = {stat: value * factor for stat, value in found.latency_ms.items()}
        return replace(found, latency_ms=times, thin=(*found.thin, said), measured=False)

    def _resized(self, found: Estimate | None, cell: Cell, hidden: int) -> Estimate | None:
        """With the parameters that the network has more: 4 bytes each in float32, 1 in int8."""
        if found is None or self._more is None:
            return found
        architecture, (_, precision, _) = cell
        more = self._more(architecture, hidden)
        size = found.size_bytes + more * (1 if precision == "int8" else 4)
        return replace(found, size_bytes=size, parameters=found.parameters + more, measured=False)

    def _compare(self, own: Iterable[Cost]) -> dict[Variant, float]:
        """By variant, this machine's time over the grid's: the median over what was timed on both."""
        ratios: dict[Variant, list[float]] = {}
        for cost in own:
            known = self._between((cost.architecture, cost.variant), cost.hidden, cost.steps)
            if known is not None and "p50" in known.latency_ms and "p50" in cost.latency_ms:
                ratios.setdefault(cost.variant, []).append(cost.latency_ms["p50"] / known.latency_ms["p50"])
        return {variant: median(found) for variant, found in ratios.items()}

    def _between(self, cell: Cell, hidden: int, steps: int) -> Estimate | None:
        sizes = self._grid.get(cell, {})
        if hidden in sizes:
            return self._at(sizes[hidden], steps)
        low = max((size for size in sizes if size < hidden), default=None)
        high = min((size for size in sizes if size > hidden), default=None)
        if low is None or high is None:
            return None
        one, other = self._at(sizes[low], steps), self._at(sizes[high], steps)
        share = math.log(hidden / low) / math.log(high / low)
        said = f"hidden size {hidden} lies between the measured {low} and {high}"
        return Estimate(
            {
                stat: _power(one.latency_ms[stat], other.latency_ms[stat], share)
                for stat in STATS
                if stat in one.latency_ms and stat in other.latency_ms
            },
            round(_power(one.size_bytes, other.size_bytes, share)),
            round(_power(one.parameters, other.parameters, share)),
            stable=one.stable and other.stable,
            mac_share=one.mac_share,
            thin=tuple(dict.fromkeys((said, *one.thin, *other.thin))),
        )

    def _at(self, rows: Mapping[int, Cost], steps: int) -> Estimate:
        """At one hidden size: linear in the steps, beyond the ends on the slope of the nearest two."""
        if steps in rows:
            return _exact(rows[steps], here=self._here)
        places = sorted(rows)
        inside = places[0] < steps < places[-1]
        said = f"{steps} steps lie {'between' if inside else 'beyond'} those measured ({', '.join(map(str, places))})"
        if len(places) == 1:
            only = rows[places[0]]
            scaled = {stat: value * steps / places[0] for stat, value in only.latency_ms.items()}
            return Estimate(scaled, only.size_bytes, only.parameters, mac_share=only.mac_share, thin=(said,))
        after = next((place for place in places[1:] if place >= steps), places[-1])
        before = places[places.index(after) - 1]
        low, high = rows[before], rows[after]
        share = (steps - before) / (after - before)
        times = {
            stat: max(low.latency_ms[stat] * (1 - share) + high.latency_ms[stat] * share, 0.0)
            for stat in STATS
            if stat in low.latency_ms and stat in high.latency_ms
        }
        stable = low.stable and high.stable
        thin = () if inside else (said,)
        return Estimate(times, low.size_bytes, low.parameters, stable=stable, mac_share=low.mac_share, thin=thin)


def groups(evidences: Iterable[Evidence], here: Mapping[str, object]) -> list[Group]:
    """All costs, apart by machine and kind."""
    found: list[Group] = []
    for one in evidences:
        apart: dict[Kind, list[Cost]] = {}
        for cost in one.costs:
            apart.setdefault((cost.batch, cost.threads, cost.features, cost.outputs), []).append(cost)
        alike = same_machine(one.machine, here)
        found += [Group(tuple(rows), one.machine, alike) for rows in apart.values()]
    return found


def _exact(cost: Cost, *, here: bool) -> Estimate:
    return Estimate(
        cost.latency_ms,
        cost.size_bytes,
        cost.parameters,
        measured=here,
        stable=cost.stable,
        mac_share=cost.mac_share,
        thin=() if cost.stable else ("its latency was not stable",),
    )


def _power(one: float, other: float, share: float) -> float:
    return math.exp((1 - share) * math.log(one) + share * math.log(other))
