"""Brings an unrolled graph to one form: elements picked by Gather with a scalar index, and no reshapes that cancel."""

from __future__ import annotations

import sys
from collections.abc import Iterable

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from deploykit.export._loops._graph import (
    RECURRENT,
    Editor,
    attribute,
    constant_of,
    dims_of,
    int_of,
    single_axis,
    static_dim,
    tidy,
    unsqueezed,
)


def normalise(editor: Editor) -> None:
    """Bring every pick of one element to a Gather with a scalar index, and remove reshapes that cancel out."""
    model = ir.Model(editor.graph, ir_version=10)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    # The exporter gives each step weights of its own where it has changed their order; it joins none but small ones.
    common.DeduplicateInitializersPass(size_limit=sys.maxsize)(model)
    for node in list(editor.graph):
        if node.op_type == "Identity" and node.inputs[0] is not None:
            editor.replace(node.outputs[0], node.inputs[0])
    tidy(editor)
    _write_chains(editor)
    for node in list(editor.graph):
        if node.op_type in RECURRENT:
            _recurrent(editor, node)
    simplify(editor)


def simplify(editor: Editor) -> None:
    """Rewrite until nothing changes."""
    changed = True
    while changed:
        changed = False
        for node in list(editor.graph):
            editor.at = node
            new = _rewritten(editor, node)
            if new is not None:
                editor.replace(node.outputs[0], new)
                editor.graph.remove(node, safe=True)
                changed = True
        editor.at = None
        tidy(editor)


def _rewritten(editor: Editor, node: ir.Node) -> ir.Value | None:  # noqa: PLR0911 - one line for each operator
    match node.op_type:
        case "Identity":
            return node.inputs[0]
        case "Slice":
            return _slice(editor, node)
        case "Gather":
            return _gather(editor, node)
        case "Split":
            return _split(editor, node)
        case "Transpose":
            return _transpose(editor, node)
        case "Squeeze" | "Unsqueeze":
            return _cancelled(node)
        case "Concat":
            return _restacked(editor, node)
    return None


def _slice(editor: Editor, node: ir.Node) -> ir.Value | None:
    source, *rest = node.inputs
    numbers = [int_of(value) for value in rest]
    if source is None or len(numbers) < 3 or None in numbers or numbers[3:] not in ([], [1]):
        return None
    start, end, axis = (number or 0 for number in numbers[:3])
    dims = dims_of(source)
    size = static_dim(source, axis if axis >= 0 else axis + len(dims or ()))
    if dims is None or size is None:
        return None
    axis %= len(dims)
    first, last = (max(0, min(size, at + size if at < 0 else at)) for at in (start, end))
    if last - first != 1 or size == 1:
        return None
    return editor.unsqueeze(editor.pick(source, first, axis, node), axis, node)


def _gather(editor: Editor, node: ir.Node) -> ir.Value | None:
    source, where = node.inputs
    index, dims = int_of(where), dims_of(source)
    if source is None or where is None or index is None or dims is None or constant_of(source) is not None:
        return None
    axis = attribute(node, "axis", 0) % len(dims)
    rank = len(dims_of(where) or ())
    size = static_dim(source, axis)
    if size is None or rank > 1:
        return None
    if size == 1 and rank == 0:
        return editor.squeeze(source, axis, node)
    if index >= 0 and rank == 0:
        return None
    picked = editor.pick(source, index % size, axis, node)
    return picked if rank == 0 else editor.unsqueeze(picked, axis, node)


def _split(editor: Editor, node: ir.Node) -> ir.Value | None:
    source = node.inputs[0]
    dims = dims_of(source)
    if source is None or dims is None:
        return None
    axis = attribute(node, "axis", 0) % len(dims)
    count = len(node.outputs)
    if count < 2 or static_dim(source, axis) != count:
        return None
    if any(size != 1 for size in _split_sizes(node)):
        return None
    parts = [editor.unsqueeze(editor.pick(source, index, axis, node), axis, node) for index in range(count)]
    for output, part in zip(node.outputs[1:], parts[1:], strict=True):
        editor.replace(output, part)
    return parts[0]


def _split_sizes(node: ir.Node) -> Iterable[int]:
    if len(node.inputs) < 2 or node.inputs[1] is None:
        return [1]
    given = constant_of(node.inputs[1])
    return [0] if given is None else given.ravel().tolist()


def _transpose(editor: Editor, node: ir.Node) -> ir.Value | None:
    """A Transpose that only moves an axis of size 1 that was just added."""
    source = node.inputs[0]
    inner = source.producer() if source is not None else None
    axis = single_axis(inner, "Unsqueeze")
    if inner is None or axis is None or inner.inputs[0] is None:
        return None
    order = list(attribute(node, "perm", ()))
    rest = [at for at in order if at != axis]
    if not order or rest != sorted(rest):
        return None
    return editor.unsqueeze(inner.inputs[0], order.index(axis), node)


def _cancelled(node: ir.Node) -> ir.Value | None:
    opposite = "Unsqueeze" if node.op_type == "Squeeze" else "Squeeze"
    inner = node.inputs[0].producer() if node.inputs[0] is not None else None
    axis = single_axis(node, node.op_type)
    if inner is None or axis is None or axis != single_axis(inner, opposite):
        return None
    return inner.inputs[0]


