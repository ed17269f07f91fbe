"""Weight-only int8: an int8 file, float arithmetic, the nodes as they were."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from deploykit import artifact, registry
from deploykit.artifact import Artifact
from deploykit.coverage import Coverage
from deploykit.errors import GateError, QuantizationError
from deploykit.quantize import quantize as quantize_artifact
from deploykit.quantize.weight_only import SCHEME
from tests.quantize.graphs import DIRECTIONS, VARIANTS, Net, all_ops, build, floats, run, snr, tensor, worst_snr
from tests.quantize.graphs import quantize as quantize_with

NEWEST = onnx.defs.onnx_opset_version()


def quantize(model: onnx.ModelProto, *exclude: str) -> tuple[onnx.ModelProto, Coverage]:
    return quantize_with(model, *exclude, scheme=SCHEME)


def float_matrices(model: onnx.ModelProto) -> list[str]:
    """Float initializers that are neither biases nor, by their name, scales."""
    stored = [one for one in model.graph.initializer if one.data_type == TensorProto.FLOAT]
    biases = {name for node in model.graph.node if len(node.input) > 2 for name in node.input[2:]}
    return [one.name for one in stored if one.name not in biases and "scale" not in one.name]


def made_by(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    found: onnx.NodeProto = next(node for node in model.graph.node if name in node.output)
    return found


@pytest.mark.parametrize("opset", [14, 17, 20, NEWEST])
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(("kind", "variant"), VARIANTS)
def test_close_to_float(kind: str, variant: str, direction: str, layers: int, opset: int) -> None:
    net = Net(kind, variant, direction=direction, layers=layers, lengths=True, initial=True, opset=opset)
    model = net.model()
    quantized, coverage = quantize(model)
    assert [row.became for row in coverage.rows] == ["int8-storage"] * layers
    assert coverage.weight_share == 1
    assert coverage.mac_share == 0
    assert all_ops(quantized.graph).count(kind) == layers
    assert [(entry.domain, entry.version) for entry in quantized.opset_import] == [("", opset)]
    assert worst_snr(model, quantized, net.feeds(9, 3)) > 40


@pytest.mark.parametrize("kind", ["GRU", "LSTM", "RNN"])
def test_the_file_is_a_quarter_and_its_numbers_are_symmetric(kind: str) -> None:
    net = Net(kind, inputs=256, hidden=256)
    model = net.model()
    quantized, coverage = quantize(model)
    assert model.ByteSize() / quantized.ByteSize() > 3.7
    assert coverage.rows[0].weight_bytes == 4 * coverage.rows[0].macs
    int8 = [numpy_helper.to_array(one) for one in quantized.graph.initializer if one.data_type == TensorProto.INT8]
    assert sum(one.size for one in int8) == coverage.rows[0].macs
    # -128 has no counterpart: with it, the weights would lean.
    assert {int(one.min()) for one in int8} == {-127}
    assert {int(one.max()) for one in int8} == {127}


def test_every_weight_is_off_by_half_a_scale_at_most_and_biases_by_nothing() -> None:
    net = Net("LSTM", direction="bidirectional")
    model = net.model()
    quantized, _ = quantize(model)
    node = next(one for one in quantized.graph.node if one.op_type == "LSTM")
    before = {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}
    after = {one.name: numpy_helper.to_array(one) for one in quantized.graph.initializer}
    for place, name in ((1, "W0"), (2, "R0")):
        product = made_by(quantized, node.input[place])
        cast = made_by(quantized, product.input[0])
        values, scale = after[cast.input[0]], after[product.input[1]]
        assert (product.op_type, cast.op_type) == ("Mul", "Cast")
        assert values.dtype == np.int8
        assert scale.shape == (*values.shape[:2], 1)
        assert scale.min() > 0
        assert (np.abs(values * scale - before[name]) <= scale * 0.5001).all()
    np.testing.assert_array_equal(after[node.input[3]], before["B0"])
    assert not float_matrices(quantized)


def test_onnxruntime_works_the_weights_out_when_it_loads(tmp_path: Path) -> None:
    """So a step costs what it costs in float."""
    quantized, _ = quantize(Net("GRU", direction="bidirectional", layers=2).model())
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(quantized.SerializeToString(), options, providers=["CPUExecutionProvider"])
    assert not {"Cast", "Mul"} & set(all_ops(onnx.load(tmp_path / "optimized.onnx").graph))


def test_peepholes_clip_and_other_activations_stay_with_their_node() -> None:
    model = Net("LSTM", bias=False).model()
    node = model.graph.node[0]
    model.graph.initializer.append(tensor("P", 1, 63))
    node.input.extend([""] * (7 - len(node.input)) + ["P"])
    node.attribute.extend(
        [
            helper.make_attribute("clip", 0.5),
            helper.make_attribute("input_forget", 1),
            helper.make_attribute("activations", ["Sigmoid", "Relu", "Softsign"]),
        ]
    )
    quantized, coverage = quantize(model)
    assert coverage.rows[0].became == "int8-storage"
    assert worst_snr(model, quantized, Net("LSTM").feeds(9, 3)) > 38


def test_products_and_convolutions() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "kernel", "kernel_bias"], ["c"], name="conv", group=2),
        helper.make_node("ConvTranspose", ["c", "back"], ["t"], name="back", group=2),
        helper.make_node("MatMul", ["t", "w"], ["m"], name="right"),
        helper.make_node("MatMul", ["left", "m"], ["l"], name="left"),
        helper.make_node("MatMul", ["l", "stack"], ["s"], name="stacked"),
        helper.make_node("MatMul", ["s", "s"], ["p"], name="scores"),
        helper.make_node("Reshape", ["p", "flat"], ["f"]),
        helper.make_node("Gemm", ["f", "g", "g_bias"], ["h"], name="head", transB=1, alpha=0.5, beta=2.0),
        helper.make_node("Gemm", ["h", "n"], ["y"], name="narrow"),
    ]
    weights = [
        tensor("kernel", 6, 2, 3),
        tensor("kernel_bias", 6),
        tensor("back", 6, 2, 3),
        tensor("w", 10, 12),
        tensor("left", 5, 4),
        tensor("stack", 2, 12, 5),
        tensor("g", 7, 25),
        tensor("g_bias", 7),
        tensor("n", 7, 1),
        numpy_helper.from_array(np.array([-1, 25], np.int64), "flat"),
    ]
    model = build(nodes, [floats("x", 2, 4, 10)], [floats("y", 2, 1), floats("h", 2, 7)], weights)
    quantized, coverage = quantize(model)
    rows = {row.node: row for row in coverage.rows}
    assert (
        rows.pop("scores").reason == "a product of two activations whose size is not stated, so that it is not counted"
    )
    assert {row.became for row in rows.values()} == {"int8-storage"}
    assert len(rows) == 7
    assert (rows["conv"].macs, rows["conv"].weight_bytes) == (36, 144)
    assert not float_matrices(quantized)
    assert worst_snr(model, quantized, {"x": np.random.default_rng(0).standard_normal((2, 4, 10), np.float32)}) > 30
    for name, axes in (
        ("conv", (6, 1, 1)),
        ("back", (1, 2, 1)),
        ("left", (5, 1)),
        ("stacked", (2, 1, 5)),
        ("head", (7, 1)),
    ):
        node = next(node for node in quantized.graph.node if node.name == name)
        product = made_by(quantized, node.input[0 if name == "left" else 1])
        scale = next(one for one in quantized.graph.initializer if one.name == product.input[1])
        assert tuple(scale.dims) == axes, name


@pytest.mark.parametrize("gemm", [False, True])
def test_a_tied_table_is_stored_once(gemm: bool) -> None:
    head = [
        helper.make_node("Transpose", ["table"], ["turned"], perm=[1, 0]),
        helper.make_node("MatMul", ["e", "turned"], ["logits"], name="head"),
    ]
    if gemm:
        head = [helper.make_node("Gemm", ["e", "table"], ["logits"], name="head", transB=1)]
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["time"])
    nodes = [helper.make_node("Gather", ["table", "ids"], ["e"], name="embedding"), *head]
    model = build(nodes, [ids], [floats("logits", "time", 200)], [tensor("table", 200, 16)])
    quantized, coverage = quantize(model)
    assert [row.became for row in coverage.rows] == ["int8-storage"] * 2
    int8 = [one for one in quantized.graph.initializer if one.data_type == TensorProto.INT8]
    assert [list(one.dims) for one in int8] == [[200, 16]]
    assert len(quantized.graph.initializer) == 2
    feeds = {"ids": np.arange(0, 200, 7)}
    assert snr(run(model, feeds)["logits"], run(quantized, feeds)["logits"]) > 36


def test_what_stays_says_why() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["y"], name="replaceable"),
        helper.make_node("MatMul", ["x", "v"], ["z"], name="vector"),
        helper.make_node("MatMul", ["x", "u"], ["a"], name="excluded"),
        helper.make_node("Cast", ["x"], ["double"], to=TensorProto.DOUBLE),
        helper.make_node("MatMul", ["double", "d"], ["b"], name="double"),
    ]
    inputs = [floats("x", 4, 24), floats("w", 24, 10)]
    double = helper.make_tensor_value_info("b", TensorProto.DOUBLE, [4, 3])
    outputs = [floats("y", 4, 10), floats("z", 4), floats("a", 4, 10), double]
    weights = [
        tensor("w", 24, 10),
        tensor("v", 24),
        tensor("u", 24, 10),
        numpy_helper.from_array(np.ones((24, 3)), "d"),
    ]
    model = build(nodes, inputs, outputs, weights)
    quantized, coverage = quantize(model, "excluded")
    assert quantized.graph == model.graph
    assert {row.became for row in coverage.rows} == {"float32"}
    reasons = {row.node: row.reason for row in coverage.rows}
    assert "two activations" in str(reasons["replaceable"])
    assert reasons["vector"] == "its weights are no matrix"
    assert reasons["excluded"] == "excluded by name"
    assert reasons["double"] == "its weights are float64, not float32"


@pytest.mark.parametrize(("name", "kind"), [("W0", "NaN"), ("R0", "Inf"), ("B0", "NaN")])
def test_unsound_weights_are_refused(name: str, kind: str) -> None:
    model = Net("GRU").model()
    one = next(one for one in model.graph.initializer if one.name == name)
    values = numpy_helper.to_array(one).copy()
    values.flat[3] = float(kind)
    one.CopyFrom(numpy_helper.from_array(values, name))
    with pytest.raises(QuantizationError, match=f"'{name}' holds {kind}"):
        quantize(model)


def test_quantized_and_old_models_are_refused() -> None:
    once, _ = quantize(Net("GRU").model())
    for name in ("weight-only", "dynamic"):
        with pytest.raises(QuantizationError, match="quantized already"):
            quantize_with(once, scheme=registry.scheme(name))
    old = build([helper.make_node("Relu", ["x"], ["y"])], [floats("x", 2)], [floats("y", 2)], [], 13)
    with pytest.raises(QuantizationError, match="opset 13"):
        quantize(old)


def test_an_int8_mask_is_no_quantized_weight() -> None:
    nodes = [
        helper.make_node("Cast", ["mask"], ["m"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["m", "x"], ["masked"]),
        helper.make_node("MatMul", ["masked", "w"], ["y"]),
    ]
    mask = numpy_helper.from_array(np.eye(4, 24, dtype=np.int8), "mask")
    model = build(nodes, [floats("x", 4, 24)], [floats("y", 4, 10)], [mask, tensor("w", 24, 10)])
    assert quantize(model)[1].rows[0].became == "int8-storage"


def test_zero_weights_stay_zero() -> None:
    model = Net("GRU").model()
    for one in model.graph.initializer:
        one.raw_data = bytes(len(one.raw_data))
    feeds = Net("GRU").feeds(4, 2)
    np.testing.assert_array_equal(run(quantize(model)[0], feeds)["y"], run(model, feeds)["y"])


def saved(model: onnx.ModelProto, folder: Path) -> Artifact:
    onnx.save(model, folder / "net.onnx")
    return artifact.read(folder / "net.onnx")


def test_storage_is_what_was_asked_for_and_a_layer_left_out_is_not(tmp_path: Path) -> None:
    source = saved(Net("GRU", layers=2).model(), tmp_path)
    made = quantize_artifact(source, tmp_path / "small.onnx", method="weight-only")
    assert made.format == "onnx-int8"
    assert made.coverage is not None
    assert made.coverage.weight_share == 1
    with pytest.raises(GateError, match="gru_1"):
        quantize_artifact(source, tmp_path / "x.onnx", method="weight-only", exclude=frozenset({"gru_1"}))
