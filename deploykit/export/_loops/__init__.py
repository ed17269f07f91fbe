"""Folds a loop over time that the exporter has unrolled back into one, with a time axis of any length.

``torch.export`` runs a Python loop and notes every step. From two such graphs, over n and n + 1 steps, this makes the
one that both are instances of: the steps become a ``Scan``, or recurrent operators over the whole sequence, and the
numbers that differ between the two become functions of the length. What cannot be explained that way is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes import common

from deploykit.export._loops import _find, _scan
from deploykit.export._loops._graph import Editor, NotALoop, constant_of, tidy
from deploykit.export._loops._normalise import normalise, simplify

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["NotALoop", "roll"]

# A number that depends on the length is a * (T + b): with b beyond this it is more likely another function of T.
_FARTHEST = 2


def roll(short: onnx.ModelProto, long: onnx.ModelProto, dim: str, axes: Mapping[str, int]) -> onnx.ModelProto:
    """The graph of which ``short`` and ``long`` are the unrolled forms at n and n + 1 steps.

    ``axes`` names the inputs that have the dim, each with its axis. Inputs and outputs are declared with ``dim`` in the
    place of n.

    Raises:
        NotALoop: the graphs are not two lengths of one loop, or not one that is understood.
    """
    models = [ir.from_proto(proto) for proto in (short, long)]
    (name, axis), *_ = axes.items()
    sizes = [_size(model, name, axis) for model in models]
    if sizes[1] != sizes[0] + 1 or sizes[0] < 4:
        raise NotALoop(f"{dim} has sizes {sizes[0]} and {sizes[1]} in the unrolled graphs")
    interfaces = [[(value.name, value.shape) for value in model.graph.outputs] for model in models]
    editors = [_folded(model, size) for model, size in zip(models, sizes, strict=True)]
    _unify(editors, name, axis)
    _declare(editors[0], interfaces, dim, axes)
    return _finished(models[0], editors[0])


def _size(model: ir.Model, name: str, axis: int) -> int:
    for value in model.graph.inputs:
        if value.name == name and value.shape is not None and isinstance(size := value.shape[axis], int):
            return size
    raise NotALoop(f"axis {axis} of {name} has no fixed size in the unrolled graphs")


def _folded(model: ir.Model, size: int) -> Editor:
    editor = Editor(model.graph, size)
    normalise(editor)
    found, reason = 0, ""
    while True:
        done, why = _fold_one(editor)
        if not done:
            reason = why
            break
        found += 1
        simplify(editor)
    if not found:
        raise NotALoop(reason or "no steps that repeat each other were found, one for each element of the time axis")
    return editor


def _fold_one(editor: Editor) -> tuple[bool, str]:
    """Fold the first loop that can be, those with a state before plain repetition."""
    picks = _find.picks_as_steps(editor.graph, editor.size)
    reason = ""
    for states_only in (True, False):
        ways = picks if states_only else picks[:1]
        pieces = _find.pieces_as_steps(editor.graph, editor.size) if states_only else ()
        for steps in (*ways, *pieces):
            for first, last in _ranges(steps.count):
                match = _find.match(steps, first, last)
                if match is None:
                    continue
                why = _scan.fold(editor, steps, match, states_only)
                if not why:
                    return True, ""
                reason = reason or why
    return False, reason


def _ranges(count: int) -> list[tuple[int, int]]:
    """All steps, or without the first, or without the last."""
    return [(0, count - 1), (1, count - 1), (0, count - 2)]


class _Unifier:
    """Walks two graphs from their outputs and notes the constants in which they differ."""

    def __init__(self) -> None:
        self.partners: dict[ir.Node, ir.Node] = {}
        self.values: dict[ir.Value, ir.Value] = {}
        self.differing: dict[tuple[ir.Node, int], tuple[NDArray[Any], NDArray[Any]]] = {}

    def inputs(self, short: ir.Graph, long: ir.Graph) -> None:
        if len(short.inputs) != len(long.inputs):
            raise NotALoop("it takes other inputs at another length")
        self.values.update(zip(short.inputs, long.inputs, strict=True))

    def walk(self, short: ir.Graph, long: ir.Graph) -> None:
        if len(short.outputs) != len(long.outputs):
            raise NotALoop("a step has other results at another length")
        todo = list(zip(short.outputs, long.outputs, strict=True))
        for a, b in todo:
            if constant_of(a) is not None and not _same_constant(a, b):
                raise NotALoop(f"its output {a.name} is a constant that depends on the length")
        while todo:
            a, b = todo.pop()
            todo.extend(self._pair(a, b))

    def _pair(self, a: ir.Value, b: ir.Value) -> list[tuple[ir.Value, ir.Value]]:
        if a in self.values:
            if self.values[a] is not b:
                raise NotALoop(f"{a.name} is used in another way at another length")
            return []
        one, other = a.producer(), b.producer()
        if one is None or other is None:
            if not _same_constant(a, b):
                raise NotALoop(f"{a.name} is another value at another length")
            return []
        if one in self.partners:
            if self.partners[one] is not other or one.outputs.index(a) != other.outputs.index(b):
                raise NotALoop(f"{a.name} is used in another way at another length")
            return []
        return self._pair_nodes(one, other, a)

    def _pair_nodes(self, one: ir.Node, other: ir.Node, a: ir.Value) -> list[tuple[ir.Value, ir.Value]]:
        if one.op_identifier() != other.op_identifier() or len(one.inputs) != len(other.inputs):
            raise NotALoop(_unlike(one, other, a))
        self.partners[one] = other
        self._attributes(one, other)
        found: list[tuple[ir.Value, ir.Value]] = []
        for slot, (mine, its) in enumerate(zip(one.inputs, other.inputs, strict=True)):
            if mine is None or its is None:
                if mine is not its:
                    raise NotALoop(_unlike(one, other, a))
                continue
            left, right = constant_of(mine), constant_of(its)
            if left is None or right is None:
                found.append((mine, its))
            elif not _same_constant(mine, its):
                self._note(one, slot, left, right)
        return found

    def _note(self, node: ir.Node, slot: int, left: NDArray[Any], right: NDArray[Any]) -> None:
        if left.shape != right.shape or left.dtype != right.dtype:
            raise NotALoop(f"{node.inputs[slot].name} has another shape at another length")  # type: ignore[union-attr]
        self.differing[node, slot] = (left, right)

    def _attributes(self, one: ir.Node, other: ir.Node) -> None:
        if one.attributes.keys() != other.attributes.keys():
            raise NotALoop(f"{one.op_type} has other attributes at another length")
        for name, attr in one.attributes.items():
            its = other.attributes[name]
            if attr.type is ir.AttributeType.GRAPH:
                self.inputs(attr.value, its.value)
                self.walk(attr.value, its.value)
            elif attr.type is ir.AttributeType.TENSOR:
                if not _same_array(attr.value.numpy(), its.value.numpy()):
                    raise NotALoop(f"{one.op_type} has another {name} at another length")
            elif attr.value != its.value:
                raise NotALoop(f"{one.op_type} has another {name} at another length")


def _unlike(one: ir.Node, other: ir.Node, a: ir.Value) -> str:
    if one.op_type == other.op_type == "Concat":
        return f"its steps differ from each other (what {a.name} joins)"
    return f"{a.name} is computed in another way at another length, by steps that differ from each other"


def _same_constant(a: ir.Value, b: ir.Value) -> bool:
    left, right = constant_of(a), constant_of(b)
    return left is not None and right is not None and _same_array(left, right)


def _same_array(left: NDArray[Any], right: NDArray[Any]) -> bool:
    return left.dtype == right.dtype and left.shape == right.shape and left.tobytes() == right.tobytes()


def _unify(editors: list[Editor], name: str, axis: int) -> None:
    """Replace the constants of the first graph that differ from the second's by functions of the length."""
    unifier = _Unifier()
    short, long = (editor.graph for editor in editors)
    unifier.inputs(short, long)
    unifier.walk(short, long)
    if not unifier.differing:
        return
    editor = editors[0]
    source = next(value for value in short.inputs if value.name == name)
    shape = editor.op("Shape", [source], [1], start=axis, end=axis + 1)
    shape.type = ir.TensorType(ir.DataType.INT64)
    length = editor.squeeze(shape, 0)
    made: dict[bytes, ir.Value] = {}
    for (node, slot), (left, right) in unifier.differing.items():
        key = b"|".join([str(left.dtype).encode(), str(left.shape).encode(), left.tobytes(), right.tobytes()])
        if key not in made:
            made[key] = _of_length(editor, length, left, right)
        node.replace_input_with(slot, made[key])
    tidy(editor)


