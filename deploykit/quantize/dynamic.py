"""Dynamic int8: weights as 8-bit numbers in the file, activations quantized at run time, row by row and step by step.

Built from operators of plain onnxruntime (ai.onnx and com.microsoft). Every GRU, LSTM and RNN becomes an int8 input
projection over the whole sequence and an int8 recurrent product in each step of a Scan; or, with fused kernels, one
node of ``ai.deploykit``. Where that would be slower than
float arithmetic, or cannot be done without coupling rows or steps, only the weights are stored as int8.
"""

from __future__ import annotations

from dataclasses import replace

import onnx
from onnx import helper

from deploykit import kernels
from deploykit.coverage import RECURRENT, Coverage, CoverageRow
from deploykit.quantize import QuantizeOptions, Scheme
from deploykit.quantize._activations import QuantizedRows, quantize_rows
from deploykit.quantize._attention import CONTEXT_REMARK, Product, Products, replace_product
from deploykit.quantize._coupled import FORM as COUPLED_FORM
from deploykit.quantize._coupled import CoupledLstm, read_coupled, replace_coupled
from deploykit.quantize._fused import FusedLayer, infos, read_fused, replace_fused
from deploykit.quantize._fused import form as fused_form
from deploykit.quantize._graph import MICROSOFT, name_of, walk
from deploykit.quantize._linear import (
    SMALLEST_TABLE,
    TABLE_FORM,
    Embedding,
    Linear,
    read_gather,
    read_gemm,
    read_matmul,
    replace_gather,
)
from deploykit.quantize._linear import replace as replace_linear
from deploykit.quantize._pass import Pass, Scope, copied
from deploykit.quantize._preference import why_storage_only
from deploykit.quantize._recurrent import DynamicProducts, Layer
from deploykit.quantize._recurrent import form as recurrent_form
from deploykit.quantize._recurrent import read as read_recurrent
from deploykit.quantize._recurrent import replace as replace_recurrent
from deploykit.quantize._source import static_size
from deploykit.quantize._storage import CONVOLUTIONS, FORM, Weights, read_weights, with_stored
from deploykit.quantize._weights import PAIRED, WeightForm

_ACTIVATIONS = "a product of two activations, both to be quantized in every run, is faster in float"
_WINDOW = "one activation scale for a window would couple time steps"

#: What is not in ai.onnx, and the version of it that the graph asks for.
_OTHER_OPSETS = {MICROSOFT: 1, kernels.DOMAIN: kernels.VERSION}

_Found = Layer | FusedLayer | CoupledLstm | Linear | Product | Embedding | Weights


class DynamicInt8(Scheme):
    """Int8 in recurrent layers, MatMul and Gemm, int8 storage of the rest; scales per row and step."""

    recurrence = frozenset({"int8", "int8-storage"})
    heeds = frozenset({"prefer", "kernels", "allow-coupled", "stored"})

    def __init__(self, weights: WeightForm = PAIRED) -> None:
        self._weights = weights

    def apply(self, model: onnx.ModelProto, options: QuantizeOptions) -> tuple[onnx.ModelProto, Coverage]:
        """See ``Scheme.apply``."""
        result = copied(model)
        rows = _Pass(Scope.of(result), options, self._weights).run()
        needed = {node.domain for node in walk(result.graph)} - {entry.domain for entry in result.opset_import}
        result.opset_import.extend(
            helper.make_opsetid(domain, version) for domain, version in _OTHER_OPSETS.items() if domain in needed
        )
        return result, Coverage(tuple(rows))


