"""Where an error comes from: found in the layer that it was put into."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from deploykit import artifact as artifacts
from deploykit.artifact import Artifact, ModelRef
from deploykit.bench.locate import WRONG_DB, locate
from deploykit.errors import ArtifactError, UsageError
from deploykit.export import export
from deploykit.quantize import quantize

SOURCE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.front = nn.Linear(8, 32)
        self.rnn = nn.GRU(32, 48, batch_first=True)
        self.head = nn.Linear(48, 40)

    def forward(self, x):
        mask = torch.zeros(x.shape[1]).masked_fill(torch.arange(x.shape[1]) > 2, float("-inf"))
        y = self.rnn(torch.tanh(self.front(x)))[0]
        return torch.softmax(self.head(y).transpose(1, 2) + mask, -1)
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("locate")
    (folder / "net.py").write_text(SOURCE)
    return export(ModelRef(f"{folder}/net.py:Net", inputs=("x:float32[batch,time,8]",)), folder / "net.onnx")


def feeds() -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(0).standard_normal((2, 20, 8)).astype(np.float32)}


def test_int8_is_compared_with_its_parent_value_by_value(exported: Artifact) -> None:
    made = quantize(exported, exported.path.with_name("int8.onnx"), prefer="int8")
    found = locate(made, exported, feeds())
    assert found.against == str(exported.path)
    kinds = [one.kind for one in found.values]
    assert kinds.index("MatMul") < kinds.index("GRU") < kinds.index("Softmax")
    assert all(one.snr_db is None or one.snr_db > WRONG_DB for one in found.values)
    assert found.first_wrong is None
    assert found.worst_step is not None


@pytest.mark.parametrize("layer", ["front", "rnn", "head"])
def test_a_wrong_layer_is_the_first_wrong_one(exported: Artifact, layer: str) -> None:
    model = onnx.load(exported.path)
    node = next(
        node for node in model.graph.node if node.name.startswith(f"{layer}/") and node.op_type in ("GRU", "MatMul")
    )
    weights = next(one for one in model.graph.initializer if one.name == node.input[1])
    broken = numpy_helper.to_array(weights)[..., ::-1].copy()
    weights.CopyFrom(numpy_helper.from_array(broken, weights.name))
    path = exported.path.with_name("wrong.onnx")
    onnx.save(model, path)
    wrong = replace(exported, path=path)
    against_parent = locate(wrong, exported, feeds())
    assert against_parent.first_wrong is not None
    assert against_parent.first_wrong.where == node.name
    against_module = locate(wrong, None, feeds())
    assert [one.where for one in against_module.values] == ["front", "rnn", "head"]
    assert against_module.first_wrong is not None
    assert against_module.first_wrong.where == layer


def test_a_right_export_agrees_with_every_part_of_the_model(exported: Artifact) -> None:
    found = locate(exported, None, feeds())
    assert [(one.where, one.kind) for one in found.values] == [("front", "Linear"), ("rnn", "GRU"), ("head", "Linear")]
    assert all(one.max_abs < 1e-5 for one in found.values)
    assert found.first_wrong is None


def test_what_cannot_be_compared_is_told(exported: Artifact, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="only values inside an ONNX file"):
        locate(replace(exported, format="trt-engine"), None, feeds())
    with pytest.raises(ArtifactError, match="names neither the float file"):
        locate(replace(exported, model=None), None, feeds())
    other = onnx.helper.make_model(
        onnx.helper.make_graph(
            [onnx.helper.make_node("Identity", ["x"], ["elsewhere"])],
            "other",
            [onnx.helper.make_tensor_value_info("x", 1, ["batch", "time", 8])],
            [onnx.helper.make_tensor_value_info("elsewhere", 1, ["batch", "time", 8])],
        ),
        opset_imports=[onnx.helper.make_opsetid("", 17)],
        ir_version=8,
    )
    onnx.save(other, tmp_path / "other.onnx")
    with pytest.raises(UsageError, match="no value in common"):
        locate(artifacts.read(tmp_path / "other.onnx"), exported, feeds())
