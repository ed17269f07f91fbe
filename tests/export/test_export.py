"""Export of users' own recurrent modules: one ONNX operator a layer, dynamic axes, and the same answers."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from deploykit import artifact as artifacts
from deploykit.artifact import ModelRef
from deploykit.errors import ExportError, ModelError
from deploykit.export import export, to_onnx
from deploykit.types import DimRange, ModelSpec, TensorSpec
from tests.export.agree import assert_agrees
from tests.export.test_grid import spec_of


@pytest.mark.parametrize("opset", [17, 18, 25])
def test_the_oldest_and_newest_opset(opset: int) -> None:
    model = assert_agrees(spec_of(nn.GRU(3, 4, batch_first=True), packed=True, given=True), opset).model
    assert [entry.version for entry in model.opset_import if entry.domain == ""] == [opset]


def test_unbatched_input() -> None:
    layer = nn.LSTM(3, 4)
    spec = ModelSpec(layer.eval(), (TensorSpec("x", "float32", ("time", 3)),))
    made = to_onnx(spec)
    model, outputs = made.model, made.outputs
    assert made.layers == 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    x = np.random.default_rng(0).standard_normal((9, 3), dtype=np.float32)
    y, (h, c) = layer(torch.from_numpy(x))
    for ours, theirs in zip(session.run(None, {"x": x}), (y, h, c), strict=True):
        assert ours.shape == tuple(theirs.shape)
        assert np.abs(ours - theirs.detach().numpy()).max() < 1e-5
    assert [output.dims for output in outputs] == [("time", 4), (1, 4), (1, 4)]


def test_the_module_is_as_before_afterwards() -> None:
    spec = spec_of(nn.GRU(3, 4, num_layers=2, batch_first=True), packed=False, given=False)
    x = torch.randn(2, 5, 3)
    before, names = spec.module(x)[0], set(spec.module.state_dict())
    to_onnx(spec)
    assert torch.equal(spec.module(x)[0], before)
    assert set(spec.module.state_dict()) == names
    assert not list(spec.module.named_buffers())


def test_exporting_twice_gives_the_same_bytes_and_a_clean_file(net: ModelRef, folder: Path) -> None:
    first, second = (export(net, folder / name) for name in ("a.onnx", "b.onnx"))
    assert first.sha256 == second.sha256
    assert sorted(path.name for path in folder.glob("*.onnx*")) == ["a.onnx", "a.onnx.json", "b.onnx", "b.onnx.json"]
    model = onnx.load(first.path)
    assert model.producer_name == "deploykit"
    assert [prop.key for prop in model.metadata_props] == ["deploykit.source_sha256"]
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)
    content = first.path.read_bytes()
    assert str(folder).encode() not in content
    assert b"site-packages" not in content
    assert [node.name for node in model.graph.node if node.op_type == "GRU"] == ["rnn/GRU"]


def test_the_manifest_holds_what_was_proved(net: ModelRef, folder: Path) -> None:
    made = export(net, folder / "net.onnx")
    assert made == artifacts.read(folder / "net.onnx")
    manifest = json.loads((folder / "net.onnx.json").read_text())
    assert manifest["verification"]["verified"] is True
    assert [check["sizes"] for check in manifest["verification"]["checks"]] == [
        {"batch": 1, "time": 1},
        {"batch": 3, "time": 61},
        {"batch": 4, "time": 24},
        {"batch": 2, "time": 130},
    ]
    assert made.outputs == (TensorSpec("output", "float32", ("batch", "time", 3)),)
    assert made.model == net
    unproved = export(net, folder / "unproved.onnx", verify=False)
    assert unproved.verification == {"verified": False, "same_weights_each_time": True}


class FixedTime(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(-1, 7, 4) * 2


class Branch(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.sum() > 0 else -x


class Spectrum(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.exp(1j * x).real


class Unknown(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.special.bessel_j0(x)  # type: ignore[no-any-return]


class Nonzero(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[x[:, 0, 0] > 0]


class Holder(nn.Module):
    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.part(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("module", "told"),
    [
        (Holder(Spectrum()), "its module part computes with complex numbers (mul), .*imaginary part"),
        (Holder(Unknown()), "its module part calls bessel_j0, which ONNX has no operator for"),
        (Holder(Branch()), "its module part branches on a tensor's values.*torch.where"),
    ],
    ids=lambda value: type(value.part).__name__ if isinstance(value, Holder) else "",
)
def test_an_error_names_the_module_the_operator_and_the_way_round(module: nn.Module, told: str) -> None:
    spec = ModelSpec(module.eval(), (TensorSpec("x", "float32", ("batch", "time", 4)),), name="odd")
    with pytest.raises(ExportError) as error:
        to_onnx(spec)
    assert "\n" not in str(error.value)
    assert re.search(told.replace("(", r"\(").replace(")", r"\)"), str(error.value)), str(error.value)


@pytest.mark.parametrize("module", [FixedTime(), Branch()], ids=lambda module: type(module).__name__)
def test_what_cannot_be_exported_is_one_sentence_and_leaves_the_module_alone(module: nn.Module) -> None:
    spec = ModelSpec(module.eval(), (TensorSpec("x", "float32", ("batch", "time", 4)),), name="odd")
    with pytest.raises(ExportError, match="odd cannot be exported") as error:
        to_onnx(spec)
    assert "\n" not in str(error.value)
    assert not list(module.named_buffers())


class InPlace(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mul_(2)


class Random(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.rand_like(x)


class Own(nn.GRU):
    def forward(self, *args: Any) -> Any:
        return super().forward(*args)


class Keeps(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.GRU(4, 4, batch_first=True)
        self.h: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y, self.h = self.layer(x, self.h)
        return y  # type: ignore[no-any-return]


class Looks(nn.Module):
    """Keeps something that it never reads again, which harms nobody."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.last = x.detach()
        return x * 2


