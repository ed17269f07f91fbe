"""What a graph has to be before it can be quantized, and what is said of the nodes inside its inner graphs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import onnx
from onnx import TensorProto

from deploykit.coverage import CoverageRow
from deploykit.errors import QuantizationError
from deploykit.graphs import subgraphs
from deploykit.kernels import DOMAIN
from deploykit.quantize._constants import Constants
from deploykit.quantize._graph import MICROSOFT, is_standard, name_of, walk

OLDEST_OPSET = 14
_PRODUCTS = frozenset({"Einsum", "FusedConv", "FusedGemm", "FusedMatMul", "Conv", "Gemm", "MatMul"})
_QUANTIZED = frozenset(
    {
        "ConvInteger",
        "DequantizeLinear",
        "DynamicQuantizeLinear",
        "MatMulInteger",
        "QLinearConv",
        "QLinearMatMul",
        "QuantizeLinear",
    }
)
_HALF: dict[int, str] = {TensorProto.FLOAT16: "float16", TensorProto.BFLOAT16: "bfloat16"}


def opset_of(model: onnx.ModelProto) -> int:
    """The version of the default operator set that a model asks for.

    Raises:
        QuantizationError: none, or one older than 14 (where the recurrent operators took their present form).
    """
    found = [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    if not found:
        raise QuantizationError("the model imports no ai.onnx operator set: it is not an ordinary ONNX model.")
    if found[0] < OLDEST_OPSET:
        raise QuantizationError(
            f"the model uses opset {found[0]}, int8 needs {OLDEST_OPSET} or newer: export it again with a newer opset."
        )
    return int(found[0])


def check_source(model: onnx.ModelProto) -> None:
    """Refuse a model that is quantized already or that computes in half precision.

    Raises:
        QuantizationError: with the node or value that shows it.
    """
    for node in [*walk(model.graph), *(inner for function in model.functions for inner in function.node)]:
        if _is_quantized(node):
            raise QuantizationError(
                f"the model is quantized already (node {name_of(node)!r} is a {node.op_type}): take the float32 one."
            )
    weights = _stored_int8(model.graph)
    if weights:
        raise QuantizationError(
            f"the model is quantized already ({weights!r} holds int8 weights): take the float32 one."
        )
    for info in (*model.graph.input, *model.graph.output):
        _refuse_half(info.name, info.type.tensor_type.elem_type)
    for tensor in model.graph.initializer:
        _refuse_half(tensor.name, tensor.data_type)


def _is_quantized(node: onnx.NodeProto) -> bool:
    if is_standard(node):
        return node.op_type in _QUANTIZED
    if node.domain == DOMAIN:
        return True
    name = node.op_type
    return node.domain == MICROSOFT and ("Quant" in name or "Integer" in name or "QLinear" in name or "NBits" in name)


def _stored_int8(graph: onnx.GraphProto) -> str | None:
    """An int8 initializer that is cast and multiplied by scales: what ``weight-only`` makes of weights."""
    stored = {tensor.name: tensor.data_type for tensor in graph.initializer}
    casts = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "Cast"}
    for node in graph.node:
        if node.op_type == "Mul" and all(name in stored for name in node.input[1:]):
            source = casts.get(node.input[0])
            if stored.get(source or "") == TensorProto.INT8:
                return source
    return None


def _refuse_half(name: str, elem_type: int) -> None:
    if elem_type in _HALF:
        raise QuantizationError(f"{name!r} is {_HALF[elem_type]}: export the model in float32 and quantize that.")


def float_row(graph: onnx.GraphProto, node: onnx.NodeProto, constants: Constants, reason: str) -> CoverageRow:
    """The row of a node that stays in float.

    A convolution's multiply-accumulates are those of one output position; a product of two activations has no weights,
    and its multiply-accumulates are counted where the right operand's shape is known.
    """
    places = {"GRU": (1, 2), "LSTM": (1, 2), "RNN": (1, 2), "Gather": (0,), "MatMul": (0, 1)}.get(node.op_type, (1,))
    arrays = [array for place in places if (array := constants.value(node.input[place])) is not None]
    macs = 0 if node.op_type == "Gather" else sum(array.size for array in arrays)
    if node.op_type == "MatMul" and not arrays:
        macs = static_size(graph, node.input[1])
        reason = reason if macs else f"{reason} whose size is not stated, so that it is not counted"
    size = sum(array.nbytes for array in arrays)
    return CoverageRow(name_of(node), node.op_type, "float32", node.op_type, size, macs, reason=reason)


#: A float weight smaller than this is no matter of coverage, nor is one along a single axis: biases and scales.
_SMALL = 1024


def other_rows(graph: onnx.GraphProto, rows: Sequence[CoverageRow]) -> list[CoverageRow]:
    """Rows for the float matrices that are left in a quantized graph and that no other row has counted.

    Such are weights of operators without an int8 form here: einsum, onnxruntime's fused ones, weights that the graph
    itself works out. Each is counted with the first node that reads it.
    """
    made = {row.node for row in rows}
    return list(_others(graph, made, {}))


def _others(graph: onnx.GraphProto, made: set[str], outside: dict[str, int]) -> Iterator[CoverageRow]:
    known = outside | {tensor.name: _float_size(tensor) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].HasField("t"):
            known[node.output[0]] = _float_size(node.attribute[0].t)
        name = name_of(node)
        ours = name in made or name.rpartition("/int8/")[0] in made
        read = [one for one in node.input if known.get(one)]
        if read and not ours:
            size = sum(known.pop(one) for one in dict.fromkeys(read))
            product = node.op_type in _PRODUCTS
            reason = "there is no int8 form of it here" if product else "in each run the graph makes something of it"
            macs = size // 4 if product else 0
            yield CoverageRow(name, node.op_type, "float32", node.op_type, size, macs, reason=reason)
        for inner in subgraphs(node):
            yield from _others(inner, made, known)


def _float_size(tensor: onnx.TensorProto) -> int:
    """Bytes of a float matrix that is large enough to be counted, 0 for others; doubles count as floats."""
    wide = sum(dim > 1 for dim in tensor.dims) > 1 and math.prod(tensor.dims) >= _SMALL
    return 4 * math.prod(tensor.dims) if wide and tensor.data_type in (TensorProto.FLOAT, TensorProto.DOUBLE) else 0


def static_size(graph: onnx.GraphProto, name: str) -> int:
    """Product of a value's last two dims, 0 where they are not stated."""
    for info in (*graph.value_info, *graph.input):
        if info.name == name:
            dims = [dim.dim_value for dim in info.type.tensor_type.shape.dim][-2:]
            return math.prod(dims) if len(dims) == 2 else 0
    return 0
