"""Writes a graph of opset 18, the lowest that PyTorch's exporter knows, in the words of opset 17."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import onnx
import onnx.inliner
from onnx import helper, numpy_helper

from deploykit import graphs
from deploykit.errors import ExportError, first_line
from deploykit.graphs import subgraphs

if TYPE_CHECKING:
    from deploykit.types import Array

#: Both names of the domain of standard operators.
STANDARD = ("", "ai.onnx")
_ADVICE = "choose opset 18 or later"
# The version of the file format that came with opset 17.
_FORMAT = 8

# Reductions whose axes 18 made an input; ReduceSum has had it as one since 13.
_REDUCTIONS = {
    *("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd"),
    "ReduceSumSquare",
}
# Of these, no axes at all means the input itself; the others would still map each element.
_UNTOUCHED_BY_NO_AXES = {"ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd"}
_NEW = {
    *("BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor", "CenterCropPad", "Col2Im", "GroupNormalization", "Mish"),
    # Known to 17, but there only of optional values, which no exporter of recurrent models writes.
    *("OptionalGetElement", "OptionalHasElement"),
}


def to_17(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same model in opset 17, subgraphs included; ``model`` itself stays as it is.

    Raises:
        ExportError: the model is not of opset 18, or uses what only 18 can say; the message names operator and node.
    """
    version = max((entry.version for entry in model.opset_import if entry.domain in STANDARD), default=0)
    if version != 18:
        raise ExportError(f"only a model of opset 18 can be written in opset 17, this one is of opset {version}.")
    if model.functions:
        copy: onnx.ModelProto = onnx.inliner.inline_local_functions(model)
    else:
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
    _Downgrade(_Shapes(copy)).graph(copy.graph, {})
    for entry in copy.opset_import:
        if entry.domain in STANDARD:
            entry.version = 17
    # What reads no opset above 17 reads no later format either.
    copy.ir_version = min(copy.ir_version, _FORMAT)
    return copy


@dataclass
class _Shapes:
    """Shapes of a model's values by name, inferred once and only if the graph itself does not tell one."""

    model: onnx.ModelProto
    _inferred: dict[str, tuple[int | None, ...] | None] | None = None

    def of(self, name: str) -> tuple[int | None, ...] | None:
        """The dims of a value, None for one that is not fixed; None altogether where the rank is unknown."""
        if self._inferred is None:
            self._inferred = _agreed(_declared(inferred(self.model)))
        return self._inferred.get(name)


def _agreed(found: Iterable[tuple[str, tuple[int | None, ...]]]) -> dict[str, tuple[int | None, ...] | None]:
    """What all values of a name have in common: the branches of an If may use one name for two things."""
    shapes: dict[str, tuple[int | None, ...] | None] = {}
    for name, dims in found:
        known = shapes.setdefault(name, dims)
        if known is None or len(known) != len(dims):
            shapes[name] = None
        else:
            shapes[name] = tuple(one if one == other else None for one, other in zip(known, dims, strict=True))
    return shapes


def inferred(model: onnx.ModelProto) -> onnx.GraphProto:
    """``graphs.inferred``.

    Raises:
        ExportError: the graph contradicts itself.
    """
    try:
        return graphs.inferred(model)
    except onnx.shape_inference.InferenceError as error:
        raise ExportError(f"the exported graph contradicts itself: {first_line(error)}.") from error


def _declared(graph: onnx.GraphProto) -> Iterator[tuple[str, tuple[int | None, ...]]]:
    for value in (*graph.input, *graph.value_info, *graph.output):
        if value.type.tensor_type.HasField("shape"):
            dims = value.type.tensor_type.shape.dim
            yield value.name, tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in dims)
    for tensor in graph.initializer:
        yield tensor.name, tuple(tensor.dims)
    for node in graph.node:
        for inner in subgraphs(node):
            yield from _declared(inner)


