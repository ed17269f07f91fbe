"""Weights stored as int8 with a scale per output channel, in front of a node that computes in float as before.

A weight becomes Cast(int8) * scale in front of the node that uses it, which stays as it is. Every ONNX runtime has
those two operators, and onnxruntime works them out once, when it loads the file. Behind a DequantizeLinear it does not:
it converts the weights anew in every run, which doubles the time of a GRU's single step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import TensorProto

from deploykit.coverage import RECURRENT
from deploykit.quantize._constants import Constants
from deploykit.quantize._graph import Builder, attributes
from deploykit.quantize._weights import symmetric

if TYPE_CHECKING:
    from numpy.typing import NDArray

FORM = "int8 weights times their scales, float arithmetic"
CONVOLUTIONS = ("Conv", "ConvTranspose")
_PLACES = dict.fromkeys(RECURRENT, (1, 2)) | dict.fromkeys(("Gemm", *CONVOLUTIONS), (1,))


@dataclass(frozen=True)
class Weight:
    """Input ``place`` of a node: ``array``, whose scales are shared along ``axes`` (all but the output channel's)."""

    place: int
    array: NDArray[np.float32]
    axes: tuple[int, ...]


@dataclass(frozen=True)
class Weights:
    """The constant weights of one node, and why only their storage changes, where that has to be said.

    ``by_preference`` as in ``CoverageRow``.
    """

    parts: tuple[Weight, ...]
    reason: str | None = None
    by_preference: bool = False

    @property
    def weight_bytes(self) -> int:
        """Size in bytes of the float weights."""
        return sum(part.array.nbytes for part in self.parts)

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one row and time step, or for one position of a convolution."""
        return sum(part.array.size for part in self.parts)


def read_weights(node: onnx.NodeProto, constants: Constants) -> Weights | str | None:
    """The weights of a recurrent layer, MatMul, Gemm or convolution, the reason why they stay, None for other nodes."""
    if node.op_type == "MatMul":
        known = [place for place in (1, 0) if constants.is_known(node.input[place])]
        return _read(node, tuple(known[:1]), constants) if known else "a product of two activations"
    return _read(node, _PLACES[node.op_type], constants) if node.op_type in _PLACES else None


def _read(node: onnx.NodeProto, places: tuple[int, ...], constants: Constants) -> Weights | str:
    found = []
    for place in places:
        array = constants.value(node.input[place])
        if array is None:
            return "its weights are not constant"
        if array.dtype != np.float32:
            return f"its weights are {array.dtype}, not float32"
        if array.ndim < 2 or not array.size:
            return "its weights are no matrix"
        found.append(Weight(place, array, _shared(node, place, array.ndim)))
    for name in filter(constants.is_known, node.input):
        constants.check_finite(name)
    return Weights(tuple(found))


def with_stored(build: Builder, node: onnx.NodeProto, weights: Weights) -> onnx.NodeProto:
    """The node with int8 weights; what turns them into float is added to ``build``."""
    kept = onnx.NodeProto()
    kept.CopyFrom(node)
    for weight in weights.parts:
        kept.input[weight.place] = _stored(build, weight)
    return kept


def _stored(build: Builder, weight: Weight) -> str:
    """The name of the float weight, made from int8."""
    values, scale = symmetric(weight.array, weight.axes)
    scale = np.expand_dims(scale, weight.axes)
    # A head that is tied to its embedding is that table, turned: one copy serves both.
    turned = values.ndim == 2 and build.has(values.T)
    if turned:
        values, scale = values.T, scale.T
    floats = build.op("Cast", [build.constant(values, "weights_int8")], "cast", to=TensorProto.FLOAT)
    result = build.op("Mul", [floats, build.constant(scale, "weights_scale")], "weights")
    return build.op("Transpose", [result], "turned", perm=[1, 0]) if turned else result


def _shared(node: onnx.NodeProto, place: int, ndim: int) -> tuple[int, ...]:
    """The axes of a weight that are summed over or convolved: all numbers of an output channel, and no others."""
    if node.op_type in RECURRENT:
        return (2,)
    if node.op_type == "MatMul":
        return (ndim - 2,) if place else (ndim - 1,)
    if node.op_type == "Gemm":
        return (1,) if attributes(node).get("transB") else (0,)
    channel = 1 if node.op_type == "ConvTranspose" else 0
    return tuple(axis for axis in range(ndim) if axis != channel)
