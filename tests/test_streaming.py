"""Recurrent state as inputs and outputs: in PyTorch, and in the exported file fed chunk by chunk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from click.testing import Result
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from deploykit import artifact as artifacts
from deploykit.artifact import ModelRef
from deploykit.errors import ExportError
from deploykit.export import export, to_onnx
from deploykit.loading import load
from deploykit.streaming import streaming, zero_states
from deploykit.types import Metric, ModelSpec, TensorSpec

X = TensorSpec("x", "float32", ("batch", "time", 4))


class Deep(nn.Module):
    """An LSTM deep inside, batch first, and a GRU that is not, given a zero state of the model's making."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.ModuleDict({"lstm": nn.LSTM(4, 6, num_layers=2, batch_first=True, proj_size=3)})
        self.gru = nn.GRU(3, 5)
        self.head = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y, _ = self.inner["lstm"](x)
        y, h = self.gru(y.transpose(0, 1), torch.zeros(1, x.shape[0], 5))
        return {"y": self.head(y.transpose(0, 1)), "last": h[0]}


def deep() -> ModelSpec:
    torch.manual_seed(0)
    return ModelSpec(Deep().eval().requires_grad_(False), (X,), name="deep")


def test_names_and_shapes_are_batch_first_and_pair_up_when_sorted() -> None:
    spec = streaming(deep())
    assert [str(tensor) for tensor in spec.inputs] == [
        "x:float32[batch,time,4]",
        "h_in_0:float32[batch,2,3]",
        "c_in_0:float32[batch,2,6]",
        "h_in_1:float32[batch,1,5]",
    ]
    made = to_onnx(spec)
    assert [str(tensor) for tensor in made.outputs] == [
        "y:float32[batch,time,2]",
        "last:float32[batch,5]",
        "h_out_0:float32[batch,2,3]",
        "c_out_0:float32[batch,2,6]",
        "h_out_1:float32[batch,1,5]",
    ]
    states = sorted(tensor.name for tensor in spec.inputs[1:])
    assert sorted(tensor.name.replace("_out", "_in") for tensor in made.outputs[2:]) == states
    assert made.layers == 3


def test_one_layer_has_no_number() -> None:
    spec = streaming(ModelSpec(nn.LSTM(4, 5, batch_first=True).eval(), (X,)))
    assert [tensor.name for tensor in spec.inputs] == ["x", "h_in", "c_in"]


@pytest.mark.parametrize("cut", [(1,), (2, 5, 1), (40,)])
def test_chunks_of_any_size_answer_as_the_whole_sequence(cut: tuple[int, ...]) -> None:
    plain = deep()
    spec = streaming(plain)
    made = to_onnx(spec)
    session = onnxruntime.InferenceSession(made.model.SerializeToString(), providers=["CPUExecutionProvider"])
    feeds = plain.feeds(0, batch=3, time=40)
    whole = plain.module(torch.from_numpy(feeds["x"]))
    state = zero_states(plain.inputs, spec.inputs[1:], feeds)
    eager = dict(state)
    begin, index, found, found_eager = 0, 0, [], []
    while begin < 40:
        chunk = feeds["x"][:, begin : begin + cut[index % len(cut)]]
        names = [output.name for output in made.outputs]
        answer = dict(zip(names, session.run(names, {"x": chunk, **state}), strict=True))
        state = {name: answer[name.replace("_in", "_out")] for name in state}
        inputs = {"x": chunk, **eager}
        value = spec.run([torch.from_numpy(inputs[tensor.name]) for tensor in spec.inputs])
        eager = {name: value[name.replace("_in", "_out")].numpy() for name in eager}
        found.append(answer["y"])
        found_eager.append(value["y"].numpy())
        begin, index = begin + chunk.shape[1], index + 1
    for pieces in (found, found_eager):
        assert np.abs(np.concatenate(pieces, axis=1) - whole["y"].numpy()).max() < 1e-5
    assert np.abs(answer["last"] - whole["last"].numpy()).max() < 1e-5


