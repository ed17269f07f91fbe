"""Dynamic int8: weights as 8-bit numbers in the file, activations quantized at run time, row by row and step by step.

Built from operators of plain onnxruntime (ai.onnx and com.microsoft). Every GRU, LSTM and RNN becomes an int8 input
projection over the whole sequence and an int8 recurrent product in each step of a Scan.
"""

from __future__ import annotations

import onnx
from onnx import helper
from onnx.inliner import inline_local_functions

from deploykit.coverage import RECURRENT, Coverage, CoverageRow
from deploykit.quantize import QuantizeOptions, Scheme
from deploykit.quantize._activations import QuantizedRows, quantize_rows
from deploykit.quantize._constants import Constants
from deploykit.quantize._graph import MICROSOFT, Builder, Names, is_standard, name_of, prune, set_nodes, uses, walk
from deploykit.quantize._linear import Embedding, Linear, read_gather, read_gemm, read_matmul, replace_gather
from deploykit.quantize._linear import replace as replace_linear
from deploykit.quantize._recurrent import Layer
from deploykit.quantize._recurrent import form as recurrent_form
from deploykit.quantize._recurrent import read as read_recurrent
from deploykit.quantize._recurrent import replace as replace_recurrent
from deploykit.quantize._source import check_source, float_row, inner_nodes, opset_of
from deploykit.quantize._weights import EXACT, WeightForm

_WEIGHTED = RECURRENT | {"MatMul", "Gemm", "Conv", "ConvTranspose"}
_NO_CONV = "convolutions stay in float: int8 costs most of a model's accuracy there"


class DynamicInt8(Scheme):
    """Int8 in every recurrent layer, MatMul and Gemm, int8 storage of embeddings; scales per row and step."""

    def __init__(self, weights: WeightForm = EXACT) -> None:
        self._weights = weights

    def apply(self, model: onnx.ModelProto, options: QuantizeOptions) -> tuple[onnx.ModelProto, Coverage]:
        """See ``Scheme.apply``."""
        check_source(model)
        result = onnx.ModelProto()
        result.CopyFrom(inline_local_functions(model) if model.functions else model)
        rows = _Pass(result, options, self._weights).run()
        if any(node.domain == MICROSOFT for node in walk(result.graph)) and not any(
            entry.domain == MICROSOFT for entry in result.opset_import
        ):
            result.opset_import.append(helper.make_opsetid(MICROSOFT, 1))
        return result, Coverage(tuple(rows))


class _Pass:
    """One walk over the nodes of a graph, which it changes in place."""

    def __init__(self, model: onnx.ModelProto, options: QuantizeOptions, weights: WeightForm) -> None:
        opset = opset_of(model)
        self._graph = model.graph
        self._weights = weights
        self._exclude = options.exclude
        self._opset = opset
        self._constants = Constants(model.graph, opset)
        self._build = Builder(Names(model.graph), "int8", opset)
        self._used = set(uses(model.graph))
        self._quantized: dict[str, QuantizedRows] = {}
        self._rows: list[CoverageRow] = []

    def run(self) -> list[CoverageRow]:
        nodes: list[onnx.NodeProto] = []
        for node in self._graph.node:
            nodes.extend(self._node(node))
            for inner, graph, place in inner_nodes(node):
                self._leave_inner(inner, graph, place)
        set_nodes(self._graph, nodes)
        self._graph.initializer.extend(self._build.initializers)
        prune(self._graph)
        return self._rows

    def _node(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """What stands in the node's place now; notes what became of it, if it has weights."""
        found = self._read(node) if is_standard(node) else None
        if found is None:
            return [node]
        if node.name in self._exclude and not isinstance(found, str):
            found = "excluded by name"
        if isinstance(found, str):
            self._rows.append(float_row(self._graph, node, self._constants, found))
            return [node]
        self._build.prefix = f"{name_of(node)}/int8"
        self._rows.append(self._replace(node, found))
        return self._build.drain()

    def _read(self, node: onnx.NodeProto) -> Layer | Linear | Embedding | str | None:
        if node.op_type in RECURRENT:
            return read_recurrent(node, self._constants, self._used)
        if node.op_type == "MatMul":
            return read_matmul(node, self._constants)
        if node.op_type == "Gemm":
            return read_gemm(node, self._constants)
        if node.op_type == "Gather":
            folded = self._constants.is_known(node.output[0])
            return None if folded else read_gather(node, self._constants)
        return _NO_CONV if node.op_type in ("Conv", "ConvTranspose") else None

    def _replace(self, node: onnx.NodeProto, found: Layer | Linear | Embedding) -> CoverageRow:
        if isinstance(found, Layer):
            replace_recurrent(self._build, found, self._quantize(found.x), self._weights)
            became, form, size, macs = "int8", recurrent_form(found), found.weight_bytes, found.macs
        elif isinstance(found, Linear):
            replace_linear(self._build, found, self._quantize(found.x), self._constants, self._weights)
            became, form, size, macs = "int8", "MatMulIntegerToFloat", found.matrix.nbytes, found.matrix.size
        else:
            replace_gather(self._build, found)
            became, form, size, macs = "int8-storage", "Gather of int8 rows and their scales", found.table.nbytes, 0
        reason = self._weights.remark if became == "int8" else None
        return CoverageRow(name_of(node), node.op_type, became, form, size, macs, reason=reason)

    def _quantize(self, value: str) -> QuantizedRows:
        """The quantized rows of a value, computed once however many nodes read it."""
        if value not in self._quantized:
            self._quantized[value] = quantize_rows(self._build, value)
        return self._quantized[value]

    def _leave_inner(self, node: onnx.NodeProto, graph: onnx.GraphProto, place: str) -> None:
        constants = Constants(graph, self._opset, outer=self._constants)
        weighted = node.op_type in _WEIGHTED or (node.op_type == "Gather" and read_gather(node, constants))
        if is_standard(node) and weighted:
            self._rows.append(float_row(graph, node, constants, f"it lies inside {place}"))


SCHEME = DynamicInt8()
