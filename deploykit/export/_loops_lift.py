"""The body of a loop, and what of it can be done for all steps at once: recurrent operators, products, arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from deploykit.export._loops_graph import (
    RECURRENT,
    Editor,
    attribute,
    constant_of,
    dims_of,
    inserted,
    removed,
    single_axis,
    unsqueezed,
)

_POINTWISE = frozenset(
    "Abs Cast Clip Elu Erf Exp Gelu HardSigmoid HardSwish LeakyRelu Log Neg Reciprocal Relu Selu Sigmoid Softplus "
    "Softsign Sqrt Tanh".split()
)
_BROADCAST = frozenset("Add Div Mul Sub".split())


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

    def prune(self) -> None:
        """Drop nodes, scanned tensors and states that nothing which is asked for depends on."""
        self._prune_states()
        live = {output.value for output in self.outputs} | {state.update for state in self.states}
        kept: list[ir.Node] = []
        for node in reversed(self._sorted()):
            if live.isdisjoint(node.outputs):
                for slot in range(len(node.inputs)):
                    node.replace_input_with(slot, None)
                continue
            kept.append(node)
            live.update(value for value in node.inputs if value is not None)
        self.nodes = kept[::-1]
        self.scanned = [one for one in self.scanned if one.into in live]

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

    def _sorted(self) -> list[ir.Node]:
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


def write(loop: Loop, hoist: bool) -> None:
    """Add the loop to the outer graph: what can be done for all steps at once, and a Scan for what is left."""
    if hoist:
        while any(_hoist(loop, node) for node in loop.nodes if node.op_type in RECURRENT):
            pass
        _lift_outputs(loop)
    loop.prune()
    if loop.states or loop.outputs:
        _scan(loop)


def _scan(loop: Loop) -> None:
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


def _hoist(loop: Loop, node: ir.Node) -> bool:
    """One recurrent operator over the whole sequence in place of one in each step, if no more than that is going on."""
    given = [*node.inputs, *[None] * 8]
    inner = unsqueezed(given[0], 0) if given[0] is not None else None
    states = [_own_state(loop, node, index) for index in range(RECURRENT[node.op_type])]
    inside = _body_values(loop)
    weights = [*given[1:4], given[7] if node.op_type == "LSTM" else None]
    if inner is None or None in states or given[4] is not None or any(weight in inside for weight in weights):
        return False
    if attribute(node, "direction", "forward") != "forward" or attribute(node, "layout", 0) or node.outputs[0].uses():
        return False
    # Only the last cell state leaves an LSTM over a sequence.
    if node.op_type == "LSTM" and not _is_private(loop, node, states[1]):
        return False
    lifted = _lift(loop, inner)
    if lifted is None:
        return False
    sequence, reverse = lifted
    editor = loop.editor
    finals = [editor.value("final", node.outputs[1 + index]) for index in range(len(states))]
    initial: list[ir.Value | None] = []
    for index, state in enumerate(states):
        assert state is not None
        whole = state.update is node.outputs[1 + index]
        initial.append(state.initial if whole else editor.unsqueeze(state.initial, 0, node))
        editor.replace(state.final, finals[index] if whole else editor.squeeze(finals[index], 0, node))
    tail: list[ir.Value | None] = [None, *initial] if not all(map(_is_zero, initial)) else []
    tail = [*tail, weights[3]] if weights[3] is not None and tail else tail
    if weights[3] is not None and not tail:
        tail = [None, *initial, weights[3]]
    dims = dims_of(node.outputs[1])
    y = editor.value("y")
    y.type = node.outputs[1].type
    y.shape = ir.Shape([editor.size, *dims]) if dims is not None else None
    attrs: dict[str, Any] = {"direction": "reverse"} if reverse else {}
    made = editor.node(node.op_type, _trimmed([sequence, *weights[:3], *tail]), [y, *finals], node)
    made.attributes.update({name: attr for name, attr in node.attributes.items() if name != "direction"})
    for name, value in attrs.items():
        made.attributes[name] = ir.AttrString(name, value)
    steps = loop.scan(editor.squeeze(y, 1, node), 0, reverse, _without_direction(node.outputs[1]))
    _read_from(loop, node, steps, states)
    return True


def _trimmed(inputs: list[ir.Value | None]) -> list[ir.Value | None]:
    while inputs[-1] is None:
        inputs.pop()
    return inputs


def _without_direction(state: ir.Value) -> ir.Value:
    return ir.Value(type=state.type, shape=ir.Shape(dims) if (dims := removed(state, 0)) is not None else None)


def _read_from(loop: Loop, node: ir.Node, steps: Scanned, states: Sequence[State | None]) -> None:
    """Let the body read the operator's output of each step instead of computing it."""
    steps.into.shape = ir.Shape([None] * 2)
    state = node.outputs[1]
    for use in list(state.uses()):
        if single_axis(use.node, "Squeeze") == 0:
            loop.replace(use.node.outputs[0], steps.into)
    if state.uses() or any(one.update is state for one in loop.states) or _given_out(loop, state):
        loop.replace(state, loop.unsqueeze(steps.into, 0))
    gone = {id(one) for one in states[1:]}
    loop.states = [one for one in loop.states if id(one) not in gone]
    loop.nodes.remove(node)
    for slot in range(len(node.inputs)):
        node.replace_input_with(slot, None)
    loop.nodes = loop._sorted()
    loop.prune()


