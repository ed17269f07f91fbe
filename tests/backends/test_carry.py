"""A stream of one artifact: states stay with the runner, and chunks answer as the whole sequence does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from deploykit.backends import Runner, RunOptions
from deploykit.backends.ort import OrtRunner
from deploykit.backends.torch import TorchRunner
from deploykit.runtime import session
from deploykit.states import carried
from deploykit.streaming import streaming
from deploykit.types import ModelSpec, TensorSpec

X = np.random.default_rng(0).standard_normal((2, 12, 4)).astype(np.float32)
ZERO = np.zeros((2, 1, 8), np.float32)


class Lstm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(4, 8, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.rnn(x)[0]  # type: ignore[no-any-return]


@pytest.fixture(params=["torch", "torch, by NumPy", "ort"])
def runner(request: pytest.FixtureRequest, tmp_path: Path) -> Runner:
    torch.manual_seed(0)
    spec = streaming(ModelSpec(Lstm().eval(), (TensorSpec.parse("x:float32[batch,time,4]"),), (), name="lstm"))
    if request.param.startswith("torch"):
        found: Runner = TorchRunner(spec, RunOptions())
    else:
        import onnx

        from deploykit.export import to_onnx

        path = tmp_path / "lstm.onnx"
        onnx.save(to_onnx(spec).model, path)
        found = OrtRunner(session(path, 1))
    if "NumPy" in request.param:
        found.carry = Runner.carry.__get__(found)  # type: ignore[method-assign]
    return found


def test_steps_answer_as_the_whole_sequence(runner: Runner) -> None:
    start = {"h_in": ZERO, "c_in": ZERO}
    whole = runner.infer({"x": X, **start})
    pairs = carried(["x", *start], whole)
    assert pairs == {"h_in": "h_out", "c_in": "c_out"}
    step = runner.carry(pairs)
    found: list[dict[str, Any]] = [step({"x": X[:, :1], **start})]
    found += [step({"x": X[:, at : at + 1]}) for at in range(1, 11)]
    found.append(step({"x": X[:, 11:], **start}))  # a state in later feeds is passed over
    (name,) = found[0]
    joined = np.concatenate([outputs[name] for outputs in found], axis=1)
    np.testing.assert_allclose(joined, whole[name], atol=1e-6)


def test_two_streams_do_not_share_their_states(runner: Runner) -> None:
    start = {"h_in": ZERO, "c_in": ZERO}
    pairs = {"h_in": "h_out", "c_in": "c_out"}
    one, other = runner.carry(pairs), runner.carry(pairs)
    first = one({"x": X[:, :1], **start})
    one({"x": X[:, 1:2]})
    for name, value in other({"x": X[:, :1], **start}).items():
        np.testing.assert_array_equal(value, first[name])
