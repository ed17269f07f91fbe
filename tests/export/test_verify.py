"""A graph that computes something else must not pass the verification."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from deploykit.errors import DeploykitError, ExportError
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
    assert [size["time"] for size in sizes] == [4, 30, 24, 30]
    assert {size["bands"] for size in sizes} == {8}
    assert _verify.verification_sizes(ModelSpec(nn.Identity(), (TensorSpec("x", "float32", (2, 3)),))) == [{}]


def exported_with(module: nn.Module, **dims: DimRange) -> tuple[_verify.Check, ...]:
    """Export and compare, as the command does."""
    spec = ModelSpec(
        module.eval().requires_grad_(False), (TensorSpec("x", "float32", ("batch", "time", 4)),), dims=dims
    )
    made = to_onnx(spec)
    files = {"a.onnx": made.model.SerializeToString()}
    return _verify.compare(files, replace(spec, dims=made.dims), made.outputs, looped=made.looped, hint=made.hint)


class Parity(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(4, 5, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[1] % 2:
            x = torch.nn.functional.pad(x, (0, 0, 0, 1))
        return self.rnn(x)[1][0]  # type: ignore[no-any-return]


class Padded(Parity):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.nn.functional.pad(x, (0, 0, 0, (-x.shape[1]) % 4))
        return self.rnn(x.reshape(x.shape[0], -1, 4))[0]  # type: ignore[no-any-return]


class Pieces(Parity):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h, outputs = None, []
        for piece in torch.split(x, 16, dim=1):
            y, h = self.rnn(piece, h)
            outputs.append(y)
        return torch.cat(outputs, dim=1)


class Cells(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(4, 5)


class CutLoop(Cells):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x[:, :80] if x.shape[1] > 80 else x
        h, outputs = x.new_zeros(x.shape[0], 5), []
        for t in range(x.shape[1]):
            h = self.cell(x[:, t], h)
            outputs.append(h)
        return torch.stack(outputs, dim=1)


class ResetLoop(Cells):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h, outputs = x.new_zeros(x.shape[0], 5), []
        for t in range(x.shape[1]):
            h = torch.zeros_like(h) if t % 64 == 63 else h
            h = self.cell(x[:, t], h)
            outputs.append(h)
        return torch.stack(outputs, dim=1)


class OddBatch(Parity):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.rnn(x)[0]
        return y * 2 if x.shape[0] % 2 else y


class Squeezed(Parity):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.rnn(x)[1][0].sum(-1).squeeze()  # type: ignore[no-any-return]


class Trains(Parity):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.norm.train()
        return self.norm(self.rnn(x)[1][0])  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("module", "told"),
    [
        (Parity(), r"one path for sizes of time with \(time % 2\) != 0"),
        (OddBatch(), "at batch=1, time=1 differs from PyTorch .*may take another path at this size"),
        (Pieces(), "PyTorch asks for time <= 16; bound the sizes with --dim time=LOW:HIGH"),
        (CutLoop(), "may do something else at other sizes of time than at 6 and 7"),
        (ResetLoop(), "may do something else at other sizes of time than at 6 and 7"),
        (Squeezed(), "was declared: its code drops or adds dims by their size"),
        (Trains(), "puts norm into training mode"),
        (nn.GRU(4, 5, batch_first=True).double(), r"call .float\(\) on the model"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_code_that_does_something_else_at_another_size_is_never_exported_as_if_it_did_not(
    module: nn.Module, told: str
) -> None:
    with pytest.raises(DeploykitError, match=told):
        exported_with(module)


def test_what_the_refusals_advise_works() -> None:
    assert [check.sizes["time"] for check in exported_with(Padded())] == [1, 61, 24, 130]
    assert [check.sizes["time"] for check in exported_with(Pieces(), time=DimRange(1, 16))] == [1, 16, 16, 16]
    assert [check.sizes["batch"] for check in exported_with(Squeezed(), batch=DimRange(2, 64))] == [2, 3, 4, 2]
