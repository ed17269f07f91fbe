"""Graphs that are refused, recurrent nodes that stay in float, and models that exporters write."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime.quantization
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.backend.test.loader import load_model_tests
from torch import nn

from deploykit import registry
from deploykit.coverage import RECURRENT
from deploykit.errors import QuantizationError
from deploykit.quantize import Preference, QuantizeOptions
from deploykit.quantize.dynamic import SCHEME
from tests.quantize.graphs import Array, Net, all_ops, build, floats, quantize, run, snr, tensor, worst_snr


def refusal(model: onnx.ModelProto) -> str:
    with pytest.raises(QuantizationError) as caught:
        quantize(model)
    return str(caught.value)


@pytest.mark.parametrize("opset", [7, 11, 13])
def test_old_opsets_are_refused(opset: int) -> None:
    model = build([helper.make_node("Relu", ["x"], ["y"])], [floats("x", 2)], [floats("y", 2)], [], opset)
    assert f"opset {opset}" in refusal(model)


@pytest.mark.parametrize("method", registry.scheme_names())
def test_a_quantized_graph_is_refused(method: str) -> None:
    net = Net("GRU", hidden=40)
    options = QuantizeOptions(calibration=net.feeds(20, 2), prefer="int8")
    once, _ = registry.scheme(method).apply(net.model(), options)
    assert "quantized already" in refusal(once)


@pytest.mark.parametrize("prefer", ["speed", "size"])
def test_a_graph_of_small_layers_is_refused_too(prefer: Preference) -> None:
    assert "quantized already" in refusal(quantize(Net("GRU").model(), prefer=prefer)[0])


def test_another_tools_quantized_graph_is_refused(tmp_path: Path) -> None:
    source, target = tmp_path / "lstm.onnx", tmp_path / "int8.onnx"
    onnx.save(Net("LSTM").model(), source)
    onnxruntime.quantization.quantize_dynamic(source, target)
    assert "quantized already" in refusal(onnx.load(target))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["W1", "R1", "B1"])
def test_unsound_weights_are_refused_by_name(name: str, bad: float) -> None:
    model = Net("LSTM", layers=2).model()
    one = next(one for one in model.graph.initializer if one.name == name)
    values = numpy_helper.to_array(one).copy()
    values.flat[7] = bad
    one.CopyFrom(numpy_helper.from_array(values, name))
    assert repr(name) in refusal(model)


def test_unsound_weights_behind_a_chain_are_named_too() -> None:
    weights = tensor("stored", 8, 4)
    values = numpy_helper.to_array(weights).copy()
    values[2, 2] = np.nan
    nodes = [
        helper.make_node("Transpose", ["stored"], ["turned"], perm=[1, 0]),
        helper.make_node("MatMul", ["x", "turned"], ["y"]),
    ]
    model = build(nodes, [floats("x", 2, 4)], [floats("y", 2, 8)], [numpy_helper.from_array(values, "stored")])
    assert "'stored' holds NaN" in refusal(model)


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.BFLOAT16])
def test_half_precision_is_refused(kind: int) -> None:
    x, y = (helper.make_tensor_value_info(name, kind, [2, 2]) for name in "xy")
    model = build([helper.make_node("Relu", ["x"], ["y"])], [x], [y], [])
    assert "float32" in refusal(model)


def test_external_data_that_was_not_loaded_is_refused(tmp_path: Path) -> None:
    onnx.save(Net("GRU").model(), tmp_path / "net.onnx", save_as_external_data=True, size_threshold=0)
    model = onnx.load(tmp_path / "net.onnx", load_external_data=False)
    with pytest.raises(QuantizationError, match="external data"):
        SCHEME.apply(model, QuantizeOptions())


@pytest.mark.parametrize(
    ("kind", "attrs", "reason"),
    [
        ("GRU", {"clip": 3.0}, "clip"),
        ("GRU", {"layout": 1}, "layout=1"),
        ("GRU", {"activations": ["Sigmoid", "Relu"]}, "Sigmoid, Relu"),
        ("RNN", {"activations": ["Sigmoid"]}, "Sigmoid"),
        ("LSTM", {"input_forget": 1}, "coupled"),
    ],
)
def test_what_stays_in_float_and_why(kind: str, attrs: dict[str, Any], reason: str) -> None:
    model = Net(kind).model()
    node = model.graph.node[0]
    kept = [attribute for attribute in node.attribute if attribute.name not in attrs]
    del node.attribute[:]
    node.attribute.extend([*kept, *(helper.make_attribute(name, value) for name, value in attrs.items())])
    quantized, coverage = quantize(model)
    assert quantized.graph == model.graph
    row = coverage.rows[0]
    assert row.became == "float32"
    assert reason in str(row.reason)
    assert row.macs > 0
    assert coverage.recurrent_left == coverage.rows


def test_peepholes_and_weights_that_are_inputs_stay_in_float() -> None:
    model = Net("LSTM").model()
    model.graph.node[0].input.extend(["", "", "P"])
    model.graph.initializer.append(tensor("P", 1, 63))
    assert "peephole" in str(quantize(model)[1].rows[0].reason)
    model = Net("GRU").model()
    moved = next(one for one in model.graph.initializer if one.name == "R0")
    model.graph.input.append(floats("R0", *moved.dims))
    model.graph.initializer.remove(moved)
    assert "not constant" in str(quantize(model)[1].rows[0].reason)


def test_default_activations_by_name_are_quantized() -> None:
    for kind, names in (("GRU", ["Sigmoid", "Tanh"]), ("LSTM", ["sigmoid", "tanh", "tanh"])):
        model = Net(kind).model()
        model.graph.node[0].attribute.append(helper.make_attribute("activations", names))
        assert quantize(model)[1].rows[0].became == "int8"


def conformance_cases() -> list[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # onnx computes its other operators' cases too, overflow and all
        cases = load_model_tests(kind="node")
    return [
        case for case in cases if case.name.startswith(("test_gru_", "test_lstm_", "test_simple_rnn_", "test_rnn_"))
    ]


@pytest.mark.parametrize("case", conformance_cases(), ids=lambda case: str(case.name))
def test_onnx_conformance_cases(case: Any) -> None:
    """ONNX's own cases, with the weights that they feed made constant."""
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    values = [
        numpy_helper.to_array(one) if isinstance(one, TensorProto) else np.asarray(one) for one in case.data_sets[0][0]
    ]
    feeds: dict[str, Array] = dict(zip((one.name for one in model.graph.input), values, strict=True))
    for name in (one for one in list(feeds) if one in ("W", "R", "B")):
        model.graph.initializer.append(numpy_helper.from_array(feeds.pop(name), name))
        model.graph.input.remove(next(one for one in model.graph.input if one.name == name))
    quantized, coverage = quantize(model)
    if coverage.recurrent_left:
        assert "layout=1" in str(coverage.rows[0].reason) or "peephole" in str(coverage.rows[0].reason)
        return
    assert worst_snr(model, quantized, feeds) > 28  # five units, inputs up to 18: gates hard at their ends
    assert not RECURRENT & set(all_ops(quantized.graph))


