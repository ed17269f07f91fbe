"""Writes a loop whose steps are known as one ONNX Scan, or as recurrent operators where that is all it does."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import onnx_ir as ir

from deploykit.export._loops import _lift
from deploykit.export._loops._body import Loop, State
from deploykit.export._loops._find import Carried, Computed, Constants, Family, Match, Steps, Varying
from deploykit.export._loops._graph import (
    Editor,
    NotALoop,
    attribute,
    attribute_key,
    dims_of,
    inserted,
    single_axis,
    static_dim,
    unsqueezed,
)
from deploykit.export._loops._uses import Uses, dependent, outside_uses


def fold(editor: Editor, steps: Steps, match: Match, states_only: bool) -> str:
    """Put one Scan in the place of the matched steps. An empty string, or the reason why nothing was done."""
    nodes = dependent(match) if states_only else list(match.inputs)
    uses = {value: outside_uses(editor, match, value) for node in nodes for value in node.outputs}
    uses = {value: use for value, use in uses.items() if use.stacks or use.steps}
    if not states_only:
        uses = {value: use for value, use in uses.items() if use.stacks}
    if not uses:
        return "no state was found that every step makes of the one before in the same way"
    for value, use in uses.items():
        complete = len(match.chains[value]) == match.length
        if not complete or (use.steps - {match.length - 1} and use.steps != set(range(match.length))):
            return "some steps compute, or hand on, what others do not"
    folding = _Folding(editor, steps, match)
    try:
        folding.run(uses, states_only)
    except NotALoop as reason:
        folding.loop.discard()
        return str(reason)
    return ""


class _Folding:
    """Builds the loop's body from its first step, and what stands before and after it."""

    def __init__(self, editor: Editor, steps: Steps, match: Match) -> None:
        self.editor, self.steps, self.match = editor, steps, match
        self.loop = Loop(editor)
        self.inside: dict[ir.Value, ir.Value] = {}
        self.states: dict[tuple[ir.Value, ir.Value], State] = {}
        self.producers = {value: node for node in match.inputs for value in node.outputs}
        self.needed: set[ir.Node | ir.Value] = set()
        self.moved: dict[tuple[ir.Node | None, ir.Node | None], Sequence[ir.Value]] = {}
        self.counter: ir.Value | None = None
        self.shortfall = editor.size - match.length
        self.pad_front = False

    def run(self, uses: dict[ir.Value, Uses], states_only: bool) -> None:
        self.needed = needed = self._needed(uses)
        families = [family for family in self.steps.families if self._pick(family) in needed]
        self._choose_padding(families)
        for family in families:
            self._scan_family(family)
        for node in self.match.inputs:
            if node in needed:
                self._copy(node)
        for (update, _), state in self.states.items():
            state.update = self.inside[update]
        if self.shortfall:
            self._hold_states()
        # A Scan has to have something that says how often.
        if not self.loop.scanned:
            self._count()
        # All of it is planned before anything in the graph changes: it may still turn out to be impossible.
        for finish in [self._plan(value, use, states_only) for value, use in uses.items()]:
            finish()
        _lift.write(self.loop, hoist=not self.shortfall)

    def _needed(self, roots: Iterable[ir.Value]) -> set[ir.Node | ir.Value]:
        """The nodes, and the picks, that the roots are computed from in this step and those before."""
        found: set[ir.Node | ir.Value] = set()
        entering = self._reach(roots, found)
        while entering:
            carried = entering.pop()
            entering.extend(self._reach(self._origins(carried, found), found))
        return found

    def _reach(self, roots: Iterable[ir.Value], found: set[ir.Node | ir.Value]) -> list[Carried]:
        """Add what the roots need of this step to ``found``; returns what that needs of the step before."""
        entering: list[Carried] = []
        todo: list[ir.Value | None] = list(roots)
        while todo:
            value = todo.pop()
            if value is None or value not in self.match.chains:
                continue
            node = self.producers.get(value)
            if node is None:
                found.add(value)
            elif node not in found:
                found.add(node)
                for source, kind in zip(node.inputs, self.match.inputs[node], strict=True):
                    if isinstance(kind, Carried):
                        entering.append(kind)
                    elif kind is None:
                        todo.append(source)
        return entering

    def _origins(self, carried: Carried, found: set[ir.Node | ir.Value]) -> list[ir.Value]:
        """The states that make up what comes from the step before."""
        inputs = self._movable(carried, found)
        if inputs is None:
            return [carried.update]
        return [value for one in inputs if isinstance(one, Carried) for value in self._origins(one, found)]

    def _movable(self, carried: Carried, needed: set[ir.Node | ir.Value]) -> list[Carried | ir.Value | None] | None:
        """The inputs of the node that made what is carried, where that can as well be done by the step that reads it.

        A value's step is the latest that it needs. So the product of the state and its weights is counted to the step
        before, and in front of the first step to none. Where that is the same node it belongs to the step after.
        """
        node, first = self.producers.get(carried.update), carried.initial.producer()
        if node is None or first is None or (node in needed and node.op_type not in ("Squeeze", "Unsqueeze")):
            return None
        same = attribute_key(node) == attribute_key(first) and carried.initial.index() == carried.update.index()
        if not same or any(kind is not None for kind in self.match.inputs[node]):
            return None
        inputs: list[Carried | ir.Value | None] = []
        for mine, its in zip(node.inputs, first.inputs, strict=True):
            if mine in self.match.chains and mine is not None and its is not None:
                inputs.append(Carried(mine, its))
            elif mine is its:
                inputs.append(mine)
            else:
                return None
        return inputs

    def _pick(self, family: Family) -> ir.Value | None:
        position = self._position(family)
        return family.values[position] if position >= 0 else None

    def _position(self, family: Family) -> int:
        return self.match.first - (self.steps.count - len(family.values))

    def _choose_padding(self, families: list[Family]) -> None:
        """A loop over all but one step has none at length 1, which onnxruntime's Scan does not survive.

        So it makes one step more, before the first or after the last, whose results are not used.
        """
        if not self.shortfall:
            return
        spans = [self._span(family, 1, 0) for family in families], [self._span(family, 0, 1) for family in families]
        fits = [
            all(
                low >= 0 and high < (static_dim(family.source, family.axis) or 0)
                for (low, high), family in zip(side, families, strict=True)
            )
            for side in spans
        ]
        if self.shortfall != 1:
            raise NotALoop("its loop leaves out more than one step")
        self.pad_front = fits[0] or not fits[1]

    def _span(self, family: Family, before: int, after: int) -> tuple[int, int]:
        """The lowest and the highest index that the loop reads."""
        position = self._position(family)
        sign = -1 if family.reverse else 1
        ends = (
            family.indices[position] - sign * before,
            family.indices[position] + sign * (self.match.length - 1 + after),
        )
        return min(ends), max(ends)

    def _scan_family(self, family: Family) -> None:
        outer = family.source
        dims = dims_of(outer)
        if dims is None:
            raise NotALoop(f"the rank of {outer.name} is not known")
        padding = (0, 0) if not self.shortfall else (1, 0) if self.pad_front else (0, 1)
        low, high = self._span(family, *padding)
        if low < 0 or high >= (static_dim(outer, family.axis) or 0):
            outer = self._padded(family, dims)
        elif (low, high + 1) != (0, dims[family.axis]):
            outer = self._cut(family, low, high + 1, dims)
        pick = self._pick(family)
        assert pick is not None
        scanned = self.loop.scan(outer, family.axis, family.reverse, pick)
        self.inside[pick] = scanned.into

    def _cut(self, family: Family, low: int, end: int, dims: list[int | ir.SymbolicDim]) -> ir.Value:
        dims = [*dims[: family.axis], end - low, *dims[family.axis + 1 :]]
        editor = self.editor
        return editor.op("Slice", [family.source, *map(editor.ints, (low, end, family.axis))], dims)

    def _padded(self, family: Family, dims: list[int | ir.SymbolicDim]) -> ir.Value:
        """The elements of the loop, with any other in front for the additional step: there is none before them."""
        low, high = self._span(family, 0, 0)
        parts = [self._cut(family, 0, 1, dims), self._cut(family, low, high + 1, dims)]
        if family.reverse:
            parts.reverse()
        dims = [*dims[: family.axis], self.match.length + 1, *dims[family.axis + 1 :]]
        return self.editor.op("Concat", parts, dims, axis=family.axis)

    def _count(self) -> ir.Value:
        """The number of the iteration, as a scanned input; constants of the unrolled graph hold how many there are."""
        if self.counter is None:
            editor = self.editor
            zero, length, one = (
                editor.constant(np.array(number, np.int64))
                for number in (0, self.match.length + bool(self.shortfall), 1)
            )
            outer = editor.op("Range", [zero, length, one], [self.match.length + bool(self.shortfall)])
            self.counter = self.loop.scan(outer, 0, False, zero).into
        return self.counter

    def _copy(self, node: ir.Node) -> None:
        kinds = self.match.inputs[node]
        inputs = [self._input(value, kind) for value, kind in zip(node.inputs, kinds, strict=True)]
        copy = self._duplicate(node, inputs)
        self.inside.update(zip(node.outputs, copy.outputs, strict=True))

    def _duplicate(self, node: ir.Node, inputs: Sequence[ir.Value | None]) -> ir.Node:
        outputs = [self.editor.value(f"{output.name}_step", output) for output in node.outputs]
        copy = ir.node(
            node.op_type,
            inputs,
            outputs=outputs,
            domain=node.domain,
            metadata_props=dict(node.metadata_props),
        )
        copy.attributes.update(node.attributes)
        self.loop.nodes.append(copy)
        return copy

    def _input(self, value: ir.Value | None, kind: Carried | Varying | None) -> ir.Value | None:
        if value is None:
            return None
        if isinstance(kind, Carried):
            return self._carried(kind)
        if kind is not None:
            return self._varying(kind)
        return self.inside.get(value, value) if value in self.match.chains else value

    def _carried(self, carried: Carried) -> ir.Value:
        inputs = self._movable(carried, self.needed)
        if inputs is None:
            key = (carried.update, carried.initial)
            if key not in self.states:
                self.states[key] = self.loop.state(carried.initial, carried.update)
            return self.states[key].into
        node, index = carried.update.producer(), carried.update.index()
        assert node is not None
        assert index is not None
        place = (node, carried.initial.producer())
        if place not in self.moved:
            read = [self._carried(one) if isinstance(one, Carried) else one for one in inputs]
            self.moved[place] = self._duplicate(node, read).outputs
        return self.moved[place][index]

    def _varying(self, kind: Varying) -> ir.Value:
        if isinstance(kind, Computed):
            inputs = [self._varying(one) if isinstance(one, Constants | Computed) else one for one in kind.inputs]
            return self._duplicate(kind.node, inputs).outputs[kind.index]
        return self._progression(kind)

    def _progression(self, kind: Constants) -> ir.Value:
        loop, editor = self.loop, self.editor
        floating = kind.first.dtype.kind == "f"
        wide = np.dtype(np.float64 if floating else np.int64)
        first = kind.first.astype(wide) - (kind.stride if self.pad_front else 0)
        step = self._count()
        if floating:
            step = loop.op("Cast", [step], wide, (), to=ir.DataType.DOUBLE)
        if kind.stride != 1:
            step = loop.op("Mul", [step, editor.constant(np.array(kind.stride, wide))], wide, ())
        value = loop.op("Add", [step, editor.constant(np.asarray(first, wide))], wide, kind.first.shape)
        if kind.first.dtype == wide:
            return value
        return loop.op("Cast", [value], kind.first.dtype, kind.first.shape, to=ir.DataType.from_numpy(kind.first.dtype))

    def _hold_states(self) -> None:
        """In the additional step the states stay as they are."""
        extra = self.editor.constant(np.array(0 if self.pad_front else self.match.length, np.int64))
        count = self._count()
        held = self.loop.op("Equal", [count, extra], np.dtype(bool), ())
        for state in self.loop.states:
            assert state.update is not None
            output = self.editor.value("held", state.update)
            self.loop.nodes.append(ir.node("Where", [held, state.into, state.update], outputs=[output]))
            state.update = output

    def _plan(self, value: ir.Value, use: Uses, states_only: bool) -> Callable[[], None]:
        """Register what the loop has to give of ``value``; returns what hands it to the readers, once it is there."""
        stacks = [(concat, start, self._stack(value, concat, reverse)) for concat, start, reverse in use.stacks]
        singles: list[tuple[ir.Value, ir.Value]] = []
        chain = self.match.chains[value]
        if states_only and use.steps == {self.match.length - 1}:
            singles.append((chain[-1], self._final(value)))
        elif states_only and use.steps:
            picked = self._collect(value)
            singles.extend(zip(chain, picked, strict=True))

        def finish() -> None:
            for concat, start, result in stacks:
                self._join(concat, start, result)
            for old, new in singles:
                self._hand_over(old, new)

        return finish

    def _hand_over(self, old: ir.Value, new: ir.Value) -> None:
        for use in list(old.uses()):
            if use.node not in self.match.matched and use.node is not new.producer():
                use.node.replace_input_with(use.idx, new)
        for position, output in enumerate(self.editor.graph.outputs):
            if output is old:
                self.editor.graph.outputs[position] = new

    def _final(self, value: ir.Value) -> ir.Value:
        node = self.producers[value]
        source = node.inputs[0]
        axis = single_axis(node, node.op_type)
        if axis is not None and any(update is source for update, _ in self.states):
            assert source is not None
            return (self.editor.unsqueeze if node.op_type == "Unsqueeze" else self.editor.squeeze)(
                self._final(source), axis, node
            )
        states = [state for (update, _), state in self.states.items() if update is value]
        if len(states) == 1 or (states and not self.shortfall):
            return states[0].final
        if self.shortfall:
            raise NotALoop(f"the last {value.name} is not defined at length 1")
        stacked = self.loop.output(self.inside[value], 0, False)
        return self.editor.op("Gather", [stacked.result, self.editor.constant(np.array(-1))], dims_of(value), axis=0)

    def _collect(self, value: ir.Value) -> list[ir.Value]:
        stacked = self.loop.output(self.inside[value], 0, False)
        stacked.result.shape = ir.Shape(inserted(value, 0, self.match.length + bool(self.shortfall)) or [])
        first = int(bool(self.shortfall) and self.pad_front)
        return [self.editor.pick(stacked.result, first + step, 0) for step in range(self.match.length)]

    def _stack(self, value: ir.Value, concat: ir.Node, reverse: bool) -> ir.Value:
        """All steps' pieces along the axis of a Concat, without that of the additional step."""
        dims = dims_of(value)
        if dims is None:
            raise NotALoop(f"the rank of {value.name} is not known")
        axis = attribute(concat, "axis", 0) % len(dims)
        inside = self.inside[value]
        inner = unsqueezed(inside, axis)
        if inner is None and dims[axis] == 1:
            inner = self.loop.squeeze(inside, axis)
        output = self.loop.output(inner if inner is not None else inside, axis, reverse)
        result, editor = output.result, self.editor
        length = self.match.length + bool(self.shortfall)
        result.shape = ir.Shape([*dims[:axis], length, *dims[axis + (inner is not None) :]])
        if self.shortfall:
            low, high = (1, np.iinfo(np.int64).max) if self.pad_front != reverse else (0, -1)
            shape = [*dims[:axis], self.match.length, *dims[axis + (inner is not None) :]]
            result = editor.op("Slice", [result, *map(editor.ints, (low, int(high), axis))], shape)
        if inner is not None:
            return result
        return self._merged(result, dims, axis)

    def _merged(self, stacked: ir.Value, dims: list[int | ir.SymbolicDim], axis: int) -> ir.Value:
        """Pieces of more than one row, joined: the stacking axis and the one behind it become one."""
        rest = dims[axis + 1 :]
        if any(not isinstance(dim, int) for dim in rest):
            raise NotALoop("pieces with several dynamic dims are joined")
        shape = [0] * axis + [-1, *(dim for dim in rest if isinstance(dim, int))]
        return self.editor.op("Reshape", [stacked, self.editor.ints(*shape)], [*dims[:axis], None, *rest])  # type: ignore[list-item]

    def _join(self, concat: ir.Node, start: int, result: ir.Value) -> None:
        inputs = list(concat.inputs)
        pieces = [*inputs[:start], result, *inputs[start + self.match.length :]]
        joined = concat.outputs[0]
        if len(pieces) == 1:
            self.editor.replace(joined, result)
            return
        again = self.editor.value("concat", joined)
        self.editor.node("Concat", pieces, [again], concat, axis=attribute(concat, "axis", 0))
        self.editor.replace(joined, again)