def _of_length(editor: Editor, length: ir.Value, left: NDArray[Any], right: NDArray[Any]) -> ir.Value:
    if left.dtype.kind not in "if":
        raise NotALoop(f"a constant of type {left.dtype} depends on the length")
    wide_left, wide_right = (array.astype(np.float64) for array in (left, right))
    slope = wide_right - wide_left
    start = wide_left - slope * editor.size
    shift = np.divide(start, slope, out=np.zeros_like(start), where=slope != 0)
    whole = np.array_equal(slope, np.rint(slope)) and np.array_equal(shift, np.rint(shift))
    if not whole or np.abs(shift).max() > _FARTHEST:
        raise NotALoop("a number in it depends on the length in another way than a * T + b")
    factor, offset = (editor.constant(np.asarray(array, np.int64)) for array in (slope, start))
    result = length
    if not (slope == 1).all() or slope.ndim:
        result = editor.op("Mul", [result, factor], left.shape)
    if start.any():
        result = editor.op("Add", [result, offset], left.shape)
    if left.dtype != np.int64:
        result = editor.op("Cast", [result], left.shape, to=ir.DataType.from_numpy(left.dtype))
        result.type = ir.TensorType(ir.DataType.from_numpy(left.dtype))
    return result


def _declare(
    editor: Editor, interfaces: list[list[tuple[str | None, ir.Shape | None]]], dim: str, axes: Mapping[str, int]
) -> None:
    """Name the dim in inputs and outputs, under the outputs' own names."""
    for value in editor.graph.inputs:
        if value.name is not None and value.name in axes and value.shape is not None:
            dims = list(value.shape)
            dims[axes[value.name]] = ir.SymbolicDim(dim)
            value.shape = ir.Shape(dims)
    for position, ((name, shape), (_, longer)) in enumerate(zip(*interfaces, strict=True)):
        value = editor.graph.outputs[position]
        shared = editor.graph.outputs[:position]
        if value.is_graph_input() or value.is_initializer() or value in shared:
            again = editor.value("output", value)
            editor.node("Identity", [value], [again])
            value = editor.graph.outputs[position] = again
        for other in (*(output for node in editor.graph for output in node.outputs), *editor.graph.outputs):
            if other is not value and other.name == name:
                other.name = editor.fresh(f"{name}_inner")
        value.name = name
        value.shape = _output_shape(shape, longer, editor.size, dim)


