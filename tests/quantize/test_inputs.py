"""What a quantized artifact is judged on: real inputs where there are any, and noise that makes sense where not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from deploykit import artifact as artifacts
from deploykit.artifact import Artifact
from deploykit.errors import ModelError, UsageError
from deploykit.quantize import _inputs, quantize
from deploykit.quantize._inputs import gather
from deploykit.quantize._ranges import ranges_of
from deploykit.types import TensorSpec, ValueRange
from tests.quantize.graphs import Net, build, floats, tensor

EXAMPLE = """
import numpy as np
import torch

def in_order():
    return torch.full((3, 8, 11), 2.5).permute(1, 0, 2), np.array([8, 5, 2], np.int32)

def by_name():
    return {"lengths": np.array([8, 5, 2], np.int32), "x": np.full((8, 3, 11), 2.5, np.float32)}

def one():
    return torch.zeros(8, 3, 11)

def misshapen():
    return torch.zeros(8, 3, 12), np.array([8, 5, 2], np.int32)

def failing():
    raise RuntimeError("no recording today")
"""


@pytest.fixture
def source(tmp_path: Path) -> Artifact:
    """A file of somebody else's: a GRU over sequences with lengths."""
    (tmp_path / "ex.py").write_text(EXAMPLE)
    onnx.save(Net("GRU", lengths=True).model(), tmp_path / "net.onnx")
    return artifacts.read(tmp_path / "net.onnx")


def example(source: Artifact, name: str) -> str:
    return f"{source.path.parent / 'ex.py'}:{name}"


@pytest.mark.parametrize("name", ["in_order", "by_name"])
def test_an_example_is_what_is_measured_on(source: Artifact, name: str) -> None:
    model = onnx.load(source.path)
    inputs = gather(source, model, None, example(source, name))
    for feeds in inputs.feeds:
        assert feeds["x"].shape == (8, 3, 11)
        assert (feeds["x"] == 2.5).all()
        assert set(feeds["lengths"]) <= {2, 5, 8}
    made = quantize(source, source.path.with_name("int8.onnx"), example=example(source, name))
    assert made.verification is not None
    assert made.verification["inputs"] == f"the inputs of {example(source, name)}"


@pytest.mark.parametrize(
    ("name", "kind", "told"),
    [
        ("one", UsageError, r"returned input_0, and the model takes .*lengths:int32\[batch\]"),
        ("misshapen", UsageError, r"where the model takes x:float32"),
        ("failing", ModelError, "no recording today"),
        ("missing", ModelError, "missing"),
    ],
)
def test_an_example_that_does_not_fit_is_told(source: Artifact, name: str, kind: type[Exception], told: str) -> None:
    before = sorted(path.name for path in source.path.parent.iterdir())
    with pytest.raises(kind, match=told):
        quantize(source, source.path.with_name("int8.onnx"), example=example(source, name))
    assert sorted(path.name for path in source.path.parent.iterdir() if path.name != "__pycache__") == before


