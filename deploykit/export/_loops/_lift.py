"""What of a loop can be done for all steps at once: recurrent operators, products, arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from deploykit.export._loops._body import Loop, Scanned, State, detach, write_scan
from deploykit.export._loops._graph import (
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
    {
        *("Abs", "Cast", "Clip", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Log", "Neg"),
        *("Reciprocal", "Relu", "Selu", "Sigmoid", "Softplus", "Softsign", "Sqrt", "Tanh"),
    }
)
_BROADCAST = frozenset({"Add", "Div", "Mul", "Sub"})


def write(loop: Loop, hoist: bool) -> None:
    """Add the loop to the outer graph: what can be done for all steps at once, and a Scan for what is left."""
    if hoist:
        while any(_hoist(loop, node) for node in loop.nodes if node.op_type in RECURRENT):
            pass
        _lift_outputs(loop)
    loop.prune()
    if loop.states or loop.outputs:
        write_scan(loop)


def _hoist(loop: Loop, node: ir.Node) -> bool:
    """One recurrent operator over the whole sequence in place of one in each step, if no more than that is going on."""
    given = [*node.inputs, *[None] * 8]
    x = given[0]
    assert x is not None
    inner = unsqueezed(x, 0)
    states = [_own_state(loop, node, index) for index in range(RECURRENT[node.op_type])]
    inside = loop.values()
    weights = [*given[1:4], given[7] if node.op_type == "LSTM" else None]
    if None in states or given[4] is not None or any(weight in inside for weight in weights):
        return False
    if attribute(node, "direction", "forward") != "forward" or attribute(node, "layout", 0) or node.outputs[0].uses():
        return False
    # Only the last cell state leaves an LSTM over a sequence.
    if node.op_type == "LSTM" and not _is_private(loop, node, states[1]):
        return False
    lifted = _lift(loop, x if inner is None else inner)
    if lifted is None:
        return False
    sequence, reverse = lifted
    editor = loop.editor
    if inner is None:
        sequence = editor.squeeze(sequence, 1, node)
    finals = [editor.value("final", node.outputs[1 + index]) for index in range(len(states))]
    initial: list[ir.Value | None] = []
    for index, state in enumerate(states):
        assert state is not None
        whole = state.update is node.outputs[1 + index]
        initial.append(state.initial if whole else editor.unsqueeze(state.initial, 0, node))
        editor.replace(state.final, finals[index] if whole else editor.squeeze(finals[index], 0, node))
    if all(map(_is_zero, initial)):
        initial = [None] * len(initial)
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
    detach(node)
    loop.nodes = loop.ordered()
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
    if not _liftable(loop, value, loop.values(), used) or len(used) != 1:
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
    return _lifts(node, own) and all(one is not None and _liftable(loop, one, inside, used) for one in own)


def _lifts(node: ir.Node, own: Sequence[ir.Value | None]) -> bool:  # noqa: PLR0911 - one for each kind
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
    inside = loop.values()
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
