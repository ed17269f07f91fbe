"""Small tools for the graphs that ``_loops`` folds: to read them, and to add to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

if TYPE_CHECKING:
    from numpy.typing import NDArray

RECURRENT = {"GRU": 1, "LSTM": 2, "RNN": 1}


class NotALoop(Exception):  # noqa: N818 - an answer, not an error: the caller then exports with a fixed time axis
    """The unrolled graphs cannot be folded; str() is a reason in one clause."""


@dataclass
class Editor:
    """Adds nodes and constants to a graph. New nodes go before ``at``, or to the end until the next sort."""

    graph: ir.Graph
    size: int
    at: ir.Node | None = None
    _taken: set[str] = field(default_factory=set)
    _constants: dict[tuple[str, tuple[int, ...], bytes], ir.Value] = field(default_factory=dict)

    def __post_init__(self) -> None:
        values = [output for node in self.graph.all_nodes() for output in node.outputs]
        named = (*values, *self.graph.inputs, *self.graph.initializers.values())
        self._taken = {value.name for value in named if value.name}

    def fresh(self, stem: str) -> str:
        name, number = stem, 1
        while name in self._taken:
            number += 1
            name = f"{stem}_{number}"
        self._taken.add(name)
        return name

    def value(self, stem: str, like: ir.Value | None = None) -> ir.Value:
        return ir.Value(
            name=self.fresh(stem), type=like.type if like is not None else None, shape=_copied(like) if like else None
        )

    def constant(self, array: NDArray[Any]) -> ir.Value:
        key = (str(array.dtype), array.shape, array.tobytes())
        found = self._constants.get(key)
        if found is None or found.graph is not self.graph:
            tensor = ir.tensor(array, name=self.fresh("const"))
            found = ir.Value(
                name=tensor.name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape)
            )
            self.graph.register_initializer(found)
            self._constants[key] = found
        return found

    def ints(self, *values: int) -> ir.Value:
        return self.constant(np.array(values, np.int64))

    def node(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        outputs: Sequence[ir.Value],
        like: ir.Node | None = None,
        **attrs: Any,
    ) -> ir.Node:
        """A node of the outer graph; ``like`` is the node whose place in the user's modules it takes."""
        made = ir.node(
            op_type, inputs, attrs, outputs=outputs, metadata_props=dict(like.metadata_props) if like else None
        )
        if self.at is not None:
            self.graph.insert_before(self.at, made)
        else:
            self.graph.append(made)
        return made

    def op(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        shape: Sequence[int | ir.SymbolicDim] | None = None,
        like: ir.Node | None = None,
        **attrs: Any,
    ) -> ir.Value:
        """One more node with one output, of the dtype of its first input unless it is cast or compared."""
        first = next(value for value in inputs if value is not None)
        output = self.value(op_type.lower())
        output.type = first.type
        output.shape = ir.Shape(shape) if shape is not None else None
        self.node(op_type, inputs, [output], like, **attrs)
        return output

    def replace(self, old: ir.Value, new: ir.Value) -> None:
        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)

    def unsqueeze(self, value: ir.Value, axis: int, like: ir.Node | None = None) -> ir.Value:
        return self.op("Unsqueeze", [value, self.ints(axis)], inserted(value, axis, 1), like)

    def squeeze(self, value: ir.Value, axis: int, like: ir.Node | None = None) -> ir.Value:
        return self.op("Squeeze", [value, self.ints(axis)], removed(value, axis), like)

    def pick(self, value: ir.Value, index: int, axis: int, like: ir.Node | None = None) -> ir.Value:
        where = self.constant(np.array(index, np.int64))
        return self.op("Gather", [value, where], removed(value, axis), like, axis=axis)

    def move_axis(self, value: ir.Value, source: int, target: int) -> ir.Value:
        """The value with its axis ``source`` at ``target``, the others in their order."""
        if source == target:
            return value
        dims = dims_of(value)
        assert dims is not None
        order = [axis for axis in range(len(dims)) if axis != source]
        order.insert(target, source)
        return self.op("Transpose", [value], [dims[axis] for axis in order], perm=order)


def dims_of(value: ir.Value | None) -> list[int | ir.SymbolicDim] | None:
    return None if value is None or value.shape is None else list(value.shape)


def _copied(value: ir.Value) -> ir.Shape | None:
    dims = dims_of(value)
    return None if dims is None else ir.Shape(dims)


def removed(value: ir.Value, axis: int) -> list[int | ir.SymbolicDim] | None:
    dims = dims_of(value)
    return None if dims is None else [*dims[:axis], *dims[axis + 1 :]]


def inserted(value: ir.Value, axis: int, size: int) -> list[int | ir.SymbolicDim] | None:
    dims = dims_of(value)
    return None if dims is None else [*dims[:axis], size, *dims[axis:]]


def static_dim(value: ir.Value | None, axis: int) -> int | None:
    dims = dims_of(value)
    size = dims[axis] if dims is not None and axis < len(dims) else None
    return size if isinstance(size, int) else None


def constant_of(value: ir.Value | None) -> NDArray[Any] | None:
    if value is None or value.const_value is None or not value.is_initializer():
        return None
    return value.const_value.numpy()


def int_of(value: ir.Value | None) -> int | None:
    """The one integer that a constant holds."""
    array = constant_of(value)
    return int(array.item()) if array is not None and array.size == 1 and array.dtype.kind == "i" else None


def attribute(node: ir.Node, name: str, default: Any) -> Any:
    found = node.attributes.get(name)
    return default if found is None else found.value


def attribute_key(node: ir.Node) -> tuple[Any, ...]:
    """What two nodes have to share, besides inputs, to compute the same. A node with subgraphs is like no other."""
    parts: list[tuple[str, Any]] = []
    for name, attr in sorted(node.attributes.items()):
        if attr.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
            parts.append((name, id(attr)))
        elif attr.type is ir.AttributeType.TENSOR:
            array = attr.value.numpy()
            parts.append((name, (str(array.dtype), array.shape, array.tobytes())))
        else:
            parts.append((name, tuple(attr.value) if isinstance(attr.value, Sequence) else attr.value))
    # The last step's recurrent operator leaves out a final state that nobody reads.
    results = 0 if node.op_type in RECURRENT else len(node.outputs)
    return (node.domain, node.op_type, len(node.inputs), results, tuple(parts))


def single_axis(node: ir.Node | None, kind: str) -> int | None:
    """The axis of a Squeeze or Unsqueeze of one axis, counted from the front."""
    if node is None or node.op_type != kind or len(node.inputs) < 2:
        return None
    axis = int_of(node.inputs[1])
    dims = dims_of(node.outputs[0] if kind == "Unsqueeze" else node.inputs[0])
    if axis is None or (axis < 0 and dims is None):
        return None
    return axis if axis >= 0 else axis + len(dims or ())


def unsqueezed(value: ir.Value, axis: int) -> ir.Value | None:
    """What ``value`` is an Unsqueeze of, along ``axis``."""
    node = value.producer()
    return node.inputs[0] if node is not None and single_axis(node, "Unsqueeze") == axis else None


def tidy(editor: Editor) -> None:
    """Sort, compute nothing twice, and drop what nobody reads."""
    model = ir.Model(editor.graph, ir_version=10)
    try:
        editor.graph.sort()
    except ValueError as error:
        raise NotALoop("what the loop is given depends on what it computes") from error
    common.CommonSubexpressionEliminationPass()(model)
    common.RemoveUnusedNodesPass()(model)