def _restacked(editor: Editor, node: ir.Node) -> ir.Value | None:
    """A stack of all the elements that a tensor was taken apart into: that tensor, its axes in another order."""
    first = _taken_from(node, 0)
    if first is None:
        return None
    source, _, axis = first
    target = attribute(node, "axis", 0)
    if len(node.inputs) != static_dim(source, axis):
        return None
    if any(_taken_from(node, at) != (source, at, axis) for at in range(len(node.inputs))):
        return None
    return editor.move_axis(source, axis, target)


def _taken_from(node: ir.Node, position: int) -> tuple[ir.Value, int, int] | None:
    """The tensor, the index and the axis that an input of a Concat is one element of."""
    value = node.inputs[position]
    target = attribute(node, "axis", 0)
    inner = unsqueezed(value, target) if value is not None else None
    pick = inner.producer() if inner is not None else None
    if pick is None or pick.op_type != "Gather" or pick.inputs[0] is None or pick.inputs[1] is None:
        return None
    index = int_of(pick.inputs[1])
    return None if index is None or dims_of(pick.inputs[1]) else (pick.inputs[0], index, attribute(pick, "axis", 0))


def _recurrent(editor: Editor, node: ir.Node) -> None:
    """Of an operator over a single step: Y written as its final state, and initial states that are always there."""
    x = node.inputs[0]
    given = [*node.inputs, *[None] * 8]
    if static_dim(x, 0) != 1 or given[4] is not None or attribute(node, "direction", "forward") == "bidirectional":
        return
    if attribute(node, "layout", 0) or len(node.outputs) < 2 or not node.outputs[1].name:
        return
    y, state = node.outputs[0], node.outputs[1]
    if y.uses() or y.is_graph_output():
        y_again = editor.value("y", y)
        editor.at = _after(editor, node)
        editor.node("Unsqueeze", [state, editor.ints(0)], [y_again], node)
        editor.replace(y, y_again)
    editor.at = node
    _fill_initial(editor, node, given)
    editor.at = None


def _after(editor: Editor, node: ir.Node) -> ir.Node | None:
    nodes = list(editor.graph)
    following = nodes.index(node) + 1
    return nodes[following] if following < len(nodes) else None


def _fill_initial(editor: Editor, node: ir.Node, given: list[ir.Value | None]) -> None:
    slots = range(5, 5 + RECURRENT[node.op_type])
    if all(given[slot] is not None for slot in slots):
        return
    zeros = _zero_state(editor, node)
    if zeros is None:
        return
    node.resize_inputs(max(len(node.inputs), slots.stop))
    for slot in slots:
        if given[slot] is None:
            node.replace_input_with(slot, zeros)


def _zero_state(editor: Editor, node: ir.Node) -> ir.Value | None:
    x = node.inputs[0]
    dims = dims_of(x)
    hidden = attribute(node, "hidden_size", 0)
    if x is None or dims is None or not hidden:
        return None
    batch = dims[1]
    zero = editor.constant(np.zeros(1, (x.dtype or ir.DataType.FLOAT).numpy()))
    if isinstance(batch, int):
        return editor.op("Expand", [zero, editor.ints(1, batch, hidden)], [1, batch, hidden], node)
    for source in editor.graph.inputs:
        for axis, dim in enumerate(source.shape or ()):
            if isinstance(dim, ir.SymbolicDim) and dim.value is not None and dim == batch:
                size = editor.op("Shape", [source], [1], start=axis, end=axis + 1)
                size.type = ir.TensorType(ir.DataType.INT64)
                shape = editor.op("Concat", [editor.ints(1), size, editor.ints(hidden)], [3], axis=0)
                return editor.op("Expand", [zero, shape], [1, batch, hidden], node)
    return None


def _write_chains(editor: Editor) -> None:
    """``out[:, t] = h`` for every t of ``out``: the same as stacking what was written."""
    for node in list(editor.graph):
        chain = _chain_ending_at(node)
        size = static_dim(node.outputs[0], attribute(node, "axis", 0)) if chain else None
        if chain is None or size is None or sorted(chain) != list(range(size)) or size < 2:
            continue
        editor.at = node
        joined = editor.op(
            "Concat",
            [chain[index] for index in range(size)],
            dims_of(node.outputs[0]),
            node,
            axis=attribute(node, "axis", 0),
        )
        editor.replace(node.outputs[0], joined)
        editor.at = None
    tidy(editor)


def _chain_ending_at(node: ir.Node) -> dict[int, ir.Value] | None:
    """What the writes up to this one, the last, put at each index."""
    if node.op_type != "ScatterElements" or any(
        use.node.op_type == "ScatterElements" and use.idx == 0 for use in node.outputs[0].uses()
    ):
        return None
    axis = attribute(node, "axis", 0)
    written: dict[int, ir.Value] = {}
    at: ir.Node | None = node
    while at is not None and at.op_type == "ScatterElements" and attribute(at, "axis", 0) == axis:
        index, update = _whole_write(at, axis)
        if index is None or update is None:
            return None
        written.setdefault(index, update)
        at = at.inputs[0].producer() if at.inputs[0] is not None else None
    return written


def _whole_write(node: ir.Node, axis: int) -> tuple[int | None, ir.Value | None]:
    """The index, and the update where it fills all of the tensor at that index."""
    target, where, update = node.inputs
    expand = where.producer() if where is not None else None
    if attribute(node, "reduction", "none") != "none" or expand is None or expand.op_type != "Expand":
        return None, None
    whole, piece = dims_of(target), dims_of(update)
    if whole is None or piece is None or [*whole[:axis], 1, *whole[axis + 1 :]] != piece:
        return None, None
    index, size = int_of(expand.inputs[0]), static_dim(target, axis)
    return (index % size if index is not None and size else None), update
