"""Makes the exporter's graph a file to hand out: our producer name, readable node names, no paths or traces inside."""

from __future__ import annotations

import ast
import hashlib
from typing import TYPE_CHECKING

from deploykit import __version__

if TYPE_CHECKING:
    import onnx
    from torch import nn

_SCOPES = "pkg.torch.onnx.name_scopes"


def clean(model: onnx.ModelProto, module: nn.Module) -> None:
    """Rename nodes after the modules they came from, and replace all metadata by ours, in place."""
    taken: set[str] = set()
    for node in model.graph.node:
        node.name = _unique("/".join([*_scope(node), node.op_type]), taken)
        _strip(node)
    for graph_part in (*model.graph.input, *model.graph.output, *model.graph.value_info, *model.graph.initializer):
        _strip(graph_part)
    _strip(model.graph)
    _strip(model)
    del model.graph.value_info[:]  # shapes of inner tensors: any reader infers them again
    model.graph.name = "model"
    model.producer_name = "deploykit"
    model.producer_version = __version__
    entry = model.metadata_props.add()
    entry.key, entry.value = "deploykit.source_sha256", source_hash(module)


def source_hash(module: nn.Module) -> str:
    """SHA-256 over the module's class, structure and state dict: names, dtypes, shapes and bytes."""
    import torch

    digest = hashlib.sha256(f"{type(module).__qualname__}\n{module}\n".encode())
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        # Bytes by way of uint8, since NumPy has no bfloat16.
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


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


def _strip(
    part: onnx.ModelProto | onnx.GraphProto | onnx.NodeProto | onnx.ValueInfoProto | onnx.TensorProto,
) -> None:
    del part.metadata_props[:]
    part.doc_string = ""
