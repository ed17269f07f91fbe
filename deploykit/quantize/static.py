"""Static int8: explicit QuantizeLinear and DequantizeLinear with calibrated scales, for TensorRT and its like.

Int8 with zero point 0 throughout, weights with a scale per output channel, activations with one scale each, biases in
float. A recurrent layer's input projection is taken out of it, for the whole sequence at once, as an int8 Gemm; its
recurrence, which no engine runs in int8 from Q/DQ, is a Scan in float.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from deploykit.coverage import RECURRENT, Coverage, CoverageRow
from deploykit.errors import QuantizationError
from deploykit.quantize import QuantizeOptions, Scheme
from deploykit.quantize._calibration import scales
from deploykit.quantize._graph import Builder, is_standard, name_of
from deploykit.quantize._linear import Linear, read_gather, read_gemm, read_matmul
from deploykit.quantize._pass import Pass, Scope, copied
from deploykit.quantize._recurrent import Layer
from deploykit.quantize._recurrent import read as read_recurrent
from deploykit.quantize._recurrent import replace as replace_recurrent
from deploykit.quantize._source import opset_of, static_size
from deploykit.quantize._weights import symmetric

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from deploykit.types import Array

    Floats = NDArray[np.float32]

_PROJECTION = "input projection: int8 Gemm in Q/DQ over the whole sequence"
_RECURRENCE = "recurrence: float Scan (fp16 at best in TensorRT)"
_NO_CONV = "convolutions stay in float: int8 costs most of a model's accuracy there"
_NO_TABLE = "a lookup multiplies nothing, and TensorRT has none in int8"


class StaticInt8(Scheme):
    """Int8 in MatMul, Gemm, products of two activations, and the input projections of recurrent layers."""

    produces = "onnx-qdq"
    recurrence = frozenset({"int8", "float32"})

    def __init__(self) -> None:
        self._known: tuple[bytes, dict[str, float]] | None = None

    def apply(self, model: onnx.ModelProto, options: QuantizeOptions) -> tuple[onnx.ModelProto, Coverage]:
        """See ``Scheme.apply``; needs ``options.calibration``."""
        result = copied(model)
        _require_operators(opset_of(result))
        step = _Pass(Scope.of(result), options)
        step.scales = self._scales(result, step.activations(), options.calibration)
        return result, Coverage(tuple(step.run()))

    def _scales(
        self, model: onnx.ModelProto, wanted: frozenset[str], feeds: Mapping[str, Array] | None
    ) -> dict[str, float]:
        """The scales, kept for the next call: the search for the layers that cost most asks again and again."""
        digest = hashlib.sha256(model.SerializeToString(deterministic=True))
        for name, array in sorted((feeds or {}).items()):
            digest.update(f"{name} {array.dtype} {array.shape} ".encode() + array.tobytes())
        if self._known is None or self._known[0] != digest.digest():
            self._known = digest.digest(), scales(model, wanted, feeds)
        return self._known[1]


def _require_operators(opset: int) -> None:
    """Refuse an opset whose QuantizeLinear this onnxruntime does not have: it learns them long after they are out."""
    import onnxruntime

    x, y = (
        helper.make_tensor_value_info(name, kind, [1])
        for name, kind in (("x", TensorProto.FLOAT), ("y", TensorProto.INT8))
    )
    stored = [numpy_helper.from_array(np.array(1, np.float32), "s"), numpy_helper.from_array(np.array(0, np.int8), "z")]
    node = helper.make_node("QuantizeLinear", ["x", "s", "z"], ["y"])
    opsets = [helper.make_opsetid("", opset)]
    probe = helper.make_model(helper.make_graph([node], "probe", [x], [y], stored), opset_imports=opsets, ir_version=8)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        onnxruntime.InferenceSession(probe.SerializeToString(), options, providers=["CPUExecutionProvider"])
    # onnxruntime's exceptions have no common base of their own below Exception.
    except Exception as error:
        raise QuantizationError(
            f"this onnxruntime has no QuantizeLinear of opset {opset}: export the model again with --opset 20."
        ) from error


@dataclass(frozen=True)
class _Product:
    """``y = left @ right``, neither of them constant."""

    left: str
    right: str
    y: str


_Found = Layer | Linear | _Product


class _Pass(Pass[_Found]):
    def __init__(self, scope: Scope, options: QuantizeOptions) -> None:
        super().__init__(scope, options)
        self.scales: dict[str, float] | None = None
        self._quantized: dict[str, str] = {}
        self._matrices: dict[str, _Rows] = {}

    def activations(self) -> frozenset[str]:
        """The values that need a scale."""
        found = [self._read(node) for node in self.graph.node if is_standard(node)]
        return frozenset(name for one in found if not isinstance(one, str | None) for name in _operands(one))

    def read(self, node: onnx.NodeProto) -> _Found | str | None:
        found = self._read(node)
        if self.scales is None or found is None or isinstance(found, str):
            return found
        unknown = [name for name in _operands(found) if name not in self.scales]
        return f"{unknown[0]!r} is not float32" if unknown else found

    def _read(self, node: onnx.NodeProto) -> _Found | str | None:
        if node.op_type in RECURRENT:
            layer = read_recurrent(node, self.constants, self.used)
            return f"left whole: {layer}" if isinstance(layer, str) else layer
        if node.op_type == "MatMul":
            if not any(map(self.constants.is_known, node.input)):
                return _Product(node.input[0], node.input[1], node.output[0])
            return read_matmul(node, self.constants)
        if node.op_type == "Gemm":
            return read_gemm(node, self.constants)
        if node.op_type == "Gather" and not self.constants.is_known(node.output[0]):
            found = read_gather(node, self.constants)
            return found if isinstance(found, str | None) else _NO_TABLE
        return _NO_CONV if node.op_type in ("Conv", "ConvTranspose") else None

    def replace(self, node: onnx.NodeProto, found: _Found) -> list[CoverageRow]:
        name, kind = name_of(node), node.op_type
        if isinstance(found, Layer):
            replace_recurrent(self.build, found, _StaticProducts(found.x, self._flat(found.x)))
            return [
                CoverageRow(name, kind, "int8", _PROJECTION, found.w.nbytes, found.w.size),
                CoverageRow(name, kind, "float32", _RECURRENCE, found.r.nbytes, found.r.size),
            ]
        if isinstance(found, _Product):
            result = self.build.op("MatMul", [self._rounded(found.left), self._rounded(found.right)], "product")
            self.build.rename(result, found.y)
            macs = static_size(self.graph, found.right)
            return [CoverageRow(name, kind, "int8", "MatMul of two activations in Q/DQ", 0, macs)]
        bias = found.bias if found.beta else ""
        if self.constants.is_known(bias):
            self.constants.check_finite(bias)
        result = self._flat(found.x).product(self.build, found.matrix, bias, found.beta)
        self.build.rename(result, found.y)
        return [CoverageRow(name, kind, "int8", "Gemm in Q/DQ", found.matrix.nbytes, found.matrix.size)]

    def _flat(self, value: str) -> _Rows:
        """A value as a matrix of rows, made once however many nodes read it."""
        if value not in self._matrices:
            build = self.build
            flat = build.op("Flatten", [value], "rows", axis=-1)
            lead = build.op("Slice", [build.op("Shape", [value], "shape"), *map(build.ints, (0, -1))], "lead")
            self._matrices[value] = _Rows(self._rounded(flat, self._scale(value)), lead)
        return self._matrices[value]

    def _rounded(self, value: str, scale: float | None = None) -> str:
        """A value behind its QuantizeLinear and DequantizeLinear, made once however many nodes read it."""
        if value not in self._quantized:
            scale = scale or self._scale(value)
            constants = [self.build.scalar(scale), self.build.constant(np.array(0, np.int8), "zero_point")]
            int8 = self.build.op("QuantizeLinear", [value, *constants], "q")
            self._quantized[value] = self.build.op("DequantizeLinear", [int8, *constants], "dq")
        return self._quantized[value]

    def _scale(self, value: str) -> float:
        assert self.scales is not None
        return self.scales[value]


@dataclass(frozen=True)
class _Rows:
    """``matrix`` ``[rows, in]`` behind its Q/DQ, made from a value whose shape is ``lead`` and ``[in]``."""

    matrix: str
    lead: str

    def product(self, build: Builder, weights: Floats, bias: str = "", beta: float = 1.0) -> str:
        """The product with a matrix ``[in, out]`` that is int8 in the file, a scale per column, plus beta * bias.

        A Gemm of two matrices with a float bias, though there may be none to add: that is the plainest form for scales
        per channel, and onnxruntime leaves a Gemm with a float bias to float arithmetic. A MatMul it would turn into a
        uint8 x int8 product, whose 16-bit sums saturate on x86 CPUs without VNNI.
        """
        values, scale = symmetric(np.ascontiguousarray(weights.T), axis=1)
        stored = [
            build.constant(values, "weights_int8"),
            build.constant(scale, "weights_scale"),
            build.constant(np.zeros(scale.shape, np.int8), "weights_zero_point"),
        ]
        floats = build.op("DequantizeLinear", stored, "weights", axis=0)
        bias = bias or build.constant(np.zeros(scale.shape, np.float32), "bias")
        flat = build.op("Gemm", [self.matrix, floats, bias], "flat_product", transB=1, beta=beta)
        shape = build.op("Concat", [self.lead, build.ints(values.shape[0])], "product_shape", axis=0)
        return build.op("Reshape", [flat, shape], "product")


@dataclass(frozen=True)
class _StaticProducts:
    """The input's product in int8, the state's in float; ``sized`` is the input."""

    sized: str
    rows: _Rows
    #: An engine's shapes follow from those of its inputs, not from their numbers.
    trims: bool = False

    def project(self, build: Builder, matrix: Floats, bias: Floats) -> str:
        return self.rows.product(build, matrix, build.constant(bias, "bias"))

    def recurrent(self, matrix: Floats) -> None:
        return None


def _operands(found: _Found) -> tuple[str, ...]:
    return (found.left, found.right) if isinstance(found, _Product) else (found.x,)


SCHEME = StaticInt8()