def _output_shape(short: ir.Shape | None, long: ir.Shape | None, size: int, dim: str) -> ir.Shape | None:
    if short is None or long is None or len(short) != len(long):
        return None
    dims: list[int | ir.SymbolicDim | None] = []
    for a, b in zip(short, long, strict=True):
        if isinstance(a, int) and isinstance(b, int) and a != b:
            dims.append(ir.SymbolicDim(dim if (a, b) == (size, size + 1) else None))
        else:
            dims.append(a)
    return ir.Shape(dims)


def _finished(model: ir.Model, editor: Editor) -> onnx.ModelProto:
    outputs = set(editor.graph.outputs)
    editor.graph.sort()
    for node in editor.graph.all_nodes():
        node.name = None
        bodies = [attr.value for attr in node.attributes.values() if attr.type is ir.AttributeType.GRAPH]
        kept = outputs | {value for body in bodies for value in (*body.inputs, *body.outputs)}
        for value in node.outputs:
            if value not in kept and node.graph is editor.graph:
                value.shape, value.type = None, None
    common.RemoveUnusedNodesPass()(model)
    proto = ir.to_proto(model)
    _drop_value_info(proto.graph)
    return proto


def _drop_value_info(graph: onnx.GraphProto) -> None:
    del graph.value_info[:]
    for node in graph.node:
        for attr in node.attribute:
            if attr.HasField("g"):
                _drop_value_info(attr.g)
                for value in attr.g.output:
                    # A size that was fixed in the trace need not be one.
                    value.type.tensor_type.ClearField("shape")
