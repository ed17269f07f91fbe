"""What the stand-in reads from an ONNX model, and how it computes one: with onnxruntime, on the CPU."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

#: TensorRT's names of ONNX's types. Older versions hold int64 as int32.
TYPES: Mapping[int, str] = {
    TensorProto.FLOAT: "FLOAT",
    TensorProto.FLOAT16: "HALF",
    TensorProto.BFLOAT16: "BF16",
    TensorProto.INT8: "INT8",
    TensorProto.INT32: "INT32",
    TensorProto.INT64: "INT64",
    TensorProto.BOOL: "BOOL",
    TensorProto.UINT8: "UINT8",
}
ARRAYS: Mapping[str, Any] = {
    "FLOAT": np.float32,
    "HALF": np.float16,
    "BF16": np.uint16,  # bits: numpy has no such type
    "INT8": np.int8,
    "INT32": np.int32,
    "INT64": np.int64,
    "BOOL": np.bool_,
    "UINT8": np.uint8,
}
#: Their outputs' sizes depend on numbers, so that nobody knows them before the run.
DATA_DEPENDENT = frozenset({"NonZero", "Unique", "Compress", "NonMaxSuppression"})
QUANTIZED = frozenset({"QuantizeLinear", "DequantizeLinear"})


def nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """A graph's nodes, and those of the graphs inside it."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from nodes(attribute.g)


def graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from graphs(attribute.g)


def tensor_types(model: onnx.ModelProto) -> dict[str, str]:
    """The type of each tensor whose type is told or can be inferred."""
    inferred = onnx.shape_inference.infer_shapes(model)
    graph = inferred.graph
    found = {
        value.name: TYPES.get(value.type.tensor_type.elem_type, "FLOAT")
        for value in (*graph.value_info, *graph.input, *graph.output)
    }
    return {**found, **{tensor.name: TYPES.get(tensor.data_type, "FLOAT") for tensor in graph.initializer}}


def shape(value: onnx.ValueInfoProto) -> tuple[int, ...]:
    """-1 for a dimension that is not fixed."""
    return tuple(dim.dim_value if dim.HasField("dim_value") else -1 for dim in value.type.tensor_type.shape.dim)


def inputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    constants = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in constants]


def widened(model: onnx.ModelProto, types: frozenset[str]) -> onnx.ModelProto:
    """The model with float32 wherever it has one of ``types``."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    numbers = {int(number) for number, name in TYPES.items() if name in types}
    for graph in graphs(changed.graph):
        for tensor in graph.initializer:
            _widen(tensor, numbers)
        for value in (*graph.input, *graph.output, *graph.value_info):
            if value.type.tensor_type.elem_type in numbers:
                value.type.tensor_type.elem_type = TensorProto.FLOAT
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.type == onnx.AttributeProto.TENSOR:
                    _widen(attribute.t, numbers)
                elif node.op_type == "Cast" and attribute.name == "to" and attribute.i in numbers:
                    attribute.i = TensorProto.FLOAT
    return changed


def _widen(tensor: TensorProto, numbers: set[int]) -> None:
    if tensor.data_type in numbers:
        values = np.asarray(numpy_helper.to_array(tensor)).astype(np.float32)
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def stripped(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[str]]:
    """The model with zeros for weights, and the weights' names."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    names = []
    for tensor in changed.graph.initializer:
        # Types of TensorRT that hold weights; shapes and axes are no weights.
        if tensor.data_type in {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.INT8}:
            names.append(tensor.name)
            shape, kind, name = list(tensor.dims), tensor.data_type, tensor.name
            tensor.Clear()
            tensor.name, tensor.data_type = name, kind
            tensor.dims.extend(shape)
    return changed, names


def filled(model: onnx.ModelProto) -> onnx.ModelProto:
    """A stripped model as it can be loaded: zeros where its weights were."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    for tensor in changed.graph.initializer:
        count = int(np.prod(tuple(tensor.dims)))
        if count and not tensor.raw_data and not numpy_fields(tensor):
            tensor.raw_data = bytes(count * np.dtype(ARRAYS[TYPES[tensor.data_type]]).itemsize)
    return changed


def count(tensor: TensorProto) -> int:
    """How many numbers of weights a tensor holds."""
    return int(np.prod(tuple(tensor.dims))) if TYPES.get(tensor.data_type) in ARRAYS else 0


def numpy_fields(tensor: TensorProto) -> bool:
    """Whether numbers lie in one of the typed fields."""
    return bool(tensor.float_data or tensor.int32_data or tensor.int64_data or tensor.double_data)


class Computation:
    """A model that can be run, at any shapes."""

    def __init__(self, model: onnx.ModelProto, wide: frozenset[str]) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 4
        # Numbers are to be those of the graph as it is; and onnxruntime 1.32 crashes when it optimizes some of 16 bits.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        # onnxruntime has no bfloat16 on the CPU.
        self.model = widened(model, wide | {"BF16"})
        self._session = onnxruntime.InferenceSession(
            self.model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        self._kinds = {value.name: value.type.tensor_type.elem_type for value in self.model.graph.input}
        self.outputs = [value.name for value in self.model.graph.output]
        self.unknown = any(node.op_type in DATA_DEPENDENT for node in nodes(self.model.graph))
        self.shapes = cache(self._shapes)

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        given = {name: self._taken(name, array) for name, array in feeds.items()}
        return dict(zip(self.outputs, self._session.run(self.outputs, given), strict=True))

    def _taken(self, name: str, array: Any) -> Any:
        return array.astype(ARRAYS[TYPES[self._kinds[name]]], copy=False)

    def _shapes(self, given: tuple[tuple[str, tuple[int, ...]], ...]) -> dict[str, tuple[int, ...]]:
        """What shapes come out where these go in: found by a run, on zeros."""
        zeros = {name: np.zeros(shape, ARRAYS[TYPES[self._kinds[name]]]) for name, shape in given}
        return {name: array.shape for name, array in self.run(zeros).items()}
