"""A graph that computes something else must not pass the verification."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from deploykit.errors import ExportError
from deploykit.export import _verify, to_onnx
from deploykit.types import DimRange, ModelSpec, TensorSpec


@pytest.fixture(scope="module")
def exported() -> tuple[ModelSpec, onnx.ModelProto, tuple[TensorSpec, ...], int]:
    torch.manual_seed(0)
    spec = ModelSpec(nn.GRU(3, 4, batch_first=True).eval(), (TensorSpec("x", "float32", ("batch", "time", 3)),))
    made = to_onnx(spec)
    assert made.layers is not None
    return spec, made.model, made.outputs, made.layers


def swapped_gates(model: onnx.ModelProto) -> None:
    weight = next(tensor for tensor in model.graph.initializer if list(tensor.dims) == [1, 12, 4])
    array = numpy_helper.to_array(weight)
    weight.CopyFrom(
        numpy_helper.from_array(np.concatenate([array[:, 4:8], array[:, :4], array[:, 8:]], axis=1), weight.name)
    )


def other_reset(model: onnx.ModelProto) -> None:
    node = next(node for node in model.graph.node if node.op_type == "GRU")
    next(attribute for attribute in node.attribute if attribute.name == "linear_before_reset").i = 0


def backwards(model: onnx.ModelProto) -> None:
    node = next(node for node in model.graph.node if node.op_type == "GRU")
    next(attribute for attribute in node.attribute if attribute.name == "direction").s = b"reverse"


def nan(model: onnx.ModelProto) -> None:
    weight = next(tensor for tensor in model.graph.initializer if list(tensor.dims) == [1, 12, 4])
    weight.CopyFrom(numpy_helper.from_array(np.full((1, 12, 4), np.nan, np.float32), weight.name))


@pytest.mark.parametrize("change", [swapped_gates, other_reset, backwards, nan])
def test_a_wrong_graph_is_caught(
    exported: tuple[ModelSpec, onnx.ModelProto, tuple[TensorSpec, ...], int], change: Callable[[onnx.ModelProto], None]
) -> None:
    spec, model, outputs, _ = exported
    assert max(check.max_abs for check in _verify.compare({"a.onnx": model.SerializeToString()}, spec, outputs)) < 1e-5
    wrong = onnx.ModelProto()
    wrong.CopyFrom(model)
    change(wrong)
    with pytest.raises(ExportError, match="differs from PyTorch"):
        _verify.compare({"a.onnx": wrong.SerializeToString()}, spec, outputs)


def test_a_frozen_time_axis_and_a_lost_layer_are_caught(
    exported: tuple[ModelSpec, onnx.ModelProto, tuple[TensorSpec, ...], int],
) -> None:
    spec, model, outputs, count = exported
    _verify.check_graph(model, spec, outputs, count)
    with pytest.raises(ExportError, match="2 recurrent layers"):
        _verify.check_graph(model, spec, outputs, 2)
    frozen = onnx.ModelProto()
    frozen.CopyFrom(model)
    frozen.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 7
    with pytest.raises(ExportError, match=r"was to have x:float32\[batch,time,3\]"):
        _verify.check_graph(frozen, spec, outputs, count)


def test_sizes_stay_within_the_declared_ranges() -> None:
    inputs = (TensorSpec("x", "float32", ("batch", "time", "bands")),)
    spec = ModelSpec(nn.Identity(), inputs, dims={"time": DimRange(4, 30), "bands": DimRange(8, 8)})
    sizes = _verify.verification_sizes(spec)
    assert [size["time"] for size in sizes] == [4, 30, 23]
    assert {size["bands"] for size in sizes} == {8}
    assert _verify.verification_sizes(ModelSpec(nn.Identity(), (TensorSpec("x", "float32", (2, 3)),))) == [{}]
