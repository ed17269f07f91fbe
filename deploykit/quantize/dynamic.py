"""Dynamic int8: weights as 8-bit numbers in the file, activations quantized at run time, row by row and step by step.

Built from operators of plain onnxruntime (ai.onnx and com.microsoft). Every GRU, LSTM and RNN becomes an int8 input
projection over the whole sequence and an int8 recurrent product in each step of a Scan.
"""

from __future__ import annotations

import onnx
from onnx import helper

from deploykit.coverage import RECURRENT, Coverage, CoverageRow
from deploykit.quantize import QuantizeOptions, Scheme
from deploykit.quantize._activations import QuantizedRows, quantize_rows
from deploykit.quantize._graph import MICROSOFT, name_of, walk
from deploykit.quantize._linear import Embedding, Linear, read_gather, read_gemm, read_matmul, replace_gather
from deploykit.quantize._linear import replace as replace_linear
from deploykit.quantize._pass import NO_CONV, Pass, copied
from deploykit.quantize._recurrent import DynamicProducts, Layer
from deploykit.quantize._recurrent import form as recurrent_form
from deploykit.quantize._recurrent import read as read_recurrent
from deploykit.quantize._recurrent import replace as replace_recurrent
from deploykit.quantize._weights import EXACT, WeightForm


class DynamicInt8(Scheme):
    """Int8 in every recurrent layer, MatMul and Gemm, int8 storage of embeddings; scales per row and step."""

    def __init__(self, weights: WeightForm = EXACT) -> None:
        self._weights = weights

    def apply(self, model: onnx.ModelProto, options: QuantizeOptions) -> tuple[onnx.ModelProto, Coverage]:
        """See ``Scheme.apply``."""
        result = copied(model)
        rows = _Pass(result, options, self._weights).run()
        if any(node.domain == MICROSOFT for node in walk(result.graph)) and not any(
            entry.domain == MICROSOFT for entry in result.opset_import
        ):
            result.opset_import.append(helper.make_opsetid(MICROSOFT, 1))
        return result, Coverage(tuple(rows))


class _Pass(Pass[Layer | Linear | Embedding]):
    def __init__(self, model: onnx.ModelProto, options: QuantizeOptions, weights: WeightForm) -> None:
        super().__init__(model, options)
        self._weights = weights
        self._quantized: dict[str, QuantizedRows] = {}

    def read(self, node: onnx.NodeProto) -> Layer | Linear | Embedding | str | None:
        if node.op_type in RECURRENT:
            return read_recurrent(node, self.constants, self.used)
        if node.op_type == "MatMul":
            return read_matmul(node, self.constants)
        if node.op_type == "Gemm":
            return read_gemm(node, self.constants)
        if node.op_type == "Gather":
            folded = self.constants.is_known(node.output[0])
            return None if folded else read_gather(node, self.constants)
        return NO_CONV if node.op_type in ("Conv", "ConvTranspose") else None

    def replace(self, node: onnx.NodeProto, found: Layer | Linear | Embedding) -> list[CoverageRow]:
        if isinstance(found, Layer):
            replace_recurrent(self.build, found, DynamicProducts(self._quantize(found.x), self._weights))
            became, form, size, macs = "int8", recurrent_form(found), found.weight_bytes, found.macs
        elif isinstance(found, Linear):
            replace_linear(self.build, found, self._quantize(found.x), self.constants, self._weights)
            became, form, size, macs = "int8", "MatMulIntegerToFloat", found.matrix.nbytes, found.matrix.size
        else:
            replace_gather(self.build, found)
            became, form, size, macs = "int8-storage", "Gather of int8 rows and their scales", found.table.nbytes, 0
        reason = self._weights.remark if became == "int8" else None
        return [CoverageRow(name_of(node), node.op_type, became, form, size, macs, reason=reason)]

    def _quantize(self, value: str) -> QuantizedRows:
        """The quantized rows of a value, computed once however many nodes read it."""
        if value not in self._quantized:
            self._quantized[value] = quantize_rows(self.build, value)
        return self._quantized[value]


SCHEME = DynamicInt8()