class Stack(nn.Module):
    """A recurrent layer, its state given or not, and a head."""

    def __init__(self, kind: str, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rnn: nn.RNNBase = getattr(nn, kind)(12, 20, batch_first=True, **options)
        self.head = nn.Linear(20 * (2 if options.get("bidirectional") else 1), 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.rnn(x)[0])  # type: ignore[no-any-return]


def exported(module: nn.Module, path: Path, dynamo: bool) -> onnx.ModelProto:
    example = (torch.randn(2, 5, 12),)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if dynamo:
            batch = torch.export.Dim("batch")
            torch.onnx.export(module.eval(), example, path, dynamo=True, dynamic_shapes=({0: batch},), verbose=False)
        else:
            axes = {"x": {0: "batch", 1: "time"}}
            torch.onnx.export(
                module.eval(), example, path, dynamo=False, input_names=["x"], dynamic_axes=axes, opset_version=17
            )
    return onnx.load(path)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("kind", ["GRU", "LSTM", "RNN"])
def test_torchscript_exports(kind: str, bidirectional: bool, tmp_path: Path) -> None:
    module = Stack(kind, bidirectional=bidirectional, num_layers=2)
    model = exported(module, tmp_path / "net.onnx", dynamo=False)
    quantized, coverage = quantize(model)
    assert {row.became for row in coverage.rows} == {"int8"}
    assert [row.kind for row in coverage.rows[:2]] == [kind] * 2
    assert coverage.rows[2].kind in ("MatMul", "Gemm")
    assert all_ops(quantized.graph).count("ReduceMax") == 3  # the zero initial states were seen to be zero
    x = torch.randn(3, 14, 12)
    (actual,) = run(quantized, {"x": x.numpy()}).values()
    assert snr(module(x).detach().numpy(), actual) > 32


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["GRU", "LSTM"])
def test_dynamo_exports(kind: str, tmp_path: Path) -> None:
    module = Stack(kind, num_layers=2)
    model = exported(module, tmp_path / "net.onnx", dynamo=True)
    quantized, coverage = quantize(model)
    assert {row.became for row in coverage.rows if row.weight_bytes} == {"int8"}
    assert not RECURRENT & set(all_ops(quantized.graph))
    x = torch.randn(3, 5, 12)
    (actual,) = run(quantized, {model.graph.input[0].name: x.numpy()}).values()
    assert snr(module(x).detach().numpy(), actual) > 32