def test_a_layer_that_is_called_twice_has_two_states() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.GRU(4, 4, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.rnn(self.rnn(x)[0])[0]  # type: ignore[no-any-return]

    spec = streaming(ModelSpec(Twice().eval(), (X,)))
    assert [tensor.name for tensor in spec.inputs] == ["x", "h_in_0", "h_in_1"]


def test_unbatched_input_has_a_batch_of_one() -> None:
    spec = streaming(ModelSpec(nn.GRU(4, 5, 2).eval(), (TensorSpec("x", "float32", ("time", 4)),)))
    assert spec.inputs[1].dims == (1, 2, 5)


class Cells(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.cell(x[:, 0])  # type: ignore[no-any-return]


class Given(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(4, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.rnn(x, torch.ones(1, x.shape[0], 4))[0]  # type: ignore[no-any-return]


class Folded(Given):
    def forward(self, x: Tensor) -> Tensor:
        return self.rnn(x.repeat(3, 1, 1))[0]  # type: ignore[no-any-return]


class Packs(Given):
    def forward(self, x: Tensor) -> Tensor:
        lengths = torch.full((x.shape[0],), x.shape[1])
        return self.rnn(pack_padded_sequence(x, lengths, batch_first=True))[1]  # type: ignore[no-any-return]


class Both(Given):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(4, 4, batch_first=True, bidirectional=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.rnn(x)[0]  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("module", "told"),
    [
        (Both(), "its layer rnn is bidirectional"),
        (Cells(), "the state of its cell cell lies in the model's own code"),
        (Given(), "its layer rnn is given a state that is not zero"),
        (Folded(), "the batch of its layer rnn is made of several dims"),
        (Packs(), "its layer rnn takes packed sequences"),
        (nn.Linear(4, 4), "has no recurrent layer"),
    ],
)
def test_what_cannot_stream_is_named(module: nn.Module, told: str) -> None:
    with pytest.raises(ExportError, match=told):
        streaming(ModelSpec(module.eval(), (X,), name="odd"))


def test_an_input_of_that_name_already() -> None:
    with pytest.raises(ExportError, match="has an input h_in already"):
        streaming(ModelSpec(nn.GRU(4, 4, batch_first=True).eval(), (TensorSpec("h_in", "float32", X.dims),)))


def test_the_metric_begins_with_a_zero_state() -> None:
    plain = ModelSpec(nn.GRU(4, 5, batch_first=True).eval().requires_grad_(False), (X,))

    def mean(infer: Callable[..., Any]) -> float:
        return float(infer(plain.feeds(0, batch=2, time=9))["output_0"].mean())

    spec = streaming(ModelSpec(plain.module, (X,), metric=Metric("mean", True, mean)))
    assert spec.metric is not None

    def infer(feeds: Any) -> dict[str, Any]:
        value = spec.run([torch.from_numpy(feeds[tensor.name]) for tensor in spec.inputs])
        return {name: tensor.numpy() for name, tensor in value.items()}

    expected = plain.module(torch.from_numpy(plain.feeds(0, batch=2, time=9)["x"]))[0].mean()
    assert abs(spec.metric.evaluate(infer) - float(expected)) < 1e-6


LOOKS_BACK = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv1d(4, 4, 3, padding=1)
        self.rnn = nn.GRU(4, 5, batch_first=True)

    def forward(self, x):
        return self.rnn(self.conv(x.transpose(1, 2)).transpose(1, 2))[0]
"""


def test_a_model_that_looks_at_several_steps_elsewhere_is_refused(folder: Path) -> None:
    (folder / "net.py").write_text(LOOKS_BACK)
    ref = ModelRef("net.py:Net", inputs=(str(X),), streaming=True)
    with pytest.raises(ExportError, match="in chunks its output output differs from the whole"):
        export(ref, folder / "net.onnx")
    assert not list(folder.glob("*.onnx*"))


def test_the_command_line_exports_and_benches_a_stream(net: ModelRef, folder: Path, run: Callable[..., Result]) -> None:
    result = run("export", net.ref, "--input", net.inputs[0], "--streaming")
    assert result.exit_code == 0, result.output
    assert "h_in:float32[batch,1,16]" in result.stdout
    assert "chunks=3" in result.stdout
    made = artifacts.read(folder / "build" / "gru-streaming.onnx")
    assert made.model is not None
    assert made.model.streaming
    assert made.source_sha256 is not None
    assert [tensor.name for tensor in load(made.model).inputs] == ["x", "h_in"]
    assert run("quantize", "--int8", "build/gru-streaming.onnx").exit_code == 0
    validated = run("validate", "build/gru-streaming.onnx", "build/gru-streaming.int8.onnx", "--backend", "ort")
    assert validated.exit_code == 0, validated.output