@pytest.mark.parametrize(
    ("module", "told"),
    [
        (InPlace(), "odd writes into its input x"),
        (Random(), "odd draws random numbers"),
        (Holder(Random()), r"odd draws random numbers \(in part\)"),
        (Keeps(), r"odd keeps state from one call to the next \(in h\)"),
        (Holder(Keeps()), r"odd keeps state from one call to the next \(in part.h\)"),
    ],
)
def test_what_a_file_cannot_do_is_found_and_named(module: nn.Module, told: str) -> None:
    spec = ModelSpec(module.eval(), (TensorSpec("x", "float32", ("batch", "time", 4)),), name="odd")
    before = torch.get_rng_state()
    with pytest.raises(ModelError, match=told):
        to_onnx(spec)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(part.h is None for part in module.modules() if isinstance(part, Keeps))


def test_what_is_kept_and_never_read_is_no_hindrance() -> None:
    assert to_onnx(ModelSpec(Looks().eval(), (TensorSpec("x", "float32", ("batch", "time", 4)),))).layers == 0


def test_a_convolution_that_needs_some_length_bounds_the_dim_by_itself() -> None:
    inputs = (TensorSpec("x", "float32", ("batch", 4, "time")),)
    made = to_onnx(ModelSpec(nn.Conv1d(4, 3, 3).eval(), inputs))
    assert made.dims == {"time": DimRange(3)}
    assert made.notes == ("its code works for time from 3 up, and so does the file.",)
    assert not to_onnx(ModelSpec(nn.Conv1d(4, 3, 3).eval(), inputs, dims={"time": DimRange(4, 500)})).notes
    with pytest.raises(ExportError, match=r"PyTorch asks for 3 <= time .*--dim time=LOW:HIGH"):
        to_onnx(ModelSpec(nn.Conv1d(4, 3, 3).eval(), inputs, dims={"time": DimRange(2, 500)}))


def test_a_subclass_with_its_own_forward_is_covered() -> None:
    module = nn.Sequential(Own(3, 4, batch_first=True)).eval().requires_grad_(False)
    made = to_onnx(ModelSpec(module, (TensorSpec("x", "float32", ("batch", "time", 3)),)))
    assert [node.name for node in made.model.graph.node if node.op_type == "GRU"] == ["0/GRU"]


def test_a_module_that_fails_in_pytorch_says_so() -> None:
    spec = ModelSpec(nn.GRU(3, 4).eval(), (TensorSpec("x", "float32", ("time", "batch", 5)),), name="odd")
    with pytest.raises(ModelError, match=r"odd fails in PyTorch .*Expected 3, got 5"):
        to_onnx(spec)


def test_an_opset_that_is_not_supported_is_told() -> None:
    with pytest.raises(ExportError, match="choose 17 to 25"):
        to_onnx(spec_of(nn.GRU(3, 4), packed=False, given=False), 9)