def test_lengths_of_recorded_inputs_never_exceed_the_piece_that_is_cut(
    source: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, lengths = np.zeros((300, 6, 11), np.float32), np.full(6, 300, np.int32)
    np.savez(tmp_path / "real.npz", x=x, lengths=lengths)
    inputs = gather(source, onnx.load(source.path), tmp_path / "real.npz")
    assert {feeds["x"].shape[:2] for feeds in inputs.feeds} == {(300, 4)}  # all steps of real inputs, and a few rows
    monkeypatch.setattr(_inputs, "_MOST_NUMBERS", 4000)
    inputs = gather(source, onnx.load(source.path), tmp_path / "real.npz")
    assert {feeds["x"].shape[0] for feeds in inputs.feeds} == {100}
    assert max(int(feeds["lengths"].max()) for feeds in inputs.feeds) == 100


def test_noise_for_somebody_elses_file_has_sound_lengths(source: Artifact) -> None:
    inputs = gather(source, onnx.load(source.path), None)
    lengths = np.concatenate([feeds["lengths"] for feeds in inputs.feeds])
    assert lengths.min() >= 1
    assert lengths.max() == 100
    assert len(set(lengths)) > 3
    assert "seeded noise" in inputs.told


def test_tables_and_lengths_are_found_behind_casts() -> None:
    nodes = [
        helper.make_node("Cast", ["ids"], ["wide"], to=TensorProto.INT64),
        helper.make_node("Gather", ["table", "wide"], ["e"]),
        helper.make_node("Gather", ["small", "wide"], ["s"]),
        helper.make_node("Gather", ["e", "pick"], ["y"], axis=1),
    ]
    inputs = [
        helper.make_tensor_value_info("ids", TensorProto.INT32, ["time"]),
        helper.make_tensor_value_info("pick", TensorProto.INT64, ["n"]),
    ]
    outputs = [floats("y", "time", "n"), floats("s", "time", 4)]
    model = build(nodes, inputs, outputs, [tensor("table", 90, 16), tensor("small", 40, 4)])
    specs = (TensorSpec("ids", "int32", ("time",)), TensorSpec("pick", "int64", ("n",)))
    assert ranges_of(model, specs) == {"ids": ValueRange(0, 39)}
    lengths = Net("LSTM", lengths=True).model()
    specs = (TensorSpec("x", "float32", ("time", "batch", 11)), TensorSpec("lengths", "int32", ("batch",)))
    assert ranges_of(lengths, specs) == {"lengths": ValueRange(1, "time")}
    renamed = (TensorSpec("x", "float32", ("T", "N", 11)), TensorSpec("lengths", "int32", ("N",)))
    assert ranges_of(lengths, renamed) == {"lengths": ValueRange(1, "T")}


def test_lengths_are_seen_behind_a_sort_and_in_a_comparison() -> None:
    nodes = [
        helper.make_node("TopK", ["lengths", "k"], ["sorted", "order"]),
        helper.make_node("Cast", ["sorted"], ["narrow"], to=TensorProto.INT32),
        helper.make_node("GRU", ["x", "W", "R", "", "narrow"], ["y"], hidden_size=8),
        helper.make_node("Less", ["steps", "valid"], ["mask"]),
    ]
    inputs = [
        floats("x", "time", "batch", 4),
        helper.make_tensor_value_info("lengths", TensorProto.INT64, ["batch"]),
        helper.make_tensor_value_info("valid", TensorProto.INT64, ["batch"]),
        helper.make_tensor_value_info("steps", TensorProto.INT64, ["batch"]),
    ]
    outputs = [floats("y", "time", 1, "batch", 8), helper.make_tensor_value_info("mask", TensorProto.BOOL, ["batch"])]
    k = onnx.numpy_helper.from_array(np.array([3]), "k")
    model = build(nodes, inputs, outputs, [tensor("W", 1, 24, 4), tensor("R", 1, 24, 8), k])
    specs = tuple(artifacts.tensor_spec(info) for info in model.graph.input)
    found = ranges_of(model, specs)
    assert found["lengths"] == found["valid"] == ValueRange(1, "time")


@pytest.mark.parametrize("multiple", [64, 400])
def test_a_model_that_cannot_do_a_hundred_steps_is_judged_at_others(multiple: int, tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Reshape", ["x", "shape"], ["v"]),
        helper.make_node("MatMul", ["v", "w"], ["y"], name="m"),
    ]
    shape = onnx.numpy_helper.from_array(np.array([0, -1, multiple]), "shape")
    ends = [floats("x", "batch", "samples")], [floats("y", "batch", "frames", 16)]
    onnx.save(build(nodes, *ends, [tensor("w", multiple, 16), shape]), tmp_path / "net.onnx")
    made = quantize(artifacts.read(tmp_path / "net.onnx"), tmp_path / "int8.onnx", prefer="int8")
    assert made.verification is not None
    assert made.verification["verified"]


def test_unsound_real_inputs_are_refused(source: Artifact, tmp_path: Path) -> None:
    x, lengths = np.full((30, 6, 11), np.nan, np.float32), np.full(6, 30, np.int32)
    np.savez(tmp_path / "real.npz", x=x, lengths=lengths)
    with pytest.raises(UsageError, match="holds NaN or Inf in 'x'"):
        gather(source, onnx.load(source.path), tmp_path / "real.npz")
