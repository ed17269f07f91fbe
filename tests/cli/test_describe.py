"""The options that describe a model: examples, names of dims, nested arguments, programs of torch.export."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import Result
from torch import nn

from deploykit import artifact as artifacts
from deploykit import config, loading
from deploykit.artifact import ModelRef

STEP = """
import torch
from torch import nn

class Step(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(20, 8)
        self.cell = nn.LSTMCell(8, 6)

    def forward(self, token, state, *, scale, deep=False):
        h, c = self.cell(self.embedding(token), state)
        return {"h": h * scale, "state": (h, c)}

def step(): return Step()

def inputs():
    generator = torch.Generator().manual_seed(0)
    zero = torch.zeros(3, 6)
    token = torch.randint(0, 20, (3,), generator=generator)
    return {"token": token, "state": (zero, zero), "scale": torch.ones(1), "deep": True}

def fails(): raise KeyError("no file")
def nothing(): return None
def looped(): return Looped()

class Looped(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.cell = nn.GRUCell(4, 5)

    def forward(self, x):
        h, outputs = None, []
        for t in range(x.shape[1]):
            h = self.cell(x[:, t], h)
            outputs.append(h)
        return torch.stack(outputs, 1)
"""


@pytest.fixture
def step(folder: Path) -> Path:
    (folder / "step.py").write_text(STEP)
    return folder


def test_an_example_describes_and_verifies(step: Path, run: Callable[..., Result]) -> None:
    dims = [
        option
        for name in ("token", "state_0", "state_1")
        for option in ("--dims", f"{name}=batch{',_' * ('_' in name)}")
    ]
    result = run("export", "step.py:step", "--example", "step.py:inputs", *dims)
    assert result.exit_code == 0, result.output
    assert "token:int64[batch], state_0:float32[batch,6], state_1:float32[batch,6], scale:float32[1]" in result.stdout
    assert "h:float32[batch,6], state_0_out:float32[batch,6], state_1_out:float32[batch,6]" in result.stdout
    assert (
        "verified against PyTorch on values from step.py:inputs at batch=1; batch=3; batch=4; batch=2" in result.stdout
    )
    made = artifacts.read(step / "build" / "step.onnx")
    assert made.model is not None
    assert made.model.example == "step.py:inputs"
    feeds = loading.load(made.model).feeds(0, batch=2)
    assert feeds["token"].shape == (2,)
    validated = run("validate", "build/step.onnx", "--backend", "ort")
    assert validated.exit_code == 0, validated.output


def test_an_example_alone_is_static(step: Path, run: Callable[..., Result]) -> None:
    result = run("export", "step.py:step", "--example", "step.py:inputs")
    assert result.exit_code == 0, result.output
    assert "token:int64[3]" in result.stdout


def test_nested_and_keyword_arguments_by_name(step: Path, run: Callable[..., Result]) -> None:
    options = ("scale[1]", "state.0[batch,6]", "state.1[batch,6]", "token:int64[batch]")
    result = run("export", "step.py:step", *[part for text in options for part in ("--input", text)])
    assert result.exit_code == 0, result.output
    assert "state.0:float32[batch,6]" in result.stdout


@pytest.mark.parametrize(
    ("options", "code", "told"),
    [
        (("--example", "step.py:fails"), 1, "failed with KeyError"),
        (("--example", "step.py:nothing"), 2, "returned no tensors"),
        (("--example", "step.py:absent"), 1, "no function or class 'absent'"),
        (("--example", "step.py"), 2, "write FILE.py:FUNCTION"),
        (("--example", "step.py:inputs", "--dims", "x=batch"), 2, "cannot read --dims 'x=batch'"),
        (("--example", "step.py:inputs", "--input", "x[batch]"), 2, "give --input for each of them"),
    ],
)
def test_examples_that_cannot_be_used(
    step: Path, run: Callable[..., Result], options: tuple[str, ...], code: int, told: str
) -> None:
    result = run("export", "step.py:step", *options)
    assert result.exit_code == code, result.output
    assert told in result.stderr
    assert not (step / "build").exists()


def test_the_project_file_describes_a_model_too(step: Path, run: Callable[..., Result]) -> None:
    (step / "deploykit.toml").write_text(
        'model = "step.py:looped"\ninput = ["x[batch,time,4]"]\nstreaming = false\n[export]\nprecision = "fp16"\n'
    )
    assert config.find(Path()).model == ModelRef("step.py:looped", inputs=("x[batch,time,4]",))
    result = run("export")
    assert result.exit_code == 0, result.output
    assert artifacts.read(step / "build" / "looped.fp16.onnx").precision == "float16"
    # float32 is what the next command works on, and float16 is benched beside it.
    assert run("quantize", "--int8").exit_code == 0
    validated = run("validate", "--backend", "ort")
    assert validated.exit_code == 0, validated.output
    assert [name in validated.stdout for name in ("ort fp32", "ort fp16", "ort int8")] == [True] * 3


def test_a_loop_at_a_fixed_time_is_unrolled_and_says_so(step: Path, run: Callable[..., Result]) -> None:
    result = run("export", "step.py:looped", "--input", "x[batch,9,4]")
    assert result.exit_code == 0, result.output
    assert "x:float32[batch,9,4] -> output:float32[batch,9,5]" in result.stdout
    assert (
        "note: a loop over its cells is unrolled: the file works at the 9 steps that it is typed for" in result.stdout
    )


class Gru(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(4, 5, batch_first=True)
        self.head = nn.Linear(5, 2)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"y": self.head(self.rnn(x)[0])}


@pytest.fixture
def program(folder: Path) -> Path:
    torch.manual_seed(0)
    batch = torch.export.Dim("batch")
    made = torch.export.export(Gru().eval(), (torch.randn(2, 7, 4),), dynamic_shapes=({0: batch},), strict=False)
    torch.export.save(made, folder / "net.pt2")
    return folder


def test_a_program_of_torch_export(program: Path, run: Callable[..., Result]) -> None:
    result = run("export", "net.pt2")
    assert result.exit_code == 0, result.output
    assert "x:float32[batch,7,4] -> y:float32[batch,7,2]" in result.stdout
    assert "note: the program has a fixed time" in result.stdout
    validated = run("validate", "build/net.onnx", "--backend", "ort")
    assert validated.exit_code == 0, validated.output


def test_a_program_whose_operators_allow_it_gets_its_time_back(program: Path, run: Callable[..., Result]) -> None:
    result = run("export", "net.pt2", "--input", "x[batch,time,4]")
    assert result.exit_code == 0, result.output
    assert "x:float32[batch,time,4] -> y:float32[batch,time,2]" in result.stdout
    assert "note" not in result.stdout


def test_a_program_that_holds_its_sizes_says_so(folder: Path, run: Callable[..., Result]) -> None:
    torch.export.save(torch.export.export(Gru().eval(), (torch.randn(2, 7, 4),)), folder / "net.pt2")
    result = run("export", "net.pt2", "--input", "x[batch,time,4]")
    assert result.exit_code == 1
    assert "net.pt2 does not work at other sizes than it was exported for" in result.stderr
    assert not (folder / "build").exists()
