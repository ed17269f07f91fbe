"""A loop as the body of a Scan, and how it is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from deploykit.export._loops._graph import Editor, dims_of, inserted, removed


@dataclass
class State:
    """A value that each step hands to the next."""

    initial: ir.Value
    into: ir.Value
    final: ir.Value
    update: ir.Value | None = None


@dataclass
class Scanned:
    """A tensor of which each step gets one element along ``axis``."""

    outer: ir.Value
    axis: int
    reverse: bool
    into: ir.Value


@dataclass
class Output:
    """A value of each step, stacked along ``axis`` of ``result``."""

    value: ir.Value
    axis: int
    reverse: bool
    result: ir.Value


@dataclass
class Loop:
    editor: Editor
    states: list[State] = field(default_factory=list)
    scanned: list[Scanned] = field(default_factory=list)
    outputs: list[Output] = field(default_factory=list)
    nodes: list[ir.Node] = field(default_factory=list)

    def _input(self, stem: str, like: ir.Value) -> ir.Value:
        """A body input: its rank is known, its sizes are the caller's."""
        dims = dims_of(like)
        shape = ir.Shape([None] * len(dims)) if dims is not None else None
        return ir.Value(name=self.editor.fresh(stem), type=like.type, shape=shape)

    def scan(self, outer: ir.Value, axis: int, reverse: bool, like: ir.Value) -> Scanned:
        made = Scanned(outer, axis, reverse, self._input("scanned", like))
        self.scanned.append(made)
        return made

    def state(self, initial: ir.Value, update: ir.Value) -> State:
        made = State(initial, self._input("state", update), self.editor.value("final", update))
        self.states.append(made)
        return made

    def output(self, value: ir.Value, axis: int, reverse: bool) -> Output:
        made = Output(value, axis, reverse, self.editor.value("steps"))
        made.result.type = value.type
        made.result.shape = ir.Shape(dims) if (dims := inserted(value, axis, self.editor.size)) is not None else None
        self.outputs.append(made)
        return made

    def op(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        dtype: np.dtype[Any],
        shape: Sequence[int],
        **attrs: Any,
    ) -> ir.Value:
        """A node more in the body."""
        output = self.editor.value(op_type.lower())
        output.type = ir.TensorType(ir.DataType.from_numpy(dtype))
        output.shape = ir.Shape(shape)
        self.nodes.append(ir.node(op_type, inputs, attrs, outputs=[output]))
        return output

    def squeeze(self, value: ir.Value, axis: int) -> ir.Value:
        return self._reshaped("Squeeze", value, axis, removed(value, axis))

    def unsqueeze(self, value: ir.Value, axis: int) -> ir.Value:
        return self._reshaped("Unsqueeze", value, axis, inserted(value, axis, 1))

    def _reshaped(self, op_type: str, value: ir.Value, axis: int, shape: Sequence[Any] | None) -> ir.Value:
        output = self.editor.value(op_type.lower())
        output.type = value.type
        output.shape = ir.Shape(shape) if shape is not None else None
        self.nodes.append(ir.node(op_type, [value, self.editor.ints(axis)], outputs=[output]))
        return output

    def replace(self, old: ir.Value, new: ir.Value) -> None:
        """Let everybody in the body read ``new``."""
        for use in list(old.uses()):
            use.node.replace_input_with(use.idx, new)
        for state in self.states:
            state.update = new if state.update is old else state.update
        for output in self.outputs:
            output.value = new if output.value is old else output.value

    def values(self) -> set[ir.Value | None]:
        """All that is known in the body only."""
        own: set[ir.Value | None] = {value for node in self.nodes for value in node.outputs}
        return own | {state.into for state in self.states} | {scanned.into for scanned in self.scanned}

    def discard(self) -> None:
        """Let go of what the body reads from outside."""
        for node in self.nodes:
            detach(node)

    def prune(self) -> None:
        """Drop nodes, scanned tensors and states that nothing which is asked for depends on."""
        self._prune_states()
        live = {output.value for output in self.outputs} | {state.update for state in self.states}
        kept: list[ir.Node] = []
        for node in reversed(self.ordered()):
            if live.isdisjoint(node.outputs):
                detach(node)
                continue
            kept.append(node)
            live.update(value for value in node.inputs if value is not None)
        self.nodes = kept[::-1]
        self.scanned = [one for one in self.scanned if one.into in live] or self.scanned[:1]

    def _prune_states(self) -> None:
        producers = {value: node for node in self.nodes for value in node.outputs}
        states = {state.into: state for state in self.states}
        outputs = set(self.editor.graph.outputs)
        asked = [state for state in self.states if state.final.uses() or state.final in outputs]
        todo = [output.value for output in self.outputs] + [state.update for state in asked]
        kept = {id(state) for state in asked}
        seen: set[ir.Value | None] = set()
        while todo:
            value = todo.pop()
            if value is None or value in seen:
                continue
            seen.add(value)
            if value in states and id(states[value]) not in kept:
                kept.add(id(states[value]))
            if value in states:
                todo.append(states[value].update)
            elif value in producers:
                todo.extend(producers[value].inputs)
        self.states = [state for state in self.states if id(state) in kept]

    def ordered(self) -> list[ir.Node]:
        """The nodes, each behind those it reads."""
        producers = {value: node for node in self.nodes for value in node.outputs}
        done: dict[ir.Node, None] = {}
        for first in self.nodes:
            todo = [first]
            while todo:
                node = todo[-1]
                waiting = [
                    producers[value] for value in node.inputs if value in producers and producers[value] not in done
                ]
                if waiting:
                    todo.extend(waiting)
                else:
                    done[todo.pop()] = None
        return list(done)


def detach(node: ir.Node) -> None:
    for slot in range(len(node.inputs)):
        node.replace_input_with(slot, None)


def write_scan(loop: Loop) -> None:
    """Add the Scan to the outer graph."""
    editor = loop.editor
    results: list[ir.Value] = []
    for value in [*(state.update for state in loop.states), *(output.value for output in loop.outputs)]:
        assert value is not None
        results.append(_own_output(loop, value, results))
    body = ir.Graph(
        [*(state.into for state in loop.states), *(scanned.into for scanned in loop.scanned)],
        results,
        nodes=loop.nodes,
        name=editor.fresh("step"),
    )
    attrs = {
        "body": body,
        "num_scan_inputs": len(loop.scanned),
        "scan_input_axes": [scanned.axis for scanned in loop.scanned],
        "scan_input_directions": [int(scanned.reverse) for scanned in loop.scanned],
    }
    if loop.outputs:
        attrs["scan_output_axes"] = [output.axis for output in loop.outputs]
        attrs["scan_output_directions"] = [int(output.reverse) for output in loop.outputs]
    inputs = [*(state.initial for state in loop.states), *(scanned.outer for scanned in loop.scanned)]
    finals = [*(state.final for state in loop.states), *(output.result for output in loop.outputs)]
    like = next((node for node in loop.nodes if node.metadata_props), None)
    editor.node("Scan", inputs, finals, like, **attrs)


def _own_output(loop: Loop, value: ir.Value, taken: Sequence[ir.Value]) -> ir.Value:
    """A body's outputs are distinct, and none is an input or a value from outside."""
    own = any(value in node.outputs for node in loop.nodes)
    if own and value not in taken:
        return value
    output = loop.editor.value("passed", value)
    loop.nodes.append(ir.node("Identity", [value], outputs=[output]))
    return output
