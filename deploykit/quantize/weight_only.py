"""Weight-only int8: weights stored as int8 with a scale per output channel, arithmetic in float as before.

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

from deploykit.coverage import RECURRENT, Coverage, CoverageRow
from deploykit.quantize import QuantizeOptions, Scheme
from deploykit.quantize._graph import attributes, name_of
from deploykit.quantize._linear import Embedding, read_gather, replace_gather
from deploykit.quantize._pass import Pass, copied
from deploykit.quantize._weights import symmetric

if TYPE_CHECKING:
    from numpy.typing import NDArray

_FORM = "int8 weights times their scales, float arithmetic"


class WeightOnly(Scheme):
    """Int8 storage of every constant weight of a recurrent layer, MatMul, Gemm, convolution and embedding."""

    recurrence = frozenset({"int8", "int8-storage"})

    def apply(self, model: onnx.ModelProto, options: QuantizeOptions) -> tuple[onnx.ModelProto, Coverage]:
        """See ``Scheme.apply``."""
        result = copied(model)
        return result, Coverage(tuple(_Pass(result, options).run()))


@dataclass(frozen=True)
class _Weight:
    """Input ``place`` of a node: ``array``, whose scales are shared along ``axes`` (all but the output channel's)."""

    place: int
    array: NDArray[np.float32]
    axes: tuple[int, ...]


_Weights = tuple[_Weight, ...]


class _Pass(Pass[_Weights | Embedding]):
    def read(self, node: onnx.NodeProto) -> _Weights | Embedding | str | None:
        if node.op_type == "Gather":
            folded = self.constants.is_known(node.output[0])
            return None if folded else read_gather(node, self.constants)
        places = dict.fromkeys(RECURRENT, (1, 2)) | {"Gemm": (1,), "Conv": (1,), "ConvTranspose": (1,)}
        if node.op_type == "MatMul":
            known = [place for place in (1, 0) if self.constants.is_known(node.input[place])]
            return self._weights(node, tuple(known[:1])) if known else "a product of two activations"
        return self._weights(node, places[node.op_type]) if node.op_type in places else None

    def _weights(self, node: onnx.NodeProto, places: tuple[int, ...]) -> _Weights | str:
        found = []
        for place in places:
            array = self.constants.value(node.input[place])
            if array is None:
                return "its weights are not constant"
            if array.dtype != np.float32:
                return f"its weights are {array.dtype}, not float32"
            if array.ndim < 2 or not array.size:
                return "its weights are no matrix"
            found.append(_Weight(place, array, _shared(node, place, array.ndim)))
        for name in filter(self.constants.is_known, node.input):
            self.constants.check_finite(name)
        return tuple(found)

    def replace(self, node: onnx.NodeProto, found: _Weights | Embedding) -> list[CoverageRow]:
        if isinstance(found, Embedding):
            replace_gather(self.build, found)
            form, size, macs = "Gather of int8 rows and their scales", found.table.nbytes, 0
        else:
            kept = onnx.NodeProto()
            kept.CopyFrom(node)
            for weight in found:
                kept.input[weight.place] = self._stored(weight)
            self.build.nodes.append(kept)
            size, macs = (sum(getattr(one.array, what) for one in found) for what in ("nbytes", "size"))
            form = _FORM
        return [CoverageRow(name_of(node), node.op_type, "int8-storage", form, size, macs)]

    def _stored(self, weight: _Weight) -> str:
        """The name of the float weight, made from int8."""
        values, scale = symmetric(weight.array, weight.axes)
        scale = np.expand_dims(scale, weight.axes)
        # A head that is tied to its embedding is that table, turned: one copy serves both.
        turned = values.ndim == 2 and self.build.has(values.T)
        if turned:
            values, scale = values.T, scale.T
        floats = self.build.op("Cast", [self.build.constant(values, "weights_int8")], "cast", to=TensorProto.FLOAT)
        result = self.build.op("Mul", [floats, self.build.constant(scale, "weights_scale")], "weights")
        return self.build.op("Transpose", [result], "turned", perm=[1, 0]) if turned else result


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


SCHEME = WeightOnly()
