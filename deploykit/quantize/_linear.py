"""MatMul, Gemm and embedding tables with constant weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import TensorProto

from deploykit.quantize._activations import QuantizedRows, row_product
from deploykit.quantize._constants import Constants
from deploykit.quantize._graph import Builder, attributes
from deploykit.quantize._weights import WeightForm, per_output_channel, symmetric

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: A smaller table is not worth the two nodes that its int8 form costs.
SMALLEST_TABLE = 1024
TABLE_FORM = "Gather of int8 rows and their scales"


@dataclass(frozen=True)
class Linear:
    """``y = x @ matrix + beta * bias``; ``matrix`` ``[in, out]``; ``bias`` names a value, or is empty."""

    x: str
    matrix: NDArray[np.float32]
    bias: str
    beta: float
    y: str

    @property
    def weight_bytes(self) -> int:
        """Size in bytes of the float matrix."""
        return self.matrix.nbytes

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one row."""
        return self.matrix.size


def read_matmul(node: onnx.NodeProto, constants: Constants) -> Linear | str:
    """The product with a constant matrix, or the reason why it has to stay in float."""
    matrix = constants.value(node.input[1])
    if matrix is None:
        left = constants.value(node.input[0])
        return "a product of two activations" if left is None else "its constant operand is the left one"
    reason = _checked(node.input[1], matrix, constants) or _narrow(matrix)
    return reason or Linear(node.input[0], matrix, "", 1.0, node.output[0])


def read_gemm(node: onnx.NodeProto, constants: Constants) -> Linear | str:
    """The product with a constant matrix and its bias, or the reason why it has to stay in float."""
    attrs = attributes(node)
    if attrs.get("transA"):
        return "its left operand is transposed"
    matrix = constants.value(node.input[1])
    if matrix is None:
        return "its weights are not constant"
    turned = matrix.T if attrs.get("transB") else matrix
    reason = _checked(node.input[1], matrix, constants) or _narrow(turned)
    if reason:
        return reason
    matrix = turned * np.float32(attrs.get("alpha", 1.0))
    bias = node.input[2] if len(node.input) > 2 else ""
    return Linear(node.input[0], matrix, bias, float(attrs.get("beta", 1.0)), node.output[0])


def replace(build: Builder, linear: Linear, rows: QuantizedRows, constants: Constants, weights: WeightForm) -> None:
    """Add what computes the product from its quantized input."""
    result = row_product(build, rows, per_output_channel(linear.matrix, weights), "product")
    if linear.bias and linear.beta:
        known, bias = constants.value(linear.bias), linear.bias
        if known is not None:
            constants.check_finite(bias)
            bias = build.constant(known * np.float32(linear.beta), "bias")
        elif linear.beta != 1:
            bias = build.op("Mul", [bias, build.scalar(linear.beta)], "bias_scaled")
        result = build.op("Add", [result, bias], "sum")
    build.rename(result, linear.y)


@dataclass(frozen=True)
class Embedding:
    """Rows of a constant table ``[entries, width]``, picked by an integer input."""

    table: NDArray[np.float32]
    indices: str
    y: str


def read_gather(node: onnx.NodeProto, constants: Constants) -> Embedding | str | None:
    """The embedding, the reason why it has to stay in float, or None where the node is no embedding."""
    table = constants.value(node.input[0])
    if table is None or table.dtype.kind != "f" or table.ndim != 2 or attributes(node).get("axis", 0) % 2:
        return None
    if constants.is_output(node.input[0]):
        return "its table is an output too"
    if table.size < SMALLEST_TABLE:
        return f"a table of fewer than {SMALLEST_TABLE} numbers"
    return _checked(node.input[0], table, constants) or Embedding(table, node.input[1], node.output[0])


def replace_gather(build: Builder, embedding: Embedding) -> None:
    """Add what picks int8 rows and their scales, and multiplies them."""
    values, scale = symmetric(embedding.table, axis=1)
    picked = build.op("Gather", [build.constant(values, "table_int8"), embedding.indices], "rows", axis=0)
    factors = build.constant(scale[:, None], "table_scale")
    scales = build.op("Gather", [factors, embedding.indices], "scales", axis=0)
    floats = build.op("Cast", [picked], "floats", to=TensorProto.FLOAT)
    build.rename(build.op("Mul", [floats, scales], "embedded"), embedding.y)


def _narrow(matrix: NDArray[np.float32]) -> str:
    return "" if matrix.shape[1] > 1 else "it has one output: to quantize its input would cost more than the product"


def _checked(name: str, matrix: NDArray[np.float32], constants: Constants) -> str:
    if matrix.dtype != np.float32:
        return f"its weights are {matrix.dtype}, not float32"
    if matrix.ndim != 2:
        return f"its weights have {matrix.ndim} dimensions, not 2"
    if not matrix.size:
        return "its weights are empty"
    if matrix.shape[0] == matrix.shape[1] > 2 and not (np.tril(matrix, -1).any() and np.triu(matrix, 1).any()):
        # A cumulative sum, say. A scale for all steps of a row would let the later ones change the earlier ones.
        return "its weights are a triangle, so that it may well run over time steps"
    constants.check_finite(name)
    return ""
