"""The contract's model, ``x [batch, time, 4] -> y [batch, time, 3], h [1, batch, 3]``, in PyTorch and in ONNX."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from deploykit.artifact import Artifact, ModelRef
from deploykit.types import ModelSpec, TensorSpec

INPUTS = (TensorSpec.parse("x:float32[batch,time,4]"),)
OUTPUTS = (TensorSpec.parse("y:float32[batch,time,3]"), TensorSpec.parse("h:float32[1,batch,3]"))


class Recurrent(nn.Module):
    """Keeps its output in a buffer of its own and shifts its input in place: what a runner must guard against."""

    def __init__(self, kind: type[nn.RNN] | type[nn.GRU] = nn.RNN) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rnn = kind(4, 3, batch_first=True)
        self.kept = torch.zeros(0)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y, h = self.rnn(x)
        x.add_(1)
        if self.kept.shape != y.shape:
            self.kept = torch.zeros_like(y)
        return self.kept.copy_(y), h


class Nested(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, list[Tensor] | None]]:
        return x, {"a": [x + 1, x + 2], "b": None}


class Stringly(nn.Module):
    def forward(self, x: Tensor) -> str:
        return "no tensor"


class Brain(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.to(torch.bfloat16)


class Breaks(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x @ x.new_zeros(99, 1)


def recurrent() -> ModelSpec:
    return ModelSpec(Recurrent(), INPUTS, OUTPUTS, name="recurrent")


def gated() -> ModelSpec:
    """The same with a GRU: PyTorch's int8 knows no nn.RNN."""
    return ModelSpec(Recurrent(nn.GRU), INPUTS, OUTPUTS, name="gated")


def nested() -> ModelSpec:
    return ModelSpec(Nested(), INPUTS)


def stringly() -> ModelSpec:
    return ModelSpec(Stringly(), INPUTS)


def brain() -> ModelSpec:
    return ModelSpec(Brain(), INPUTS)


def breaks() -> ModelSpec:
    return ModelSpec(Breaks(), INPUTS)


def misnamed() -> ModelSpec:
    return ModelSpec(Recurrent(), INPUTS, OUTPUTS[:1])


def torch_artifact(factory: str = "recurrent") -> Artifact:
    """The model itself; the specs are there for the null backend, which knows nothing else."""
    artifact = Artifact.of_model(ModelRef(f"{__name__}:{factory}"), factory)
    return replace(artifact, inputs=INPUTS, outputs=OUTPUTS)


def onnx_artifact(folder: Path) -> Artifact:
    """The same weights as one ONNX RNN, written by hand: what is under test here is the backend, not the export."""
    rnn = recurrent().module.rnn
    assert isinstance(rnn, nn.RNN)

    def weights(name: str, *parameters: str) -> onnx.TensorProto:
        array = np.concatenate([rnn.get_parameter(parameter).detach().numpy() for parameter in parameters])[None]
        return numpy_helper.from_array(array, name)

    nodes = [
        helper.make_node("Transpose", ["x"], ["xt"], perm=[1, 0, 2]),
        helper.make_node("RNN", ["xt", "W", "R", "B"], ["yt", "h"], hidden_size=3),
        helper.make_node("Squeeze", ["yt", "one"], ["ys"]),
        helper.make_node("Transpose", ["ys"], ["y"], perm=[1, 0, 2]),
    ]
    graph = helper.make_graph(
        nodes,
        "contract",
        [helper.make_tensor_value_info(spec.name, TensorProto.FLOAT, spec.dims) for spec in INPUTS],
        [helper.make_tensor_value_info(spec.name, TensorProto.FLOAT, spec.dims) for spec in OUTPUTS],
        [
            weights("W", "weight_ih_l0"),
            weights("R", "weight_hh_l0"),
            weights("B", "bias_ih_l0", "bias_hh_l0"),
            numpy_helper.from_array(np.asarray([1]), "one"),
        ],
    )
    path = folder / "contract.onnx"
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return Artifact(path, "onnx", "float32", "", INPUTS, OUTPUTS)
