"""ONNX's own recurrent conformance cases: each is read, run, and quantized or left with the reason."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx.backend.test.loader import load_model_tests

from deploykit import artifact as artifacts
from deploykit.errors import QuantizationError
from deploykit.quantize import quantize
from deploykit.quantize._gate import Bounds
from deploykit.runtime import session
from tests.quantize.graphs import Form, both_forms

PREFIXES = ("test_gru_", "test_lstm_", "test_rnn_", "test_simple_rnn_")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # the cases of other operators overflow on purpose
    CASES = {case.name: case for case in load_model_tests(kind="node") if case.name.startswith(PREFIXES)}

# onnxruntime's CPU kernels do not take layout=1.
BATCHWISE = {name for name in CASES if name.endswith("_batchwise")}


def constant_weights(model: onnx.ModelProto, values: dict[str, np.ndarray]) -> onnx.ModelProto:
    """The case with everything but X as initializers, which is how files of models have them."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    for value in [value for value in changed.graph.input if value.name != "X"]:
        changed.graph.initializer.append(numpy_helper.from_array(values[value.name], value.name))
        changed.graph.input.remove(value)
    return changed


def test_there_are_eighteen() -> None:
    assert len(CASES) == 18
    assert len(BATCHWISE) == 3


@both_forms
@pytest.mark.parametrize("name", sorted(CASES))
def test_each_case_is_read_run_and_quantized_or_left_with_the_reason(name: str, tmp_path: Path, kernels: Form) -> None:
    case = CASES[name]
    model = case.model
    assert model is not None
    assert case.data_sets is not None
    ((given, expected),) = case.data_sets
    inputs = dict(zip((value.name for value in model.graph.input), given, strict=True))
    path = tmp_path / "case.onnx"
    onnx.save(constant_weights(model, inputs), path)
    artifact = artifacts.read(path)
    assert [tensor.name for tensor in artifact.inputs] == ["X"]
    if name in BATCHWISE:
        with pytest.raises(QuantizationError, match="onnxruntime cannot load"):
            quantize(artifact, tmp_path / "int8.onnx", bounds=None, allow_partial=True, kernels=kernels)
        assert not (tmp_path / "int8.onnx").exists()
        return
    names = [tensor.name for tensor in artifact.outputs]
    found = session(path).run(names, {"X": inputs["X"]})
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-5)
    made = quantize(
        artifact, tmp_path / "int8.onnx", bounds=Bounds(min_snr=10), prefer="int8", allow_partial=True, kernels=kernels
    )
    assert made.coverage is not None
    (row,) = made.coverage.rows
    if "peepholes" in name:
        assert row.became == "float32"
        assert row.reason == "it has peephole weights"
        return
    assert row.became == "int8", row.reason
    for ours, theirs in zip(session(made.path).run(names, {"X": inputs["X"]}), expected, strict=True):
        assert np.abs(ours - theirs).max() <= 0.02 * max(np.abs(theirs).max(), 1)
