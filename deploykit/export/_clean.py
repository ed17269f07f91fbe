"""Makes the exporter's graph a file to hand out: our producer name, readable node names, no paths or traces inside."""

from __future__ import annotations

import ast
import contextlib
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from deploykit import __version__
from deploykit.coverage import RECURRENT
from deploykit.graphs import subgraphs
from deploykit.loading import source_hash

if TYPE_CHECKING:
    import onnx
    from torch import nn

_SOURCE = "deploykit.source_sha256"
#: The name under which the traced wrapper holds the user's module: a prefix of every path in the program.
ROOT = "model"
# Protobuf's limit for one message is 2 GiB; what the graph itself takes stays far below the rest.
MOST_BYTES = 2**31 - 2**26
# Of a model over that, the smaller tensors stay in the graph; the others begin where a reader may map them to memory.
_INLINE_BYTES, _ALIGNMENT = 1024, 4096
_SCOPES = "pkg.torch.onnx.name_scopes"


def clean(model: onnx.ModelProto, module: nn.Module) -> None:
    """Rename nodes and weights after the modules they came from, and replace all metadata by ours, in place."""
    _name_nodes(model.graph, set())
    _rename_weights(model.graph)
    _rename_dims(model.graph)
    _strip_graph(model.graph)
    for function in model.functions:
        _strip(function)
        _strip_nodes(function.node)
    _strip(model)
    del model.graph.value_info[:]  # shapes of inner tensors: any reader infers them again
    model.graph.name = "model"
    model.producer_name = "deploykit"
    model.producer_version = __version__
    entry = model.metadata_props.add()
    entry.key, entry.value = _SOURCE, source_hash(module)


def noted_source(model: onnx.ModelProto) -> str:
    """The source hash that ``clean`` has put into the file."""
    return str(next(entry.value for entry in model.metadata_props if entry.key == _SOURCE))


def serialized(model: onnx.ModelProto, name: str) -> dict[str, bytes]:
    """The files that hold the model, by name: one, and ``<name>.data`` beside it with the weights of a large one."""
    import onnx

    tensors = [tensor for tensor in model.graph.initializer if tensor.HasField("raw_data")]
    if sum(len(tensor.raw_data) for tensor in tensors) <= MOST_BYTES:
        return {name: model.SerializeToString(deterministic=True)}
    light = onnx.ModelProto()
    light.CopyFrom(model)
    content, offset = [], 0
    for tensor in light.graph.initializer:
        if len(tensor.raw_data) < _INLINE_BYTES:
            continue
        padding = -offset % _ALIGNMENT
        content += [bytes(padding), tensor.raw_data]
        tensor.data_location = onnx.TensorProto.EXTERNAL
        values = {"location": f"{name}.data", "offset": offset + padding, "length": len(tensor.raw_data)}
        offset += padding + len(tensor.raw_data)
        for key, value in values.items():
            entry = tensor.external_data.add()
            entry.key, entry.value = key, str(value)
        tensor.ClearField("raw_data")
    return {name: light.SerializeToString(deterministic=True), f"{name}.data": b"".join(content)}


def _scope(node: onnx.NodeProto) -> list[str]:
    """The path of the module that a node came from, as the exporter noted it: ['head'] for ``self.head``."""
    noted = next((prop.value for prop in node.metadata_props if prop.key == _SCOPES), "[]")
    scopes = [scope for scope in ast.literal_eval(noted) if scope]
    # The path begins with the wrapper's attribute that holds the whole model.
    return scopes[-2].split(".")[1:] if len(scopes) > 1 else []


def _name_nodes(graph: onnx.GraphProto, taken: set[str]) -> None:
    for node in graph.node:
        # A loop has the metadata of whichever node it was made from.
        scope = [] if node.op_type == "Scan" else _scope(node)
        node.name = _unique("/".join([*scope, node.op_type]), taken)
        for inner in subgraphs(node):
            _name_nodes(inner, taken)


def _rename_weights(graph: onnx.GraphProto) -> None:
    """``rnn/GRU.W`` for the weights of a recurrent node, and the module's own names, from the model on, for others."""
    names = {tensor.name for tensor in graph.initializer}
    taken = {value.name for value in (*graph.input, *graph.output)} | {
        name for node in graph.node for name in node.output
    }
    wanted: dict[str, str] = {}
    for node in graph.node:
        if node.op_type in RECURRENT:
            for position, letter in enumerate("WRB", start=1):
                if len(node.input) > position and node.input[position] in names:
                    wanted.setdefault(node.input[position], f"{node.name}.{letter}")
    renamed = {}
    for tensor in graph.initializer:
        renamed[tensor.name] = _unique(wanted.get(tensor.name, tensor.name.removeprefix(f"{ROOT}.")), taken)
        tensor.name = renamed[tensor.name]
    _rename_inputs(graph, renamed)


def _rename_dims(graph: onnx.GraphProto) -> None:
    """``length`` for what PyTorch calls u0, a size that depends on values; formulas without needless brackets."""
    names: dict[str, str] = {}
    for value in graph.output:
        for dim in value.type.tensor_type.shape.dim:
            if re.fullmatch(r"u\d+", dim.dim_param):
                number = "" if not names else f"_{len(names) + 1}"
                dim.dim_param = names.setdefault(dim.dim_param, f"length{number}")
            elif dim.dim_param and not dim.dim_param.isidentifier():
                with contextlib.suppress(SyntaxError):  # a formula that Python would not write so
                    dim.dim_param = ast.unparse(ast.parse(dim.dim_param, mode="eval"))


def _rename_inputs(graph: onnx.GraphProto, renamed: Mapping[str, str]) -> None:
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name in renamed:
                node.input[index] = renamed[name]
        for inner in subgraphs(node):
            own = {value.name for value in inner.input} | {name for one in inner.node for name in one.output}
            _rename_inputs(inner, {name: new for name, new in renamed.items() if name not in own})
    for value in graph.output:
        if value.name in renamed:
            value.name = renamed[value.name]


def _unique(name: str, taken: set[str]) -> str:
    candidate, number = name, 1
    while candidate in taken:
        number += 1
        candidate = f"{name}_{number}"
    taken.add(candidate)
    return candidate


def _strip_graph(graph: onnx.GraphProto) -> None:
    _strip(graph)
    for part in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        _strip(part)
    _strip_nodes(graph.node)


def _strip_nodes(nodes: Iterable[onnx.NodeProto]) -> None:
    for node in nodes:
        _strip(node)
        for graph in subgraphs(node):
            _strip_graph(graph)


def _strip(
    part: onnx.ModelProto
    | onnx.GraphProto
    | onnx.FunctionProto
    | onnx.NodeProto
    | onnx.ValueInfoProto
    | onnx.TensorProto,
) -> None:
    del part.metadata_props[:]
    part.doc_string = ""