@dataclass
class _Downgrade:
    shapes: _Shapes
    # Names that an operator no longer reads because what they held became an attribute.
    _freed: set[str] = field(default_factory=set)

    def graph(self, graph: onnx.GraphProto, outer: Mapping[str, Array]) -> None:
        """Rewrite one graph and those within, in place; ``outer`` holds the constants of the graphs around it."""
        inputs = {value.name for value in graph.input}
        known = {name: value for name, value in outer.items() if name not in inputs}
        # An initializer that is an input as well is only its default.
        known |= {
            tensor.name: numpy_helper.to_array(tensor)
            for tensor in graph.initializer
            if _small(tensor) and tensor.name not in inputs
        }
        fresh: list[onnx.TensorProto] = []
        for node in graph.node:
            if node.op_type == "Constant" and (value := _constant(node)) is not None:
                known[node.output[0]] = value
            else:
                for output in node.output:
                    known.pop(output, None)
            if node.domain in STANDARD:
                fresh += self._node(node, known)
            for inner in subgraphs(node):
                self.graph(inner, known)
        graph.initializer.extend(fresh)
        _forget(graph, self._freed)

    def _node(self, node: onnx.NodeProto, known: Mapping[str, Array]) -> list[onnx.TensorProto]:
        """Rewrite one node in place; the initializers that it now needs."""
        if node.op_type in _NEW:
            raise _refused(node, "has no such operator")
        if node.op_type in _REDUCTIONS:
            self._reduction(node, known)
        elif node.op_type == "Split":
            return self._split(node)
        elif node.op_type == "Pad":
            return self._pad(node, known)
        elif node.op_type == "Resize":
            return self._resize(node, known)
        elif node.op_type in ("ScatterElements", "ScatterND"):
            reduction = _attributes(node).get("reduction", b"none")
            if reduction in (b"max", b"min"):
                raise _refused(node, f"has no reduction {reduction.decode()!r}")
        elif node.op_type == "LpPool":
            if _attributes(node).get("ceil_mode", 0) or set(_attributes(node).get("dilations", [])) - {1}:
                raise _refused(node, "has neither ceil_mode nor dilations")
            _drop(node, "ceil_mode", "dilations")
        return []

    def _reduction(self, node: onnx.NodeProto, known: Mapping[str, Array]) -> None:
        axes = self._taken(node, 1, known, "takes axes only as constants")
        over_none = bool(_attributes(node).get("noop_with_empty_axes", 0))
        _drop(node, "noop_with_empty_axes")
        if axes is not None and axes.size:
            node.attribute.append(helper.make_attribute("axes", [int(axis) for axis in axes]))
        elif over_none:
            if node.op_type not in _UNTOUCHED_BY_NO_AXES:
                raise _refused(node, "cannot reduce over no axes")
            _drop(node, "keepdims")
            node.op_type = "Identity"

    def _split(self, node: onnx.NodeProto) -> list[onnx.TensorProto]:
        _drop(node, "num_outputs")
        if len(node.input) > 1 and node.input[1]:
            return []
        dims = self.shapes.of(node.input[0])
        size = None if dims is None else dims[_attributes(node).get("axis", 0)]
        if size is None:
            raise _refused(node, "splits without sizes only what it knows to be even")
        count = len(node.output)
        if size % count == 0:
            return []
        part = -(-size // count)
        # The last parts may be left with less, or with nothing.
        sizes = [max(min(part, size - index * part), 0) for index in range(count)]
        return [_appended(node, 1, sizes)]

    def _pad(self, node: onnx.NodeProto, known: Mapping[str, Array]) -> list[onnx.TensorProto]:
        axes = self._taken(node, 3, known, "pads only all axes")
        if axes is None:
            return []
        dims = self.shapes.of(node.input[0])
        pads = self._taken(node, 1, known, "pads only all axes")
        if dims is None or pads is None:
            raise _refused(node, "pads only all axes")
        rank = len(dims)
        before, after = [0] * rank, [0] * rank
        for index, axis in enumerate(axes):
            before[axis], after[axis] = int(pads[index]), int(pads[index + len(axes)])
        return [_appended(node, 1, [*before, *after])]

    def _resize(self, node: onnx.NodeProto, known: Mapping[str, Array]) -> list[onnx.TensorProto]:
        attributes = _attributes(node)
        if attributes.get("antialias", 0):
            raise _refused(node, "has no antialias")
        if attributes.get("keep_aspect_ratio_policy", b"stretch") != b"stretch":
            raise _refused(node, "has no keep_aspect_ratio_policy")
        _drop(node, "antialias", "keep_aspect_ratio_policy", "axes")
        axes, dims = attributes.get("axes"), self.shapes.of(node.input[0])
        if axes is None or (dims is not None and list(axes) == list(range(len(dims)))):
            return []
        if dims is None or (len(node.input) > 1 and node.input[1]):
            raise _refused(node, "resizes only all axes")
        by_scales = len(node.input) > 2 and bool(node.input[2])
        given = self._taken(node, 2 if by_scales else 3, known, "resizes only all axes")
        whole: list[Any] = [1.0] * len(dims) if by_scales else list(dims)
        for axis, value in zip(axes, () if given is None else given, strict=True):
            whole[axis] = value.item()
        if None in whole:
            raise _refused(node, "resizes only all axes, by sizes that are known")
        return [_appended(node, 2 if by_scales else 3, whole)]

    def _taken(self, node: onnx.NodeProto, index: int, known: Mapping[str, Array], what: str) -> Array | None:
        """The constant that a node reads at ``index``, which it then reads no longer; None where it reads nothing."""
        if len(node.input) <= index or not node.input[index]:
            return None
        name = node.input[index]
        if name not in known:
            raise _refused(node, what)
        self._freed.add(name)
        node.input[index] = ""
        while node.input and not node.input[-1]:
            node.input.pop()
        return known[name].reshape(-1)


def _refused(node: onnx.NodeProto, why: str) -> ExportError:
    name = node.name or next(filter(None, node.output), "")
    return ExportError(f"the graph has {node.op_type} ({name}), and opset 17 {why}: {_ADVICE}.")


def _appended(node: onnx.NodeProto, index: int, values: list[int] | list[float]) -> onnx.TensorProto:
    """Make ``values`` the node's input at ``index``: the initializer to add."""
    import numpy as np

    name = f"{next(filter(None, node.output))}_{'sizes' if node.op_type == 'Split' else node.op_type.lower()}"
    while len(node.input) <= index:
        node.input.append("")
    node.input[index] = name
    dtype = np.float32 if any(isinstance(value, float) for value in values) else np.int64
    return numpy_helper.from_array(np.array(values, dtype), name)


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def _drop(node: onnx.NodeProto, *names: str) -> None:
    for attribute in [attribute for attribute in node.attribute if attribute.name in names]:
        node.attribute.remove(attribute)


def _small(tensor: onnx.TensorProto) -> bool:
    """Whether a tensor may be axes, sizes or scales: one number per axis."""
    return len(tensor.dims) <= 1 and math.prod(tensor.dims) <= 64 and not tensor.external_data


def _constant(node: onnx.NodeProto) -> Array | None:
    import numpy as np

    values = _attributes(node)
    if "value" in values:
        return numpy_helper.to_array(values["value"]) if _small(values["value"]) else None
    numbers = [values[name] for name in ("value_int", "value_ints", "value_float", "value_floats") if name in values]
    return np.asarray(numbers[0]) if numbers else None


def _forget(graph: onnx.GraphProto, freed: set[str]) -> None:
    """Take away those of the freed constants that nothing reads any more: onnxruntime would warn about them."""
    unread = freed - set(_read(graph))
    for tensor in [tensor for tensor in graph.initializer if tensor.name in unread]:
        graph.initializer.remove(tensor)
    for node in [node for node in graph.node if node.op_type == "Constant" and node.output[0] in unread]:
        graph.node.remove(node)


def _read(graph: onnx.GraphProto) -> Iterable[str]:
    yield from (value.name for value in graph.output)
    for node in graph.node:
        yield from node.input
        for inner in subgraphs(node):
            yield from _read(inner)