def _given_out(loop: Loop, value: ir.Value) -> bool:
    return any(output.value is value for output in loop.outputs)


def _own_state(loop: Loop, node: ir.Node, index: int) -> State | None:
    """The state that is the operator's own: it reads it and nothing else becomes of it."""
    slot, result = 5 + index, node.outputs[1 + index] if len(node.outputs) > 1 + index else None
    read = node.inputs[slot] if len(node.inputs) > slot else None
    if read is None or result is None:
        return None
    for state in loop.states:
        if state.into is read and state.update is result:
            return state
        producer = state.update.producer() if state.update is not None else None
        if (
            unsqueezed(read, 0) is state.into
            and single_axis(producer, "Squeeze") == 0
            and producer is not None
            and producer.inputs[0] is result
        ):
            return state
    return None


def _is_private(loop: Loop, node: ir.Node, state: State | None) -> bool:
    """Whether nobody but the operator reads a state, or what it becomes, within the steps."""
    if state is None:
        return False
    result = node.outputs[2]
    readers = [use.node for use in result.uses()]
    if state.update is not result:
        readers = [] if readers == [state.update.producer()] and not state.update.uses() else readers  # type: ignore[union-attr]
    reads = [use.node for use in state.into.uses()]
    slot = node.inputs[6]
    if slot is not state.into and slot is not None:
        reads = [reader for reader in reads if reader is not slot.producer() or len(slot.uses()) > 1]
    else:
        reads = [reader for reader in reads if reader is not node]
    others = [one for one in loop.states if one is not state and one.update in (state.update, result, state.into)]
    return (
        not readers
        and not reads
        and not others
        and not _given_out(loop, result)
        and not _given_out(loop, state.update or result)
    )


def _is_zero(value: ir.Value | None) -> bool:
    """Whether an initial state is known to be zeros, which ONNX takes for granted where none is given."""
    if value is None:
        return True
    array = constant_of(value)
    if array is not None:
        return not array.any()
    node = value.producer()
    if node is None:
        return False
    if node.op_type == "ConstantOfShape":
        filled = attribute(node, "value", None)
        return filled is None or not filled.numpy().any()
    return node.op_type in ("Expand", "Unsqueeze", "Squeeze") and _is_zero(node.inputs[0])


def _body_values(loop: Loop) -> set[ir.Value | None]:
    own = {value for node in loop.nodes for value in node.outputs}
    return own | {state.into for state in loop.states} | {scanned.into for scanned in loop.scanned}


def _lift_outputs(loop: Loop) -> None:
    """Compute what only depends on scanned tensors for all steps at once, where the operators allow it."""
    for output in list(loop.outputs):
        lifted = _lift(loop, output.value)
        if lifted is None:
            continue
        value, reverse = lifted
        editor = loop.editor
        if reverse != output.reverse:
            lowest = int(np.iinfo(np.int64).min)
            value = editor.op("Slice", [value, *map(editor.ints, (-1, lowest, 0, -1))], dims_of(value))
        value = editor.move_axis(value, 0, output.axis)
        editor.replace(output.result, value)
        loop.outputs.remove(output)


