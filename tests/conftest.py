"""What many tests use: a folder to work in, a small model of a user's own, and the command line in this process."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from deploykit.artifact import ModelRef

# The tests run in two processes: more threads in each would only be in each other's way.
os.environ.setdefault("OMP_NUM_THREADS", "1")

NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, kind=nn.GRU, hidden=16, **options):
        super().__init__()
        torch.manual_seed(0)
        self.rnn = kind(8, hidden, batch_first=True, **options)
        self.head = nn.Linear(hidden, 3)

    def forward(self, x):
        y, _ = self.rnn(x)
        return self.head(y)

def gru(): return Net()
def lstm(): return Net(nn.LSTM)
def rnn(): return Net(nn.RNN)
def no_module(): return 3
def exits(): raise SystemExit(5)
def fails(): raise ValueError("no such thing")
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def net(folder: Path) -> ModelRef:
    """A user's GRU in net.py of the current folder."""
    (folder / "net.py").write_text(NET)
    return ModelRef("net.py:gru", inputs=("x:float32[batch,time,8]",))


@pytest.fixture
def run() -> Callable[..., Result]:
    """``run("export", "charlm-gru")``: the command line, stdout and stderr apart."""
    from deploykit.cli import cli

    return lambda *args: CliRunner().invoke(cli, [str(arg) for arg in args], prog_name="deploykit")


@pytest.fixture(scope="session", autouse=True)
def torchlib_read_once() -> Iterator[None]:
    """torch.onnx reads its whole library of operators anew for each export: a third of the time of a small one."""
    from unittest import mock

    from torch.onnx._internal import _lazy_import

    onnxscript_apis: Any = _lazy_import.onnxscript_apis  # type: ignore[attr-defined]
    # An attribute of a private module: without it the tests are slower, and no less right.
    if not hasattr(onnxscript_apis, "get_torchlib_ops"):
        yield
        return
    with mock.patch.object(onnxscript_apis._module, "get_torchlib_ops", cache(onnxscript_apis.get_torchlib_ops)):
        yield
