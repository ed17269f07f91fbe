"""``--metric`` and ``--data FILE.py:FUNCTION`` as a user meets them, on a model that takes lengths."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result

NET = """
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.rnn = nn.GRU(8, 16, batch_first=True)
        self.head = nn.Linear(16, 4)

    def forward(self, x, lengths):
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        return self.head(pad_packed_sequence(self.rnn(packed)[0], batch_first=True)[0])

def net(): return Net()
"""

OWN = """
import numpy as np

def energy(infer, data):
    print("a line of the metric's own")
    (y,) = infer({"x": data["x"], "lengths": data["lengths"]}).values()
    return (y ** 2).mean() + data["labels"].sum()

def make(seed, batch, time):
    generator = np.random.default_rng(seed)
    return generator.standard_normal((batch, time, 8)).astype(np.float32), np.full(batch, time)
"""

PROJECT = """
model = "net.py:net"
input = ["x:float32[batch,time,8]", "lengths:int64[batch]"]
[bench]
backend = ["ort"]
data = "data.npz"
metric = "own.py:energy"
[quantize]
metric = "own.py:energy:min"
calibration = "data.npz"
"""


@pytest.fixture
def project(folder: Path) -> Path:
    (folder / "net.py").write_text(NET)
    (folder / "own.py").write_text(OWN)
    (folder / "deploykit.toml").write_text(PROJECT)
    generator = np.random.default_rng(0)
    x, lengths = generator.standard_normal((6, 40, 8)).astype(np.float32), np.array([40, 9, 33, 21, 40, 5])
    np.savez(folder / "data.npz", x=x, lengths=lengths, labels=np.zeros(2))
    return folder


def test_the_users_metric_in_every_command(project: Path, run: Callable[..., Result]) -> None:
    quantized = run("quantize", "--int8", "--json", "-")
    assert quantized.exit_code == 0, quantized.output
    metric = json.loads(quantized.stdout)["verification"]["metric"]
    assert (metric["name"], metric["higher_is_better"]) == ("energy", False)
    validated = run("validate", "--time", "12", "--json", "-")
    assert validated.exit_code == 0, validated.output
    rows = json.loads(validated.stdout)["rows"]
    assert [row["metric"]["name"] for row in rows] == ["energy"] * 3
    assert rows[1]["metric"]["reference"] == rows[0]["metric"]["value"] == pytest.approx(metric["parent"], rel=1e-4)
    made = run("validate", "--time", "12", "--data", "own.py:make", "--metric", "own.py:energy")
    assert made.exit_code == 2
    assert "there are none: give them with --data FILE.npz" in made.stderr


def test_ship_takes_both(project: Path, run: Callable[..., Result]) -> None:
    shipped = run("ship", "--time", "5", "--json", "report.json")
    assert shipped.exit_code in (0, 3), shipped.output  # timings of a busy machine fail nothing here
    report = json.loads((project / "report.json").read_text())
    assert report["settings"]["data"] == "data.npz"
    assert {row["metric"]["name"] for row in report["rows"] if row["status"] == "ok"} == {"energy"}
    manifest = json.loads((project / "build" / "net.int8.onnx.json").read_text())
    assert manifest["verification"]["inputs"] == "data.npz"


def test_a_function_of_inputs_is_used_by_locate_too(project: Path, run: Callable[..., Result]) -> None:
    assert run("validate", "--locate", "--data", "own.py:make").exit_code == 0
    failed = run("validate", "--locate", "--data", "own.py:nothing")
    assert failed.exit_code == 2
    assert "name one that returns inputs" in failed.stderr
