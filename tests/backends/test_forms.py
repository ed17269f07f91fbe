"""Models of many forms in every backend that runs here, held against PyTorch at several sizes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result

from deploykit import registry
from deploykit.artifact import Artifact, ModelRef
from deploykit.backends import Runner, RunOptions
from deploykit.bench import accuracy
from deploykit.bench.tolerance import tolerance
from deploykit.errors import BackendUnavailableError
from deploykit.export import export

FORMS = """
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

class Packed(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(20, 8)
        self.rnn = nn.LSTM(8, 16, batch_first=True, bidirectional=True)
        self.head = nn.Linear(32, 3)

    def forward(self, text, lengths):
        packed = pack_padded_sequence(self.embedding(text), lengths, batch_first=True, enforce_sorted=False)
        y, (h, _) = self.rnn(packed)
        y, _ = pad_packed_sequence(y, batch_first=True, total_length=text.shape[1])
        return self.head(y), h

class State(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.GRU(8, 16, batch_first=True)
        self.head = nn.Linear(16, 3)

    def forward(self, x, h):
        y, last = self.rnn(x, h)
        return {"y": self.head(y), "last": last}

class Plain(nn.Module):
    def __init__(self, kind, **options):
        super().__init__()
        self.rnn = kind(8, 16, batch_first=True, **options)
        self.head = nn.Linear(options.get("proj_size", 16), 3)

    def forward(self, x):
        return self.head(self.rnn(x)[0]).tanh()

def seeded(make):
    def made():
        torch.manual_seed(0)
        return make()
    return made

packed, state = seeded(Packed), seeded(State)
gru, lstm, rnn = (seeded(lambda kind=kind: Plain(kind)) for kind in (nn.GRU, nn.LSTM, nn.RNN))
projected = seeded(lambda: Plain(nn.LSTM, proj_size=4))
unbiased = seeded(lambda: Plain(nn.GRU, bias=False))
bare = seeded(lambda: nn.GRU(8, 16, batch_first=True))
bare_rnn = seeded(lambda: nn.RNN(8, 16, batch_first=True))
"""

X = ("x:float32[batch,time,8]",)
INPUTS = {
    "packed": ("text:int64[batch,time]", "lengths:int64[batch]"),
    "state": (*X, "h:float32[1,batch,16]"),
}
NAMES = ("packed", "state", "gru", "lstm", "rnn", "projected", "unbiased", "bare", "bare_rnn")
#: What a backend has no use for, and why.
REFUSED = {
    ("openvino", "packed"): "its answers would be wrong",
    ("torch-int8", "bare_rnn"): "this model has none of them",
    ("torch-compile", "bare"): "nothing in it besides recurrent layers",
    ("torch-compile", "bare_rnn"): "nothing in it besides recurrent layers",
}
SIZES = ((1, 1), (3, 7), (2, 33), (1, 20))
BACKENDS = [
    pytest.param(name, marks=pytest.mark.slow) if name == "torch-compile" else name
    for name in ("ort", "openvino", "torch-int8", "torch-compile")
]


@pytest.fixture
def forms(folder: Path) -> Path:
    (folder / "forms.py").write_text(FORMS)
    return folder


def require(name: str) -> None:
    reason = registry.backend(name).available()
    if reason is not None:
        pytest.skip(reason)


def ref(form: str) -> ModelRef:
    return ModelRef(f"forms.py:{form}", inputs=INPUTS.get(form, X))


def artifact_for(name: str, model: ModelRef, folder: Path) -> Artifact:
    if "torch" in registry.backend(name).accepts:
        return Artifact.of_model(model, "model")
    return export(model, folder / "model.onnx")


def hold(name: str, model: ModelRef, artifact: Artifact) -> Runner:
    """Compare with PyTorch at each size, by the tolerance of the backend's precision or the artifact's."""
    backend = registry.backend(name)
    allowed = tolerance(backend.precision or artifact.precision)
    reference = registry.backend("torch").open(Artifact.of_model(model, "model"), RunOptions())
    runner = backend.open(artifact, RunOptions())
    for number, (batch, time) in enumerate(SIZES):
        sizes = {"batch": batch, "time": time}
        feeds = reference.spec.feeds(number, **sizes)  # type: ignore[attr-defined]
        expected, found = reference.infer(feeds), runner.infer(feeds)
        assert accuracy.mismatch(expected, found, half=artifact.precision == "float16") is None
        measured = accuracy.measure([(expected, found)], allowed, batch_axes={}, time_axes={})
        assert accuracy.judge(measured, allowed) is None, (batch, time)
    return runner


@pytest.mark.parametrize("form", NAMES)
@pytest.mark.parametrize("name", BACKENDS)
def test_every_form_answers_as_pytorch_does_or_is_turned_down(name: str, form: str, forms: Path) -> None:
    require(name)
    artifact = artifact_for(name, ref(form), forms)
    if (name, form) in REFUSED:
        with pytest.raises(BackendUnavailableError, match=REFUSED[name, form]):
            hold(name, ref(form), artifact)
        return
    hold(name, ref(form), artifact).close()


@pytest.mark.slow
@pytest.mark.parametrize("model", registry.zoo_names())
@pytest.mark.parametrize("name", BACKENDS)
def test_every_zoo_model_answers_as_pytorch_does(name: str, model: str, folder: Path) -> None:
    require(name)
    hold(name, ModelRef(model), artifact_for(name, ModelRef(model), folder)).close()


@pytest.mark.parametrize("name", ["ort", "openvino"])
def test_float16_and_int8_files_run(name: str, forms: Path) -> None:
    from deploykit.quantize import quantize

    require(name)
    half = export(ref("gru"), forms / "half.onnx", precision="fp16")
    hold(name, ref("gru"), half).close()
    made = quantize(export(ref("gru"), forms / "gru.onnx"), forms / "int8.onnx", prefer="int8")
    hold(name, ref("gru"), made).close()


@pytest.mark.parametrize("name", BACKENDS)
def test_a_streaming_model_runs_or_is_turned_down(name: str, forms: Path) -> None:
    require(name)
    model = ModelRef("forms.py:gru", inputs=X, streaming=True)
    artifact = artifact_for(name, model, forms)
    if name == "torch-int8":
        with pytest.raises(BackendUnavailableError, match="take no states"):
            hold(name, model, artifact)
        return
    hold(name, model, artifact).close()


def test_torch_int8_is_int8_and_says_what_it_left(forms: Path) -> None:
    backend = registry.backend("torch-int8")
    runner = backend.open(Artifact.of_model(ref("rnn"), "rnn"), RunOptions())
    assert runner.notes == ("left in float: rnn (RNN).",)
    assert runner.size_bytes is not None
    whole = hold("torch-int8", ref("lstm"), Artifact.of_model(ref("lstm"), "lstm"))
    assert whole.notes == ()
    assert backend.precision == "int8"


@pytest.mark.slow
def test_torch_compile_says_what_it_compiled(forms: Path) -> None:
    require("torch-compile")
    (note,) = hold("torch-compile", ref("gru"), Artifact.of_model(ref("gru"), "gru")).notes
    assert "graphs were compiled" in note
    assert "around rnn" in note


def test_outputs_are_the_callers_own_in_every_form(forms: Path) -> None:
    require("openvino")
    runner = hold("openvino", ref("state"), export(ref("state"), forms / "model.onnx"))
    feeds = {"x": np.ones((2, 3, 8), np.float32), "h": np.zeros((1, 2, 16), np.float32)}
    first = runner.infer(feeds)
    kept = {name: value.copy() for name, value in first.items()}
    runner.infer({name: value + 1 for name, value in feeds.items()})
    assert all(np.array_equal(first[name], kept[name]) for name in kept)


def test_a_named_backend_that_turns_the_model_down_is_an_error(forms: Path, run: Callable[..., Result]) -> None:
    result = run("validate", "forms.py:bare_rnn", "--input", X[0], "--backend", "torch-int8")
    assert result.exit_code == 1, result.output
    assert "passed" not in result.stdout.splitlines()
    assert "backend torch-int8 cannot run this: PyTorch's dynamic int8 takes" in result.stderr
