"""Weight-only int8: weights stored as int8 with a scale per output channel, arithmetic in float as before."""

from __future__ import annotations

import onnx

from deploykit.coverage import Coverage, CoverageRow
from deploykit.quantize import QuantizeOptions, Scheme
from deploykit.quantize._graph import name_of
from deploykit.quantize._linear import TABLE_FORM, Embedding, read_gather, replace_gather
from deploykit.quantize._pass import Pass, Scope, copied
from deploykit.quantize._storage import FORM, Weights, read_weights, with_stored


class WeightOnly(Scheme):
    """Int8 storage of every constant weight of a recurrent layer, MatMul, Gemm, convolution and embedding."""

    recurrence = frozenset({"int8", "int8-storage"})

    def apply(self, model: onnx.ModelProto, options: QuantizeOptions) -> tuple[onnx.ModelProto, Coverage]:
        """See ``Scheme.apply``."""
        result = copied(model)
        return result, Coverage(tuple(_Pass(Scope.of(result), options).run()))


class _Pass(Pass[Weights | Embedding]):
    def inside(self, scope: Scope) -> _Pass:
        return _Pass(scope, self.options, self)

    def read(self, node: onnx.NodeProto) -> Weights | Embedding | str | None:
        if node.op_type == "Gather":
            folded = self.constants.is_known(node.output[0])
            return None if folded else read_gather(node, self.constants)
        return read_weights(node, self.constants)

    def replace(self, node: onnx.NodeProto, found: Weights | Embedding) -> list[CoverageRow]:
        if isinstance(found, Embedding):
            replace_gather(self.build, found)
            form, size, macs = TABLE_FORM, found.table.nbytes, 0
        else:
            self.build.nodes.append(with_stored(self.storing(), node, found))
            form, size, macs = FORM, found.weight_bytes, found.macs
        return [CoverageRow(name_of(node), node.op_type, "int8-storage", form, size, macs)]


SCHEME = WeightOnly()
