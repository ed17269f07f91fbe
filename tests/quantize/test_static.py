"""Static int8 in Q/DQ: close to float on data like the calibration's, and nothing in it that TensorRT cannot import."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from deploykit import artifact, registry
from deploykit.coverage import Coverage
from deploykit.errors import QuantizationError
from deploykit.quantize import QuantizeOptions, static
from deploykit.quantize import quantize as quantize_artifact
from deploykit.quantize._calibration import Histogram, scales
from deploykit.quantize.static import SCHEME
from tests.quantize.graphs import (
    DIRECTIONS,
    VARIANTS,
    Feeds,
    Net,
    all_initializers,
    all_ops,
    build,
    floats,
    run,
    session,
    snr,
    tensor,
    worst_snr,
)

NEWEST = onnx.defs.onnx_opset_version()

#: What we write that onnx-tensorrt's table of operators says it imports.
IMPORTED = frozenset(
    {"Add", "Cast", "Concat", "ConstantOfShape", "DequantizeLinear", "Expand", "Flatten", "Gather", "GatherElements"}
    | {"Gemm", "GreaterOrEqual", "Identity", "Less", "MatMul", "Mul", "QuantizeLinear", "Range", "Relu", "Reshape"}
    | {"ReverseSequence", "Scan", "Shape", "Sigmoid", "Slice", "Split", "Squeeze", "Sub", "Tanh", "Transpose"}
    | {"Unsqueeze", "Where"}
)


def quantize(model: onnx.ModelProto, feeds: Feeds | None, *exclude: str) -> tuple[onnx.ModelProto, Coverage]:
    """The checked result, which TensorRT could import, and which has left its source alone."""
    before = model.SerializeToString(deterministic=True)
    result, coverage = SCHEME.apply(model, QuantizeOptions(frozenset(exclude), feeds))
    assert model.SerializeToString(deterministic=True) == before
    onnx.checker.check_model(result)
    check_form(result)
    return result, coverage


def check_form(model: onnx.ModelProto) -> None:
    stored = {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}
    assert [entry.domain for entry in model.opset_import] == [""]
    for node in model.graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        scale, zero = (stored[name] for name in node.input[1:])
        assert zero.dtype == np.int8
        assert not zero.any()
        assert scale.shape == zero.shape
        assert (scale > 0).all()
        if node.op_type == "QuantizeLinear":
            assert scale.shape == ()
        elif node.input[0] in stored:
            values = stored[node.input[0]]
            assert values.dtype == np.int8
            assert values.shape[:1] == scale.shape  # a scale per row of [out, in]
            assert node.attribute[0].i == 0
            assert np.abs(values.astype(int)).max() == 127
    # a quantized bias would come out of a DequantizeLinear
    biases = [node.input[2] for node in model.graph.node if node.op_type == "Gemm"]
    assert all(stored[name].dtype == np.float32 for name in biases)


@pytest.mark.parametrize("initial", [False, True], ids=["zeros", "h0"])
@pytest.mark.parametrize("lengths", [False, True], ids=["whole", "lengths"])
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(("kind", "variant"), VARIANTS)
def test_close_to_float(kind: str, variant: str, direction: str, lengths: bool, initial: bool) -> None:
    net = Net(kind, variant, direction=direction, layers=2, lengths=lengths, initial=initial)
    model = net.model()
    quantized, coverage = quantize(model, net.feeds(30, 8, seed=3))
    assert [row.became for row in coverage.rows] == ["int8", "float32"] * 2
    assert set(all_ops(quantized.graph)) <= IMPORTED
    for time, batch in ((1, 1), (7, 3), (40, 2)):
        assert worst_snr(model, quantized, net.feeds(time, batch)) > 30


@pytest.mark.parametrize("opset", [14, 17, 18, 20])
@pytest.mark.parametrize("kind", ["GRU", "LSTM", "RNN"])
def test_every_opset(kind: str, opset: int) -> None:
    net = Net(kind, direction="bidirectional", opset=opset)
    model = net.model()
    quantized, _ = quantize(model, net.feeds(30, 4, seed=3))
    assert worst_snr(model, quantized, net.feeds(9, 3)) > 30
    assert quantized.opset_import[0].version == opset


def test_an_opset_that_onnxruntime_cannot_quantize_yet_is_refused() -> None:
    net = Net("GRU", opset=NEWEST)
    try:
        quantized, _ = quantize(net.model(), net.feeds(30, 4, seed=3))
    except QuantizationError as error:
        assert f"QuantizeLinear of opset {NEWEST}" in str(error)
    else:
        assert worst_snr(net.model(), quantized, net.feeds(9, 3)) > 30


def test_the_projection_is_int8_and_the_recurrence_says_that_it_is_float() -> None:
    net = Net("LSTM", inputs=10, hidden=20, direction="bidirectional")
    quantized, coverage = quantize(net.model(), net.feeds(20, 4))
    projection, recurrence = coverage.rows
    assert (projection.node, projection.kind, projection.macs) == ("lstm_0", "LSTM", 2 * 80 * 10)
    assert (recurrence.node, recurrence.kind, recurrence.macs) == ("lstm_0", "LSTM", 2 * 80 * 20)
    assert "input projection: int8" in projection.form
    assert "recurrence: float" in recurrence.form
    assert coverage.recurrent_left == (recurrence,)
    assert coverage.mac_share == coverage.weight_share == pytest.approx(1 / 3)
    shapes = [list(one.dims) for one in all_initializers(quantized.graph) if one.data_type == TensorProto.INT8]
    assert shapes.count([80, 10]) == 2
    # both directions read the input through one pair
    assert all_ops(quantized.graph).count("QuantizeLinear") == 1


def attention() -> onnx.ModelProto:
    """Scores of x with itself, their softmax, and the mixture, then a head with a bias."""
    nodes = [
        helper.make_node("MatMul", ["x", "wq"], ["q"], name="query"),
        helper.make_node("Transpose", ["x"], ["turned"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["q", "turned"], ["scores"], name="scores"),
        helper.make_node("Softmax", ["scores"], ["weights"], axis=-1),
        helper.make_node("MatMul", ["weights", "x"], ["mixed"], name="mix"),
        helper.make_node("MatMul", ["mixed", "wo"], ["o"], name="head"),
        helper.make_node("Add", ["o", "bias"], ["y"]),
    ]
    weights = [tensor("wq", 16, 16, scale=0.1), tensor("wo", 16, 6), tensor("bias", 6)]
    return build(nodes, [floats("x", "batch", "time", 16)], [floats("y", "batch", "time", 6)], weights)


def draw(*shape: int, seed: int = 0) -> Feeds:
    return {"x": np.random.default_rng(seed).standard_normal(shape).astype(np.float32)}


def test_attention_products_are_int8_on_both_sides() -> None:
    model = attention()
    quantized, coverage = quantize(model, draw(20, 12, 16))
    assert [row.became for row in coverage.rows] == ["int8"] * 4
    assert worst_snr(model, quantized, draw(3, 9, 16, seed=1)) > 25
    producers = {name: node for node in quantized.graph.node for name in node.output}
    for node in quantized.graph.node:
        if node.op_type in ("MatMul", "Gemm"):
            assert [producers[name].op_type for name in node.input[:2]] == ["DequantizeLinear"] * 2
    # x as rows and as a batch of matrices, x turned, q, the softmax and the mixture
    assert all_ops(quantized.graph).count("QuantizeLinear") == 6
    bias = next(one for one in quantized.graph.initializer if one.name == "bias")
    assert bias == model.graph.initializer[2]


@pytest.mark.parametrize("shape", [(), (5,), (3, 4), (2, 3, 4)])
def test_matmul_of_any_rank(shape: tuple[int, ...]) -> None:
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    model = build([node], [floats("x", *shape, 24)], [floats("y", *shape, 10)], [tensor("w", 24, 10)])
    feeds = draw(*shape, 24)
    quantized, coverage = quantize(model, feeds)
    assert (coverage.rows[0].macs, coverage.rows[0].weight_bytes) == (240, 960)
    assert worst_snr(model, quantized, feeds) > 30


def test_a_gemm_keeps_its_bias_in_float() -> None:
    node = helper.make_node("Gemm", ["x", "w", "b"], ["y"], name="head", transB=1, alpha=0.5, beta=2.0)
    model = build([node], [floats("x", "n", 24)], [floats("y", "n", 10)], [tensor("w", 10, 24), tensor("b", 10)])
    quantized, coverage = quantize(model, draw(64, 24))
    assert coverage.rows[0].became == "int8"
    assert worst_snr(model, quantized, draw(5, 24, seed=1)) > 30
    assert model.graph.initializer[1] in quantized.graph.initializer


def ones(name: str, *shape: int) -> onnx.TensorProto:
    return numpy_helper.from_array(np.full(shape, 1 / 64, np.float32), name)


def test_the_worst_case_product_does_not_saturate() -> None:
    """Every number at its largest: 16-bit sums of uint8 x int8 products overflow on CPUs without VNNI."""
    nodes = [
        helper.make_node("RNN", ["x", "W", "R"], ["r"], name="rnn", hidden_size=64, activations=["Relu"]),
        helper.make_node("MatMul", ["r", "w1"], ["m"], name="first"),
        helper.make_node("MatMul", ["m", "w2"], ["n"], name="second"),
        helper.make_node("Reshape", ["n", "flat"], ["f"]),
        helper.make_node("Gemm", ["f", "w3", "b"], ["g"], name="third"),
        helper.make_node("Gemm", ["g", "w4"], ["h"], name="fourth", transB=1),
        helper.make_node("Relu", ["h"], ["i"]),
        helper.make_node("Gemm", ["i", "w5", "b"], ["j"], name="fifth", transB=1),
        helper.make_node("Transpose", ["j"], ["k"], perm=[1, 0]),
        helper.make_node("MatMul", ["j", "k"], ["y"], name="both"),
    ]
    weights = [ones("W", 1, 64, 64), ones("R", 1, 64, 64), *(ones(f"w{number}", 64, 64) for number in range(1, 6))]
    weights += [ones("b", 64), numpy_helper.from_array(np.array([-1, 64], np.int64), "flat")]
    model = build(nodes, [floats("x", 1, "batch", 64)], [floats("y", "batch", "batch")], weights)
    feeds = {"x": np.ones((1, 4, 64), np.float32)}
    quantized, coverage = quantize(model, feeds)
    assert len(coverage.rows) == 8
    np.testing.assert_allclose(run(quantized, feeds)["y"], run(model, feeds)["y"], rtol=1e-4)


def test_a_static_scale_couples_no_rows() -> None:
    net = Net("GRU", layers=2)
    opened = session(quantize(net.model(), net.feeds(20, 4))[0])
    feeds = net.feeds(9, 3)
    quiet = run(opened, {"x": feeds["x"][:, :1]})["y"]
    feeds["x"][:, 1:] *= 100
    np.testing.assert_allclose(run(opened, feeds)["y"][..., :1, :], quiet, atol=1e-6)


def test_what_stays_says_why() -> None:
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["e"], name="embedding"),
        helper.make_node("GRU", ["e", "W", "R"], ["", "h"], name="clipped", hidden_size=8, clip=1.0),
        helper.make_node("MatMul", ["h", "w"], ["a"], name="excluded"),
        helper.make_node("Cast", ["a"], ["double"], to=TensorProto.DOUBLE),
        helper.make_node("Transpose", ["double"], ["turned"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["double", "turned"], ["d"], name="double"),
        helper.make_node("Conv", ["h", "kernel"], ["c"], name="conv"),
    ]
    weights = [tensor("table", 100, 16), tensor("W", 1, 24, 16), tensor("R", 1, 24, 8), tensor("w", 8, 4)]
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["time", "batch"])
    double = helper.make_tensor_value_info("d", TensorProto.DOUBLE, [1, 4, 4])
    model = build(nodes, [ids], [double, floats("c", 1, "o", "p")], [*weights, tensor("kernel", 3, 4, 1)])
    feeds = {"ids": np.random.default_rng(0).integers(0, 100, (6, 4))}
    quantized, coverage = quantize(model, feeds, "excluded")
    assert quantized.graph == model.graph
    reasons = {row.node: str(row.reason) for row in coverage.rows}
    assert {row.became for row in coverage.rows} == {"float32"}
    assert "lookup" in reasons["embedding"]
    assert reasons["clipped"] == "left whole: clip is set"
    assert reasons["excluded"] == "excluded by name"
    assert "'double' is not float32" in reasons["double"]
    assert "convolutions" in reasons["conv"]


def refusal(model: onnx.ModelProto, feeds: Feeds | None) -> str:
    with pytest.raises(QuantizationError) as caught:
        quantize(model, feeds)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_calibration_that_does_not_fit_is_refused_in_a_sentence() -> None:
    net = Net("GRU", initial=True)
    model, feeds = net.model(), net.feeds(5, 2)
    assert "--calibration FILE.npz" in refusal(model, None)
    assert "--calibration FILE.npz" in refusal(model, {})
    assert "lack 'h0_0'" in refusal(model, {"x": feeds["x"]})
    assert "is float64, the model takes float32" in refusal(model, feeds | {"x": feeds["x"].astype(np.float64)})
    assert "[5, 2, 3], the model takes [time, batch, 11]" in refusal(model, feeds | {"x": feeds["x"][..., :3]})
    assert "has shape [5, 11]" in refusal(model, feeds | {"x": feeds["x"][:, 0]})
    assert "has shape [0, 2, 11]" in refusal(model, feeds | {"x": feeds["x"][:0]})
    assert "failed on the calibration inputs" in refusal(model, feeds | {"h0_0": feeds["h0_0"][:, :1]})
    bad = feeds["x"].copy()
    bad[1, 1, 1] = np.nan
    assert "'x' holds NaN or Inf" in refusal(model, feeds | {"x": bad})


def test_values_that_become_unsound_are_refused() -> None:
    nodes = [helper.make_node("Log", ["x"], ["l"]), helper.make_node("MatMul", ["l", "w"], ["y"])]
    model = build(nodes, [floats("x", 4, 8)], [floats("y", 4, 2)], [tensor("w", 8, 2)])
    assert "value 'l' is NaN or Inf" in refusal(model, draw(4, 8))


def test_quantized_and_unsound_models_are_refused() -> None:
    net = Net("GRU")
    feeds = net.feeds(5, 2)
    assert "quantized already" in refusal(quantize(net.model(), feeds)[0], feeds)
    model = net.model()
    values = numpy_helper.to_array(model.graph.initializer[0]).copy()
    values.flat[0] = np.nan
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(values, "W0"))
    assert "'W0' holds NaN" in refusal(model, feeds)
    old = build([helper.make_node("Relu", ["x"], ["y"])], [floats("x", 2)], [floats("y", 2)], [], 13)
    assert "opset 13" in refusal(old, draw(2))


@pytest.mark.parametrize("factor", [0.0, 1e-38, 1e-20, 1e20])
def test_activations_of_any_size_get_a_positive_scale(factor: float) -> None:
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    model = build([node], [floats("x", 8, 24)], [floats("y", 8, 10)], [tensor("w", 24, 10)])
    feeds = {"x": draw(8, 24)["x"] * np.float32(factor)}
    expected, actual = run(model, feeds)["y"], run(quantize(model, feeds)[0], feeds)["y"]
    if factor < 1e-30:
        np.testing.assert_allclose(actual, expected, atol=1e-30)
    else:
        assert snr(expected, actual) > 30


@pytest.mark.parametrize("outliers", [0, 1, 100])
@pytest.mark.parametrize("spread", ["uniform", "standard_normal", "standard_t"])
def test_the_scale_costs_no_more_than_any_other(spread: str, outliers: int) -> None:
    """Against the error of really rounding, for scales on a grid of our own."""
    generator = np.random.default_rng(0)
    numbers = getattr(generator, spread)(*((3,) if spread == "standard_t" else ()), size=50_000).astype(np.float32)
    numbers[:outliers] = 6

    def error(scale: float) -> float:
        return float(((np.clip(np.rint(numbers / scale), -127, 127) * scale - numbers) ** 2).sum())

    histogram = Histogram()
    for part in np.array_split(numbers, 7):
        histogram.add(part)
    largest = float(np.abs(numbers).max())
    best = min(error(largest / 127 * share) for share in np.linspace(0.03, 1, 150))
    assert error(histogram.scale()) < 1.03 * best
    assert histogram.scale() <= largest / 127


def test_zeros_have_no_say_and_alone_the_scale_one() -> None:
    histogram = Histogram()
    histogram.add(np.zeros(10**6, np.float32))
    assert histogram.scale() == 1
    histogram.add(np.array([-2.0], np.float32))
    assert histogram.scale() == 2 / 127


def test_pieces_of_long_data_give_the_scale_of_the_whole() -> None:
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    model = build([node], [floats("x", "batch", "time", 4)], [floats("y", "batch", "time", 2)], [tensor("w", 4, 2)])
    long = draw(40, 600, 4)
    plain, _ = quantize(model, long)
    long["x"][37, 300:] = 100 * np.sign(long["x"][37, 300:])
    loud, _ = quantize(model, long)

    def scale(quantized: onnx.ModelProto) -> float:
        name = next(one.input[1] for one in quantized.graph.node if one.op_type == "QuantizeLinear")
        return float(next(numpy_helper.to_array(one) for one in quantized.graph.initializer if one.name == name))

    assert 3 / 127 < scale(plain) < 6 / 127
    assert scale(loud) > 90 / 127


def test_the_same_data_is_run_once_and_other_data_again(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[int] = []

    def counted(*arguments: Any) -> dict[str, float]:
        runs.append(1)
        return scales(*arguments)

    monkeypatch.setattr(static, "scales", counted)
    net = Net("GRU", layers=2)
    model, feeds = net.model(seed=77), net.feeds(9, 2)
    for exclude in ((), ("gru_0",), ("gru_1",)):
        quantize(model, feeds, *exclude)
    assert len(runs) == 1
    feeds["x"] *= 2  # in place: the same array, other numbers
    quantize(model, feeds)
    assert len(runs) == 2
    quantize(net.model(seed=78), feeds)
    assert len(runs) == 3


def test_a_float_recurrence_is_by_design(tmp_path: Path) -> None:
    net = Net("GRU")
    onnx.save(net.model(), tmp_path / "net.onnx")
    np.savez(tmp_path / "real.npz", allow_pickle=False, **net.feeds(100, 4))
    source = artifact.read(tmp_path / "net.onnx")
    made = quantize_artifact(source, tmp_path / "qdq.onnx", method="static", calibration=tmp_path / "real.npz")
    assert made.format == registry.scheme("static").produces == "onnx-qdq"
    assert made.coverage is not None
    assert [row.became for row in made.coverage.rows] == ["int8", "float32"]
    with pytest.raises(QuantizationError, match="--calibration"):
        quantize_artifact(source, tmp_path / "other.onnx", method="static")