def _lift(loop: Loop, value: ir.Value) -> tuple[ir.Value, bool] | None:
    """The value of all steps, stacked in front, and whether the loop goes through it backwards."""
    used: set[bool] = set()
    if not _liftable(loop, value, _body_values(loop), used) or len(used) != 1:
        return None
    return _lifted(loop, value, {}), used.pop()


def _liftable(loop: Loop, value: ir.Value, inside: set[ir.Value | None], used: set[bool]) -> bool:
    scanned = next((one for one in loop.scanned if one.into is value), None)
    if scanned is not None:
        used.add(scanned.reverse)
        return dims_of(scanned.outer) is not None
    node = value.producer()
    if node is None or value not in inside or dims_of(value) is None or value is not node.outputs[0]:
        return False
    own = [one for one in node.inputs if one in inside]
    return _lifts(node, own, inside) and all(one is not None and _liftable(loop, one, inside, used) for one in own)


def _lifts(node: ir.Node, own: Sequence[ir.Value | None], inside: set[ir.Value | None]) -> bool:
    """Whether the operator, given a further axis in front, does the same to each step."""
    kind, first = node.op_type, node.inputs[0]
    if node.domain:
        return False
    if kind in ("Squeeze", "Unsqueeze"):
        return single_axis(node, kind) is not None
    if kind in _POINTWISE:
        return own == [first]
    if kind in _BROADCAST:
        rank = len(dims_of(node.outputs[0]) or ())
        mine = all(len(dims_of(one) or ()) == rank for one in own)
        return mine and all(dims_of(one) is not None for one in node.inputs)
    if kind == "Concat":
        return len(own) == len(node.inputs)
    if kind == "Gather":
        return own == [node.inputs[1]] and attribute(node, "axis", 0) == 0
    if kind in ("MatMul", "Gemm"):
        plain = all(attribute(node, name, default) == default for name, default in _GEMM.items())
        return plain and own == [first] and len(dims_of(node.inputs[1]) or ()) == 2
    return False


_GEMM = {"alpha": 1.0, "beta": 1.0, "transA": 0}


def _lifted(loop: Loop, value: ir.Value, done: dict[ir.Value, ir.Value]) -> ir.Value:
    if value not in done:
        done[value] = _lift_one(loop, value, done)
    return done[value]


def _lift_one(loop: Loop, value: ir.Value, done: dict[ir.Value, ir.Value]) -> ir.Value:
    editor = loop.editor
    scanned = next((one for one in loop.scanned if one.into is value), None)
    if scanned is not None:
        return editor.move_axis(scanned.outer, scanned.axis, 0)
    node = value.producer()
    assert node is not None
    inside = _body_values(loop)
    inputs = [_lifted(loop, one, done) if one is not None and one in inside else one for one in node.inputs]
    first = inputs[0]
    assert first is not None
    axis = single_axis(node, node.op_type)
    if axis is not None:
        return (editor.unsqueeze if node.op_type == "Unsqueeze" else editor.squeeze)(first, axis + 1, node)
    shape = inserted(value, 0, editor.size)
    if node.op_type == "Gemm":
        return _product(editor, node, inputs, shape)
    made = editor.op(node.op_type, inputs, shape, node)
    made.type = value.type
    producer = made.producer()
    assert producer is not None
    producer.attributes.update(node.attributes)
    if node.op_type == "Concat":
        rank = len(dims_of(value) or ())
        producer.attributes["axis"] = ir.AttrInt64("axis", attribute(node, "axis", 0) % rank + 1)
    return made


def _product(editor: Editor, node: ir.Node, inputs: Sequence[ir.Value | None], shape: Sequence[Any] | None) -> ir.Value:
    """A Gemm of matrices as a product with a stack of them."""
    weight = inputs[1]
    assert weight is not None
    if attribute(node, "transB", 0):
        dims = dims_of(weight) or []
        weight = editor.op("Transpose", [weight], dims[::-1], node, perm=[1, 0])
    made = editor.op("MatMul", [inputs[0], weight], shape, node)
    return editor.op("Add", [made, inputs[2]], shape, node) if len(inputs) > 2 and inputs[2] is not None else made
