"""GRU, LSTM and RNN as one node each: the fused int8 operators of ``ai.deploykit`` (``deploykit.kernels``).

The same int8 weights as in the portable form, and the same scales per row and step, so the same numbers within
rounding. The whole sequence is one node, so that nothing is paid per step for onnxruntime's handling of nodes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from deploykit.kernels import DOMAIN, OPERATORS
from deploykit.quantize._constants import Constants
from deploykit.quantize._graph import Builder
from deploykit.quantize._recurrent import Layer, read
from deploykit.quantize._weights import WeightForm, per_output_channel

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class FusedLayer:
    """A recurrent node that one fused operator can compute."""

    layer: Layer

    @property
    def hidden(self) -> int:
        """Hidden size."""
        return self.layer.hidden

    @property
    def weight_bytes(self) -> int:
        """Size in bytes of the float matrices."""
        return self.layer.weight_bytes

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one row and time step."""
        return self.layer.macs


def read_fused(node: onnx.NodeProto, constants: Constants, used: set[str]) -> FusedLayer | Layer | str:
    """The layer, for the portable form where the operators have none, or the reason why it has to stay in float."""
    found = read(node, constants, used)
    # The operators have one activation for both directions.
    return FusedLayer(found) if isinstance(found, Layer) and len(set(found.activations)) == 1 else found


def form(fused: FusedLayer) -> str:
    """What a reader is told of the operator that does the work now."""
    return f"{OPERATORS[fused.layer.kind]} of {DOMAIN} (fused)"


def replace_fused(build: Builder, fused: FusedLayer, weights: WeightForm) -> None:
    """Add the node that computes the layer's outputs."""
    layer = fused.layer
    # Around zero whatever the scheme's own form: the operators multiply int8 weights of the whole range exactly.
    signed = replace(weights, zero_point=0)
    w, w_scale = _quantized(layer.w, signed)
    r, r_scale = _quantized(layer.r, signed)
    inputs = [
        layer.x,
        build.constant(w, "w_int8"),
        build.constant(r, "r_int8"),
        build.constant(w_scale, "w_scale"),
        build.constant(r_scale, "r_scale"),
        build.constant(layer.b, "bias") if layer.b.any() else "",
        layer.sequence_lens,
        *layer.initial,
    ]
    outputs = [layer.y, *layer.finals]
    build.nodes.append(
        helper.make_node(
            OPERATORS[layer.kind], _trimmed(inputs), _trimmed(outputs), layer.name, domain=DOMAIN, **_attrs(layer)
        )
    )


def infos(fused: FusedLayer) -> Iterator[onnx.ValueInfoProto]:
    """Types and shapes of the outputs: ONNX's shape inference stops at an operator that it does not know."""
    layer = fused.layer
    count = len(layer.directions)
    if layer.y:
        yield helper.make_tensor_value_info(layer.y, TensorProto.FLOAT, [None, count, None, layer.hidden])
    for name in filter(None, layer.finals):
        yield helper.make_tensor_value_info(name, TensorProto.FLOAT, [count, None, layer.hidden])


def _attrs(layer: Layer) -> dict[str, Any]:
    direction = "bidirectional" if len(layer.directions) == 2 else layer.directions[0]
    attrs: dict[str, Any] = {"hidden_size": layer.hidden, "direction": direction}
    if layer.kind == "GRU":
        attrs["linear_before_reset"] = int(layer.linear_before_reset)
    if layer.kind == "RNN":
        attrs["activation"] = layer.activations[0]
    return attrs


def _quantized(matrices: NDArray[np.float32], weights: WeightForm) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """``[directions, in, gates * hidden]`` with the scales ``[directions, gates * hidden]``."""
    each = [per_output_channel(matrix.T, weights) for matrix in matrices]
    return np.stack([one.values for one in each]).astype(np.int8), np.stack([one.scale for one in each])


def _trimmed(names: Sequence[str]) -> list[str]:
    """Without the empty names at the end, which say the same as none."""
    last = max((place for place, name in enumerate(names) if name), default=-1)
    return list(names[: last + 1])
