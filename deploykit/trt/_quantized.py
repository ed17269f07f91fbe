"""What TensorRT's parser takes of QuantizeLinear and DequantizeLinear: int8 with zero point 0, one scale or an axis."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import onnx
from onnx import TensorProto

from deploykit.quantize._graph import attributes

if TYPE_CHECKING:
    from deploykit.trt._site import Problem, Site

_AGAIN = "quantize the float file again: deploykit quantize --int8 --target trt --calibration FILE.npz"


def problems(site: Site, node: onnx.NodeProto) -> Iterator[Problem]:
    """What is wrong with a QuantizeLinear or DequantizeLinear."""
    if site.types.get(node.input[0]) == TensorProto.INT32:
        yield site.problem(node, f"makes a bias from int32, and TensorRT wants biases in float: {_AGAIN}")
    yield from _zero_point(site, node)
    yield from _scale(site, node)


def _zero_point(site: Site, node: onnx.NodeProto) -> Iterator[Problem]:
    name = node.input[2] if len(node.input) > 2 else ""
    if not name:
        # ONNX's default is uint8, the parser's is int8.
        given = attributes(node).get("output_dtype", 0)
        if node.op_type == "QuantizeLinear" and given != TensorProto.INT8:
            yield site.problem(node, f"has no zero point, which means uint8, and TensorRT has int8 alone: {_AGAIN}")
        return
    if site.types.get(name, TensorProto.INT8) not in (TensorProto.INT8, TensorProto.INT32):
        kind = TensorProto.DataType.Name(site.types[name]).lower()
        yield site.problem(node, f"is {kind}, which TensorRT reads as int8: {_AGAIN}")
    value = site.constants.value(name)
    if value is None:
        yield site.problem(node, f"computes its zero point {name} at run time, and TensorRT wants a constant: {_AGAIN}")
    elif value.any():
        yield site.problem(node, f"has a zero point other than 0 ({name}), and TensorRT has int8 around 0: {_AGAIN}")


def _scale(site: Site, node: onnx.NodeProto) -> Iterator[Problem]:
    name, axis = node.input[1], attributes(node).get("axis", 1)
    value = site.constants.value(name)
    if value is None:
        yield site.problem(node, f"computes its scale {name} at run time, and deploykit's are constants: {_AGAIN}")
        return
    if not (value > 0).all():
        yield site.problem(node, f"has a scale that is not above 0 ({name}), which TensorRT refuses: {_AGAIN}")
    if value.size == 1:
        return
    dims = site.dims.get(node.input[0])
    if value.ndim > 1:
        yield site.problem(node, f"has scales per block ({name}), which TensorRT does not take for int8: {_AGAIN}")
    elif dims is not None and (not -len(dims) <= axis < len(dims) or dims[axis] not in (None, value.size)):
        yield site.problem(node, f"has {value.size} scales that do not fit axis {axis} of {node.input[0]}: {_AGAIN}")
    if node.op_type == "QuantizeLinear" and not site.constants.is_known(node.input[0]):
        text = f"has a scale per channel for {node.input[0]}, and TensorRT has those for weights alone"
        yield site.problem(node, f"{text}: {_AGAIN}")
