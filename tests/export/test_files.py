"""The files that export writes: one, quiet in onnxruntime, with readable names; two where one would be too large."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from click.testing import Result
from torch import nn

from deploykit import artifact as artifacts
from deploykit.artifact import ModelRef
from deploykit.errors import ExportError
from deploykit.export import _clean, export, to_onnx
from deploykit.runtime import session
from deploykit.types import ModelSpec, TensorSpec

MORE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.ModuleDict({"rnn": nn.LSTM(8, 16, 2, batch_first=True, bidirectional=True)})
        self.weight = nn.Parameter(torch.randn(32))
        self.register_buffer("mask", torch.zeros(32))

    def forward(self, x):
        y, _ = self.body["rnn"](x)
        return torch.log_softmax((y * self.weight + self.mask).cumsum(1), -1)

class Large(nn.Module):
    def forward(self, x):
        return x.masked_fill(x > 0, -1e9)

class Loud(Net):
    def forward(self, x):
        return super().forward(x * 1e4) * 1e4
"""


@pytest.fixture
def more(folder: Path) -> ModelRef:
    (folder / "more.py").write_text(MORE)
    return ModelRef("more.py:Net", inputs=("x:float32[batch,time,8]",))


@pytest.mark.parametrize("opset", [17, 20, 25])
def test_onnxruntime_loads_the_file_without_a_warning(
    more: ModelRef, folder: Path, opset: int, capfd: pytest.CaptureFixture[str]
) -> None:
    made = export(more, folder / "a.onnx", opset=opset)
    assert {entry.domain: entry.version for entry in onnx.load(made.path).opset_import} == {"": opset}
    capfd.readouterr()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 0
    options.log_verbosity_level = 0
    onnxruntime.InferenceSession(str(made.path), options, providers=["CPUExecutionProvider"])
    told = capfd.readouterr().err
    assert told, "the log is captured"
    assert "[W:" not in told
    assert "[E:" not in told


def test_nodes_and_weights_are_named_after_the_modules(more: ModelRef, folder: Path) -> None:
    graph = onnx.load(export(more, folder / "a.onnx").path).graph
    assert [node.name for node in graph.node if node.op_type == "LSTM"] == ["body/rnn/LSTM", "body/rnn/LSTM_2"]
    names = {tensor.name for tensor in graph.initializer}
    assert {"weight", "mask", "body/rnn/LSTM.W", "body/rnn/LSTM_2.R", "body/rnn/LSTM.B"} <= names
    assert all(next(iter(tensor.dims)) == 2 for tensor in graph.initializer if tensor.name.endswith((".W", ".R", ".B")))


def test_nothing_is_computed_from_constants_at_run_time(more: ModelRef, folder: Path) -> None:
    graph = onnx.load(export(more, folder / "a.onnx").path).graph
    constants = {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        assert any(name not in constants for name in node.input if name), node.name


def test_a_very_large_model_keeps_its_weights_beside_it(
    more: ModelRef, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = export(more, folder / "small.onnx")
    monkeypatch.setattr(_clean, "MOST_BYTES", 5000)
    made = export(more, folder / "large.onnx")
    assert {path.name for path in folder.glob("large*")} == {"large.onnx", "large.onnx.json", "large.onnx.data"}
    assert made == artifacts.read(made.path)
    assert made.size_bytes == sum(path.stat().st_size for path in folder.glob("large.onnx*") if path.suffix != ".json")
    assert made.path.stat().st_size < small.path.stat().st_size / 2
    x = np.random.default_rng(0).standard_normal((2, 9, 8), dtype=np.float32)
    assert np.array_equal(session(made.path).run(None, {"x": x})[0], session(small.path).run(None, {"x": x})[0])
    assert made.verification is not None
    assert made.verification["verified"]
    onnx.checker.check_model(made.path, full_check=True)


def test_neither_file_is_left_when_the_second_cannot_be_written(
    more: ModelRef, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_clean, "MOST_BYTES", 5000)
    (folder / "large.onnx.json").mkdir()
    with pytest.raises(Exception, match=r"cannot write .*large.onnx.json"):
        export(more, folder / "large.onnx")
    assert [path.name for path in folder.iterdir() if path.name.startswith(("large", ".large"))] == ["large.onnx.json"]


@pytest.mark.parametrize("io", ["fp32", "fp16"])
def test_fp16_is_fp16_throughout_and_says_its_error(
    more: ModelRef, folder: Path, run: Callable[..., Result], io: str
) -> None:
    result = run("export", more.ref, "--input", more.inputs[0], "--precision", "fp16", "--io-precision", io)
    assert result.exit_code == 0, result.output
    made = artifacts.read(folder / "build" / "Net.fp16.onnx")
    kind = {"fp32": "float32", "fp16": "float16"}[io]
    assert made.precision == "float16"
    assert [str(tensor) for tensor in (*made.inputs, *made.outputs)] == [
        f"x:{kind}[batch,time,8]",
        f"output:{kind}[batch,time,32]",
    ]
    graph = onnx.load(made.path).graph
    weights = [tensor for tensor in graph.initializer if tensor.name.endswith((".W", ".R", ".B"))]
    assert weights
    assert {tensor.data_type for tensor in weights} == {onnx.TensorProto.FLOAT16}
    assert made.verification is not None
    assert 1e-5 < max(check["max_abs"] for check in made.verification["checks"]) < 0.1
    assert "largest error" in result.stdout
    assert run("validate", "build/Net.fp16.onnx", "--backend", "ort").exit_code == 0


def test_what_float16_cannot_hold_is_refused(more: ModelRef, folder: Path) -> None:
    with pytest.raises(ExportError, match=r"-1e\+09, and float16 ends at .65504"):
        export(ModelRef("more.py:Large", inputs=more.inputs), folder / "a.onnx", precision="fp16")
    with pytest.raises(ExportError, match="export it as fp32"):
        export(ModelRef("more.py:Loud", inputs=more.inputs), folder / "a.onnx", precision="fp16")
    assert not list(folder.glob("a.onnx*"))


def test_exporting_twice_gives_the_same_bytes_whatever_was_exported_between(folder: Path) -> None:
    torch.manual_seed(0)
    x = TensorSpec("x", "float32", ("batch", "time", 4))
    spec = ModelSpec(nn.LSTM(4, 5, batch_first=True).eval().requires_grad_(False), (x,))
    first = to_onnx(spec).model.SerializeToString(deterministic=True)
    to_onnx(ModelSpec(nn.Sequential(nn.Linear(4, 4), nn.GRU(4, 5)).eval(), (x,)))
    assert to_onnx(spec).model.SerializeToString(deterministic=True) == first


def test_an_export_without_verification_says_so(more: ModelRef, folder: Path, run: Callable[..., Result]) -> None:
    result = run("export", more.ref, "--input", more.inputs[0], "--no-verify")
    assert "NOT verified" in result.stdout
    manifest = json.loads((folder / "build" / "Net.onnx.json").read_text())
    assert manifest["verification"]["verified"] is False
