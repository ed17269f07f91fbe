"""Finds the steps of an unrolled loop and what corresponds to what in one step and the next."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from deploykit.export._loops._graph import attribute, attribute_key, constant_of, dims_of, int_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Fewer repetitions than this are no evidence of a loop.
_FEWEST = 3


@dataclass(frozen=True)
class Family:
    """Elements of one tensor along one axis, in the order in which the loop takes them."""

    source: ir.Value
    axis: int
    indices: tuple[int, ...]
    values: tuple[ir.Value, ...]

    @property
    def reverse(self) -> bool:
        return self.indices[0] > self.indices[-1]


@dataclass(frozen=True)
class Constants:
    """Constants of which step k has ``first + k * stride``."""

    first: NDArray[Any]
    stride: int | float


@dataclass(frozen=True)
class Computed:
    """A value that a step computes from the step's number alone: a node without a place in any step."""

    node: ir.Node
    index: int
    inputs: tuple[Varying | ir.Value | None, ...]


Varying = Constants | Computed


@dataclass(frozen=True)
class Carried:
    """An input that is, in each step but the first, ``update`` of the step before."""

    update: ir.Value
    initial: ir.Value


@dataclass
class Steps:
    """The nodes of each step, in the graph's order, and the picks (by family) that they begin with."""

    count: int
    of: dict[ir.Value, int]
    nodes: list[list[ir.Node]]
    families: tuple[Family, ...]


@dataclass
class Match:
    """The steps ``first`` to ``last`` as repetitions of one.

    ``chains`` has, for each value of the first step, its counterparts; the last step may lack one that nobody reads.
    ``inputs`` says of each node of the first step where its inputs come from: None where from this step or outside.
    """

    first: int
    last: int
    chains: dict[ir.Value, list[ir.Value]]
    inputs: dict[ir.Node, list[Carried | Varying | None]]
    matched: set[ir.Node] = field(default_factory=set)

    @property
    def length(self) -> int:
        return self.last - self.first + 1


def picks_as_steps(graph: ir.Graph, size: int) -> list[Steps]:
    """Steps that begin where an element of a tensor is picked; a value's step is the latest that it needs.

    In the order in which the elements are first read, and in the opposite one: two loops may share the picks.
    """
    families = _families(graph, size)
    ways = families, [replace(one, indices=one.indices[::-1], values=one.values[::-1]) for one in families]
    return [steps for way in ways if (steps := _picks_as_steps(graph, way)) is not None]


def _picks_as_steps(graph: ir.Graph, families: Sequence[Family]) -> Steps | None:
    if not families:
        return None
    total = max(len(family.indices) for family in families)
    seeds = {
        value: total - len(family.indices) + position
        for family in families
        for position, value in enumerate(family.values)
    }
    of: dict[ir.Value, int] = {}
    nodes: list[list[ir.Node]] = [[] for _ in range(total)]
    later: set[ir.Value] = set()
    for node in graph:
        known = [of[value] for value in node.inputs if value in of]
        if not known and node.outputs[0] in seeds:
            of[node.outputs[0]] = seeds[node.outputs[0]]
        elif known:
            later.update(value for value in node.outputs if value in seeds)
            of.update(dict.fromkeys(node.outputs, max(known)))
            nodes[max(known)].append(node)
    roots = [family for family in families if later.isdisjoint(family.values)]
    # What is taken from a tensor that a loop makes belongs to a loop of its own, after that one.
    return Steps(total, of, nodes, tuple(roots)) if len(roots) == len(families) else _picks_as_steps(graph, roots)


def pieces_as_steps(graph: ir.Graph, size: int) -> Iterator[Steps]:
    """Steps that end where a piece of a Concat is ready; a value's step is the first that needs it."""
    for concat in graph:
        pieces = list(dict.fromkeys(concat.inputs))
        if concat.op_type != "Concat" or len(pieces) not in (size, size + 1) or len(pieces) != len(concat.inputs):
            continue
        of: dict[ir.Value, int] = {}
        nodes: list[list[ir.Node]] = []
        order = {node: position for position, node in enumerate(graph)}
        ends: Sequence[ir.Value | None] = pieces
        places = [order.get(value.producer(), -1) if value is not None else -1 for value in pieces]  # type: ignore[arg-type]
        if places == sorted(places, reverse=True):
            ends = pieces[::-1]
        for step, piece in enumerate(ends):
            needed = _ancestors(piece, of)
            nodes.append(sorted(needed, key=order.__getitem__))
            of.update({value: step for node in needed for value in node.outputs})
        yield Steps(len(pieces), of, nodes, ())


