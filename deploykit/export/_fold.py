"""Works out what a graph computes from its constants alone, and takes away initial states that are zero.

The weights of a recurrent layer reach its operator through a change of their order, and through whatever a
parametrization makes of them. Left in the graph, that would be done again at each inference, and it would hide the
weights from every quantizer.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from deploykit.coverage import RECURRENT
from deploykit.export._operators import DOMAIN
from deploykit.graphs import subgraphs

if TYPE_CHECKING:
    from deploykit.types import Array

_RELAYOUT = {"Expand", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"}
# What weights are made with; anything else stays as it is.
_FOLDABLE = _RELAYOUT | {
    *("Abs", "Add", "Cast", "Ceil", "Clip", "Concat", "ConstantOfShape", "Cos", "Div", "Equal", "Erf", "Exp", "Floor"),
    *("GatherElements", "Greater", "Less", "Log", "MatMul", "Max", "Min", "Mul", "Neg", "Not", "Pow", "Range"),
    *("Reciprocal", "ReduceL1", "ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum", "ReduceSumSquare"),
    *("Relu", "Round", "Shape", "Sigmoid", "Sign", "Sin", "Softmax", "Split", "Sqrt", "Sub", "Tanh", "Trilu", "Where"),
    "PseudoInverse",
}
# A folded value may be somewhat larger than what it was made from; a small tensor that is expanded stays small.
_GROWTH, _SMALL = 2, 4096


class PseudoInverse(OpRun):
    """Our stand-in for torch.linalg.pinv of a constant, by the singular value decomposition in float64."""

    op_domain = DOMAIN

    def _run(self, matrix: Array) -> tuple[Array]:
        return (np.linalg.pinv(matrix.astype(np.float64)).astype(matrix.dtype),)


def fold(model: onnx.ModelProto) -> None:
    """Replace what depends on constants alone by its value, in place."""
    graph = model.graph
    constants = _constants(graph)
    nodes = _constant_nodes(graph, set(constants))
    made = {name for node in nodes for name in node.output}
    read = {name for node in graph.node if node not in nodes for name in _names_read(node)}
    wanted = [name for name in made if name in read]
    if wanted:
        values = _evaluate(model, nodes, constants, sorted(wanted))
        sources = _sources(nodes, constants)
        kept = {name: value for name, value in values.items() if _worth(value, sources[name])}
        graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in kept.items())
        _drop_producers(graph, set(kept))
    remove_unused(graph)
    if not any(node.domain == DOMAIN for node in graph.node):
        for entry in [entry for entry in model.opset_import if entry.domain == DOMAIN]:
            model.opset_import.remove(entry)


def remove_unused(graph: onnx.GraphProto) -> None:
    """Take away nodes and initializers that no output depends on, in place."""
    needed = {value.name for value in graph.output}
    kept = []
    for node in reversed(graph.node):
        if needed & set(node.output):
            kept.append(node)
            needed.update(_names_read(node))
    if len(kept) < len(graph.node):
        del graph.node[:]
        graph.node.extend(reversed(kept))
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in needed]:
        graph.initializer.remove(tensor)


def _constants(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto]:
    found = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and not node.domain:
            value = _constant_value(node)
            if value is not None:
                found[node.output[0]] = value
    return found


def _constant_value(node: onnx.NodeProto) -> onnx.TensorProto | None:
    attribute = node.attribute[0]
    value = onnx.helper.get_attribute_value(attribute)
    if attribute.name == "value":
        return value if isinstance(value, onnx.TensorProto) else None
    kinds: dict[str, Any] = {"value_int": np.int64, "value_ints": np.int64, "value_float": np.float32}
    kinds["value_floats"] = np.float32
    kind = kinds.get(attribute.name)
    return None if kind is None else numpy_helper.from_array(np.asarray(value, kind))


def _constant_nodes(graph: onnx.GraphProto, known: set[str]) -> list[onnx.NodeProto]:
    """The nodes, in order, that depend on constants alone; ``known`` grows by what they make."""
    found = []
    for node in graph.node:
        if node.op_type not in _FOLDABLE or node.domain not in ("", DOMAIN):
            continue
        if not node.input or any(name and name not in known for name in node.input):
            continue
        found.append(node)
        known.update(node.output)
    return found


def _evaluate(
    model: onnx.ModelProto, nodes: list[onnx.NodeProto], constants: dict[str, onnx.TensorProto], wanted: list[str]
) -> dict[str, Array]:
    produced = {name for node in nodes for name in node.output}
    used = sorted({name for node in nodes for name in node.input if name} - produced)
    # As inputs, since large initializers would be copied once more.
    inputs, outputs = ([onnx.helper.make_empty_tensor_value_info(name) for name in names] for names in (used, wanted))
    part = onnx.helper.make_model(
        onnx.helper.make_graph(nodes, "constants", inputs, outputs),
        opset_imports=[*model.opset_import],
        ir_version=model.ir_version,
    )
    feeds = {name: numpy_helper.to_array(constants[name]) for name in used}
    values = ReferenceEvaluator(part, new_ops=[PseudoInverse]).run(None, feeds)
    return {name: np.ascontiguousarray(value) for name, value in zip(wanted, values, strict=True)}


def _sources(nodes: list[onnx.NodeProto], constants: dict[str, onnx.TensorProto]) -> dict[str, int]:
    """For each value, the bytes of the stored constants that it was made from (each way counted)."""
    sizes = {name: len(tensor.raw_data) for name, tensor in constants.items()}
    for node in nodes:
        total = sum(sizes.get(name, 0) for name in set(node.input) if name)
        sizes.update(dict.fromkeys(node.output, total))
    return sizes


def _worth(value: Array, source_bytes: int) -> bool:
    return value.nbytes <= max(_SMALL, _GROWTH * source_bytes)


def _drop_producers(graph: onnx.GraphProto, names: set[str]) -> None:
    """Of nodes whose every output is an initializer now; one with other outputs keeps those alone."""
    for node in [node for node in graph.node if names & set(node.output)]:
        if all(name in names or not name for name in node.output):
            graph.node.remove(node)
            continue
        for index, name in enumerate(node.output):
            if name in names:
                node.output[index] = f"{name}_unused"


def drop_zero_states(model: onnx.ModelProto) -> None:
    """Take away initial states that are zero, in place: an absent one is zero by the standard, and all readers know."""
    graph = model.graph
    constants = _constants(graph)
    producers = {name: node for node in graph.node for name in node.output}
    for node in graph.node:
        if node.op_type not in RECURRENT:
            continue
        for position in range(5, min(len(node.input), 7)):
            if node.input[position] and _is_zero(node.input[position], constants, producers):
                node.input[position] = ""
        while node.input and not node.input[-1]:
            del node.input[-1]
    remove_unused(graph)


def _is_zero(
    name: str, constants: dict[str, onnx.TensorProto], producers: dict[str, onnx.NodeProto], depth: int = 0
) -> bool:
    if name in constants:
        return not numpy_helper.to_array(constants[name]).any()
    node = producers.get(name)
    if node is None or depth > 20:
        return False
    if node.op_type == "ConstantOfShape":
        value = next((attribute.t for attribute in node.attribute if attribute.name == "value"), None)
        return value is None or not numpy_helper.to_array(value).any()
    if node.op_type == "Concat":
        return all(_is_zero(part, constants, producers, depth + 1) for part in node.input)
    moved = node.op_type in _RELAYOUT or node.op_type in ("Cast", "MatMul", "Split")
    return moved and _is_zero(node.input[0], constants, producers, depth + 1)


def _names_read(node: onnx.NodeProto) -> Iterable[str]:
    """The values a node reads, those that its subgraphs take from outside among them."""
    names = set(node.input)
    for graph in subgraphs(node):
        for inner in graph.node:
            names.update(_names_read(inner))
        names.update(value.name for value in graph.output)
    return names - {""}