class _Pass(Pass[_Found]):
    def __init__(
        self, scope: Scope, options: QuantizeOptions, weights: WeightForm, outer: Pass[_Found] | None = None
    ) -> None:
        super().__init__(scope, options, outer)
        self._weights = weights
        self._quantized: dict[str, QuantizedRows] = {}
        self._products = Products(self.graph, self.constants, scope.opset)

    def inside(self, scope: Scope) -> _Pass:
        return _Pass(scope, self.options, self._weights, self)

    def read(self, node: onnx.NodeProto) -> _Found | str | None:
        found = self._arithmetic(node)
        if isinstance(found, Layer | FusedLayer | CoupledLstm | Linear):
            if name_of(node) in self.options.stored:
                return self._storage(node, "")
            slower = why_storage_only(found, self.options.prefer, self.scope.repeated)
            return found if slower is None else self._storage(node, slower, by_preference=True)
        if isinstance(found, str) and node.op_type in ("MatMul", "Gemm", *CONVOLUTIONS):
            return self._storage(node, found)
        return found

    def _arithmetic(
        self, node: onnx.NodeProto
    ) -> Layer | FusedLayer | CoupledLstm | Linear | Product | Embedding | str | None:
        if node.op_type == "LSTM" and self.options.allow_coupled:
            return read_coupled(node, self.constants)
        if node.op_type in RECURRENT:
            read = read_fused if self.options.fused else read_recurrent
            return read(node, self.constants, self.used)
        if node.op_type == "MatMul":
            return self._matmul(node)
        if node.op_type == "Gemm":
            return read_gemm(node, self.constants)
        if node.op_type == "Gather":
            folded = self.constants.is_known(node.output[0])
            return None if folded else read_gather(node, self.constants)
        return _WINDOW if node.op_type in CONVOLUTIONS else None

    def _matmul(self, node: onnx.NodeProto) -> Linear | Product | str:
        if any(map(self.constants.is_known, node.input)):
            return read_matmul(node, self.constants)
        return self._products.read(node) if self.options.prefer == "int8" else _ACTIVATIONS

    def _storage(self, node: onnx.NodeProto, reason: str, *, by_preference: bool = False) -> Weights | str:
        """Int8 storage for a node whose arithmetic stays in float; the reason alone where it has next to no weights."""
        weights = read_weights(node, self.constants)
        if weights is None or isinstance(weights, str):
            return reason
        small = weights.macs < SMALLEST_TABLE and node.op_type not in RECURRENT
        return reason if small else replace(weights, reason=reason, by_preference=by_preference)

    def replace(self, node: onnx.NodeProto, found: _Found) -> list[CoverageRow]:
        became, reason = "int8", None
        if isinstance(found, Layer):
            replace_recurrent(self.build, found, DynamicProducts(self._quantize(found.x), self._weights))
            form = recurrent_form(found)
        elif isinstance(found, FusedLayer):
            self._fuse(found)
            form = fused_form(found)
        elif isinstance(found, CoupledLstm):
            replace_coupled(self.build, found)
            form = COUPLED_FORM
        elif isinstance(found, Linear):
            replace_linear(self.build, found, self._quantize(found.x), self.constants, self._weights)
            form = "MatMulIntegerToFloat"
        elif isinstance(found, Product):
            replace_product(self.build, found)
            form = f"integer product of two activations ({found.form})"
            reason = CONTEXT_REMARK if found.form == "context" else None
        elif isinstance(found, Weights):
            self.build.nodes.append(with_stored(self.storing(), node, found))
            became, form, reason = "int8-storage", FORM, found.reason
        else:
            replace_gather(self.build, found)
            became, form = "int8-storage", TABLE_FORM
        size, macs = self._amount(found)
        coupled = isinstance(found, CoupledLstm)
        preferred = isinstance(found, Weights) and found.by_preference
        return [CoverageRow(name_of(node), node.op_type, became, form, size, macs, coupled, reason or None, preferred)]

    def _fuse(self, found: FusedLayer) -> None:
        replace_fused(self.build, found, self._weights)
        given = {info.name: info for info in (*self.graph.value_info, *self.graph.output)}
        for info in infos(found):
            if info.name not in given:
                self.graph.value_info.append(info)
            elif not given[info.name].type.tensor_type.HasField("shape"):
                # A loop's own output: onnxruntime refuses a Scan of whose body it does not know all outputs' shapes.
                given[info.name].type.CopyFrom(info.type)

    def _amount(self, found: _Found) -> tuple[int, int]:
        """Bytes of float weights, and multiply-accumulates for one row and time step."""
        if isinstance(found, Product):
            return 0, static_size(self.graph, found.right)
        return (found.table.nbytes, 0) if isinstance(found, Embedding) else (found.weight_bytes, found.macs)

    def _quantize(self, value: str) -> QuantizedRows:
        """The quantized rows of a value, computed once however many nodes read it."""
        if value not in self._quantized:
            self._quantized[value] = quantize_rows(self.build, value)
        return self._quantized[value]


SCHEME = DynamicInt8()
