"""What every part that walks an ONNX graph needs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx


def subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The graphs in a node's attributes: bodies of Scan and Loop, branches of If."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def exposed(model: onnx.ModelProto, names: Iterable[str]) -> onnx.ModelProto:
    """A copy of a model that gives the values of these names besides its own outputs."""
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    there = {info.name for info in copy.graph.output}
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in there)
    return copy


def inferred(model: onnx.ModelProto) -> onnx.GraphProto:
    """The graph with every dtype and shape that ONNX can infer, and of its weights only small ones and the types.

    Without them, because a model may be over 2 GiB, and ONNX copies it as a protobuf.

    Raises:
        onnx.shape_inference.InferenceError: the graph contradicts itself.
    """
    import onnx

    light = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    light.graph.CopyFrom(model.graph)
    del light.graph.initializer[:]
    for tensor in model.graph.initializer:
        if math.prod(tensor.dims) <= 1024:
            light.graph.initializer.add().CopyFrom(tensor)
        elif all(value.name != tensor.name for value in light.graph.input):
            light.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    return onnx.shape_inference.infer_shapes(light, data_prop=True).graph