def _ancestors(value: ir.Value | None, known: dict[ir.Value, int]) -> set[ir.Node]:
    found: set[ir.Node] = set()
    todo = [value]
    while todo:
        at = todo.pop()
        node = at.producer() if at is not None and at not in known else None
        if node is not None and node not in found:
            found.add(node)
            todo.extend(node.inputs)
    return found


def _families(graph: ir.Graph, size: int) -> list[Family]:
    picks: dict[tuple[ir.Value, int], dict[int, ir.Value]] = defaultdict(dict)
    order = {node: position for position, node in enumerate(graph)}
    for node in graph:
        if node.op_type != "Gather" or node.inputs[0] is None or constant_of(node.inputs[0]) is not None:
            continue
        index = int_of(node.inputs[1])
        if index is not None and not dims_of(node.inputs[1]):
            picks[node.inputs[0], attribute(node, "axis", 0)][index] = node.outputs[0]
    found = []
    for (source, axis), values in picks.items():
        indices = sorted(values)
        if len(indices) not in (size, size - 1) or indices[-1] - indices[0] != len(indices) - 1:
            continue
        # A use that is not in `order` lies in the body of a loop that is folded already.
        places = [min((order.get(use.node, -1) for use in values[index].uses()), default=-1) for index in indices]
        rising = sum(np.sign(b - a) for a, b in itertools.pairwise(places))
        if rising < 0:
            indices.reverse()
        found.append(Family(source, axis, tuple(indices), tuple(values[index] for index in indices)))
    return found


def match(steps: Steps, first: int, last: int) -> Match | None:
    """What of step ``first`` is repeated in every step up to ``last``, or None where nothing is."""
    if last - first + 1 < _FEWEST:
        return None
    refused: set[ir.Node] = set()
    while True:
        attempt = _Attempt(steps, first, last, refused)
        found = attempt.run()
        if attempt.newly_refused:
            refused |= attempt.newly_refused
            continue
        return found if found.inputs else None


class _Attempt:
    """One pass over the steps; a node that turns out to have no counterpart is noted, for the next to leave out."""

    def __init__(self, steps: Steps, first: int, last: int, refused: set[ir.Node]) -> None:
        self.steps, self.first, self.last = steps, first, last
        self.template = [node for node in steps.nodes[first] if node not in refused]
        self.newly_refused: set[ir.Node] = set()
        self.chains: dict[ir.Value, list[ir.Value]] = {}
        for family in steps.families:
            values = family.values[first - (steps.count - len(family.values)) :] if self._covers(family) else ()
            if values:
                self.chains[values[0]] = list(values[: last - first + 1])
        self.inputs: dict[ir.Node, list[Carried | Varying | None]] = {}
        self.counterparts: dict[ir.Node, list[ir.Node]] = {}

    def _covers(self, family: Family) -> bool:
        return self.first >= self.steps.count - len(family.values)

    def run(self) -> Match:
        for step in range(self.first + 1, self.last + 1):
            self._pair(step)
            if self.newly_refused:
                break
        if not self.newly_refused:
            self._settle()
        matched = {node for nodes in self.counterparts.values() for node in nodes}
        return Match(self.first, self.last, self.chains, self.inputs, matched | set(self.inputs))

    def _pair(self, step: int) -> None:
        offset = step - self.first
        buckets: dict[tuple[Any, ...], list[ir.Node]] = defaultdict(list)
        for node in self.steps.nodes[step]:
            buckets[attribute_key(node)].append(node)
        for node in self.template:
            bucket = buckets[attribute_key(node)]
            other = next((other for other in bucket if self._fits(node, other, offset)), None)
            if other is None:
                # In the last step, what only a next step would read is missing.
                if step < self.last:
                    self.newly_refused.add(node)
                continue
            bucket.remove(other)
            self.counterparts.setdefault(node, []).append(other)
            for value, counterpart in zip(node.outputs, other.outputs, strict=False):
                self.chains.setdefault(value, [value]).append(counterpart)
            if offset == 1:
                self.inputs[node] = [self._kind(mine, its) for mine, its in zip(node.inputs, other.inputs, strict=True)]

    def _fits(self, node: ir.Node, other: ir.Node, offset: int) -> bool:
        pairs = zip(node.inputs, other.inputs, strict=True)
        if offset == 1:
            return all(self._compatible(mine, its) for mine, its in pairs)
        return all(self._expected(node, slot, its, offset) for slot, (_, its) in enumerate(pairs))

    def _compatible(self, mine: ir.Value | None, its: ir.Value | None) -> bool:
        if mine is None or its is None:
            return mine is its
        if mine in self.chains:
            return len(self.chains[mine]) > 1 and self.chains[mine][1] is its
        if mine is its or self.steps.of.get(its) == self.first:
            return True
        return its not in self.steps.of and mine not in self.steps.of and _alike(mine, its)

    def _expected(self, node: ir.Node, slot: int, its: ir.Value | None, offset: int) -> bool:
        mine, kind = node.inputs[slot], self.inputs[node][slot]
        if mine is None or its is None:
            return mine is its
        if isinstance(kind, Carried):
            known = self.chains.get(kind.update, ())
            return len(known) >= offset and known[offset - 1] is its
        if mine in self.chains:
            return len(self.chains[mine]) > offset and self.chains[mine][offset] is its
        if kind is not None:
            return its not in self.steps.of and _alike(mine, its)
        return mine is its

    def _kind(self, mine: ir.Value | None, its: ir.Value | None) -> Carried | Varying | None:
        if mine is None or its is None or mine in self.chains or mine is its:
            return None
        if self.steps.of.get(its) == self.first:
            return Carried(its, mine)
        # Replaced in _settle, where all steps are known.
        return Constants(np.zeros(0), 0)

    def _settle(self) -> None:
        for node, kinds in self.inputs.items():
            for slot, kind in enumerate(kinds):
                if isinstance(kind, Carried):
                    if len(self.chains.get(kind.update, ())) < self.last - self.first:
                        self.newly_refused.add(node)
                elif kind is not None:
                    nodes = [node, *self.counterparts[node]]
                    varying = _varying([other.inputs[slot] for other in nodes])
                    if varying is None or isinstance(varying, ir.Value):
                        self.newly_refused.add(node)
                    else:
                        kinds[slot] = varying