def test_dead_nodes_are_not_counted() -> None:
    model = Net("GRU").model()
    model.graph.initializer.append(tensor("dead", 64, 64))
    model.graph.node.append(helper.make_node("MatMul", ["h_0", "dead"], ["nowhere"], name="dead"))
    assert [row.kind for row in quantize(model)[1].rows] == ["GRU"]


def test_floats_of_operators_that_are_not_known_are_counted() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["v"], name="known"),
        helper.make_node("Einsum", ["v", "e"], ["y"], name="unknown", equation="tk,kn->tn"),
    ]
    ends = [floats("x", "time", 64)], [floats("y", "time", 64)]
    model = build(nodes, *ends, [tensor("w", 64, 64), tensor("e", 64, 64)])
    preferences: tuple[Preference, ...] = ("int8", "speed")
    for prefer in preferences:
        _, coverage = quantize(model, prefer=prefer)
        assert {row.node: row.weight_bytes for row in coverage.rows} == {"known": 64 * 64 * 4, "unknown": 64 * 64 * 4}
        assert coverage.weight_share == 0.5


def test_initializers_that_old_files_list_as_inputs_are_weights_all_the_same() -> None:
    model = Net("GRU").model()
    model.ir_version = 3
    for one in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(one.name, one.data_type, one.dims))
    quantized, coverage = quantize(model)
    assert [row.became for row in coverage.rows] == ["int8"]
    assert [info.name for info in quantized.graph.input] == ["x"]


def test_an_input_that_nobody_reads_stays_with_its_default() -> None:
    model = Net("GRU").model()
    model.graph.initializer.append(tensor("unread", 4))
    model.graph.input.append(floats("unread", 4))
    quantized, _ = quantize(model)
    assert "unread" in {one.name for one in quantized.graph.initializer}


def test_a_triangle_over_time_is_not_quantized() -> None:
    matrix = np.triu(np.ones((40, 40), np.float32))
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="cumsum")
    ends = [floats("x", "batch", 3, 40)], [floats("y", "batch", 3, 40)]
    model = build([node], *ends, [numpy_helper.from_array(matrix, "w")])
    _, coverage = quantize(model)
    assert coverage.rows[0].became == "int8-storage"
    assert "triangle" in str(coverage.rows[0].reason)


def test_unsound_weights_of_an_excluded_node_are_no_matter() -> None:
    model = Net("LSTM", layers=2).model()
    one = next(one for one in model.graph.initializer if one.name == "R1")
    one.CopyFrom(numpy_helper.from_array(np.full(list(one.dims), np.nan, np.float32), "R1"))
    assert [row.became for row in quantize(model, "lstm_1")[1].rows] == ["int8", "float32"]
