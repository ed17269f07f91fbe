"""Makes the exporter's graph a file to hand out: our producer name, readable node names, no paths or traces inside."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from typing import TYPE_CHECKING

from deploykit import __version__
from deploykit.loading import source_hash

if TYPE_CHECKING:
    import onnx
    from torch import nn

_SOURCE = "deploykit.source_sha256"
_SCOPES = "pkg.torch.onnx.name_scopes"


def clean(model: onnx.ModelProto, module: nn.Module) -> None:
    """Rename nodes after the modules they came from, and replace all metadata by ours, in place."""
    taken: set[str] = set()
    for node in model.graph.node:
        node.name = _unique("/".join([*_scope(node), node.op_type]), taken)
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


def _scope(node: onnx.NodeProto) -> list[str]:
    """The path of the module that a node came from, as the exporter noted it: ['head'] for ``self.head``."""
    noted = next((prop.value for prop in node.metadata_props if prop.key == _SCOPES), "[]")
    scopes = [scope for scope in ast.literal_eval(noted) if scope]
    return scopes[-2].split(".") if len(scopes) > 1 else []


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
        for attribute in node.attribute:
            for graph in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
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