def _alike(mine: ir.Value, its: ir.Value) -> bool:
    a, b = constant_of(mine), constant_of(its)
    if a is not None and b is not None:
        return a.shape == b.shape and a.dtype == b.dtype and (a.dtype.kind in "if" or np.array_equal(a, b))
    left, right = mine.producer(), its.producer()
    return left is not None and right is not None and attribute_key(left) == attribute_key(right)


def _varying(given: Sequence[ir.Value | None]) -> Varying | ir.Value | None:
    """One expression for values that no step computes; the value itself where all are the same one."""
    values = [value for value in given if value is not None]
    if len(values) < len(given):
        return None
    first = values[0]
    if all(value is first for value in values):
        return first
    arrays = [array for value in values if (array := constant_of(value)) is not None]
    if arrays:
        return _progression(arrays) if len(arrays) == len(values) else None
    return _computed(values)


def _computed(values: Sequence[ir.Value]) -> Computed | None:
    first = values[0]
    nodes = [node for value in values if (node := value.producer()) is not None]
    if len(nodes) != len(values) or len({attribute_key(node) for node in nodes}) > 1:
        return None
    index = list(nodes[0].outputs).index(first)
    if any(list(node.outputs).index(value) != index for node, value in zip(nodes, values, strict=True)):
        return None
    inputs: list[Varying | ir.Value | None] = []
    for column in zip(*(node.inputs for node in nodes), strict=True):
        if all(value is None for value in column):
            inputs.append(None)
        elif (varying := _varying(column)) is not None:
            inputs.append(varying)
        else:
            return None
    return Computed(nodes[0], index, tuple(inputs))


def _progression(arrays: Sequence[NDArray[Any]]) -> Constants | None:
    """Constants that advance by the same stride in every step, exactly."""
    first = arrays[0]
    if any(array.shape != first.shape or array.dtype != first.dtype for array in arrays) or first.size == 0:
        return None
    wide = [array.astype(np.int64 if first.dtype.kind == "i" else np.float64) for array in arrays]
    stride = (wide[1] - wide[0]).ravel()[0].item()
    if first.dtype.kind not in "if":
        return None
    exact = all(np.array_equal(array, wide[0] + step * stride) for step, array in enumerate(wide))
    return Constants(first, stride) if exact else None
