"""MatMul, Gemm and embeddings in dynamic int8, and what is left in float and why."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.quantize.graphs import all_initializers, all_ops, build, floats, quantize, run, session, snr, tensor

RNG = np.random.default_rng(5)


def draw(*shape: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return RNG.standard_normal(shape).astype(np.float32)


def int64s(name: str, *values: int) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(values, np.int64), name)


def matmul(*shape: int | str, inner: int = 24, outer: int = 10) -> onnx.ModelProto:
    return build(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="head")],
        [floats("x", *shape, inner)],
        [floats("y", *shape, outer)],
        [tensor("w", inner, outer)],
    )


@pytest.mark.parametrize("shape", [(), (5,), (3, 4), (2, 3, 4)])
def test_matmul_of_any_rank(shape: tuple[int, ...]) -> None:
    model = matmul(*shape)
    quantized, coverage = quantize(model)
    x = {"x": draw(*shape, 24)}
    assert snr(run(model, x)["y"], run(quantized, x)["y"]) > 34
    assert coverage.rows[0].became == "int8"
    assert (coverage.rows[0].macs, coverage.rows[0].weight_bytes) == (240, 960)
    assert "MatMul" not in all_ops(quantized.graph)


@pytest.mark.parametrize("turned", [0, 1])
def test_a_single_output_stays(turned: int) -> None:
    assert "one output" in str(quantize(matmul(4, outer=1))[1].rows[0].reason)
    node = helper.make_node("Gemm", ["x", "w"], ["y"], transB=turned)
    weights = [tensor("w", 1, 24) if turned else tensor("w", 24, 1)]
    quantized, coverage = quantize(build([node], [floats("x", 4, 24)], [floats("y", 4, 1)], weights))
    assert all_ops(quantized.graph) == ["Gemm"]
    assert "one output" in str(coverage.rows[0].reason)


def test_matmul_rows_do_not_touch() -> None:
    opened = session(quantize(matmul("batch", "time", inner=100, outer=33))[0])
    x = draw(3, 7, 100)
    quiet = run(opened, {"x": x[:1, :4]})["y"]
    x[1:] *= 1000
    x[2, 3, 90] = math.nan
    x[1, 6, 90] = math.inf
    loud = run(opened, {"x": x})["y"]
    np.testing.assert_array_equal(loud[:1, :4], quiet)
    assert np.isnan(loud[2, 3]).all()
    assert np.isnan(loud[1, 6]).all()
    assert np.isnan(loud).sum() == 2 * 33


@pytest.mark.parametrize("alpha", [1.0, 0.5])
@pytest.mark.parametrize(
    ("bias", "beta"), [("none", 1.0), ("row", 1.0), ("row", 0.3), ("matrix", -2.0), ("scalar", 2.0)]
)
@pytest.mark.parametrize("turned", [0, 1])
def test_gemm(turned: int, bias: str, beta: float, alpha: float) -> None:
    shapes = {"row": (10,), "matrix": (4, 10), "scalar": ()}
    weights = [tensor("w", *((10, 24) if turned else (24, 10)))]
    if bias in shapes:
        weights.append(tensor("b", *shapes[bias]))
    names = [one.name for one in weights]
    node = helper.make_node("Gemm", ["x", *names], ["y"], transB=turned, alpha=alpha, beta=beta, name="head")
    model = build([node], [floats("x", 4, 24)], [floats("y", 4, 10)], weights)
    quantized, coverage = quantize(model)
    x = {"x": draw(4, 24)}
    assert snr(run(model, x)["y"], run(quantized, x)["y"]) > 34
    assert coverage.rows[0].became == "int8"


@pytest.mark.parametrize("beta", [1.0, 0.5])
def test_gemm_with_a_bias_that_is_an_input(beta: float) -> None:
    node = helper.make_node("Gemm", ["x", "w", "b"], ["y"], beta=beta)
    model = build([node], [floats("x", 4, 24), floats("b", 10)], [floats("y", 4, 10)], [tensor("w", 24, 10)])
    feeds = {"x": draw(4, 24), "b": draw(10)}
    assert snr(run(model, feeds)["y"], run(quantize(model)[0], feeds)["y"]) > 34


def test_one_activation_is_quantized_once() -> None:
    nodes = [helper.make_node("MatMul", ["x", f"w{number}"], [f"y{number}"]) for number in range(3)]
    outputs = [floats(f"y{number}", 4, 10) for number in range(3)]
    weights = [tensor(f"w{number}", 24, 10, seed=number) for number in range(3)]
    model = build(nodes, [floats("x", 4, 24)], outputs, weights)
    quantized, _ = quantize(model)
    assert all_ops(quantized.graph).count("QuantizeLinear") == 1
    x = {"x": draw(4, 24)}
    assert all(snr(run(model, x)[name], run(quantized, x)[name]) > 34 for name in ("y0", "y1", "y2"))


def embedding(entries: int = 200, width: int = 16) -> onnx.ModelProto:
    node = helper.make_node("Gather", ["table", "ids"], ["y"], name="embedding")
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "time"])
    return build([node], [ids], [floats("y", "batch", "time", width)], [tensor("table", entries, width)])


def test_an_embedding_is_stored_in_int8() -> None:
    model = embedding()
    quantized, coverage = quantize(model)
    ids = {"ids": RNG.integers(-200, 200, (3, 5))}
    assert snr(run(model, ids)["y"], run(quantized, ids)["y"]) > 38
    row = coverage.rows[0]
    assert (row.became, row.macs, row.weight_bytes) == ("int8-storage", 0, 200 * 16 * 4)
    assert coverage.weight_share == 1
    assert sorted(one.data_type for one in all_initializers(quantized.graph)) == [TensorProto.FLOAT, TensorProto.INT8]


def test_a_small_table_stays() -> None:
    quantized, coverage = quantize(embedding(20, 8))
    assert all_ops(quantized.graph) == ["Gather"]
    assert coverage.rows[0].became == "float32"
    assert "fewer than 1024" in str(coverage.rows[0].reason)
    assert [entry.domain for entry in quantized.opset_import] == [""]


def test_a_tied_table_is_right_in_both_places() -> None:
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["e"], name="embedding"),
        helper.make_node("Transpose", ["table"], ["turned"], perm=[1, 0]),
        helper.make_node("MatMul", ["e", "turned"], ["logits"], name="head"),
        helper.make_node("ReduceMean", ["table"], ["mean"], axes=[0], keepdims=0),
    ]
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["time"])
    outputs = [floats("logits", "time", 200), floats("mean", 16)]
    model = build(nodes, [ids], outputs, [tensor("table", 200, 16)])
    quantized, coverage = quantize(model)
    feeds = {"ids": np.arange(0, 200, 7)}
    expected, actual = run(model, feeds), run(quantized, feeds)
    assert snr(expected["logits"], actual["logits"]) > 33
    np.testing.assert_array_equal(actual["mean"], expected["mean"])
    assert [row.became for row in coverage.rows] == ["int8-storage", "int8", "float32"]
    assert (coverage.rows[2].kind, coverage.rows[2].weight_bytes) == ("ReduceMean", 200 * 16 * 4)
    assert "Transpose" not in all_ops(quantized.graph)


def test_small_products_and_convolutions_stay_and_say_why() -> None:
    nodes = [
        helper.make_node("MatMul", ["q", "k"], ["scores"], name="scores"),
        helper.make_node("MatMul", ["left", "scores"], ["mixed"], name="mix"),
        helper.make_node("Conv", ["mixed", "kernel"], ["y"], name="conv"),
        helper.make_node("Gemm", ["p", "g"], ["z"], transA=1, name="turned"),
        helper.make_node("MatMul", ["q", "stack"], ["s"], name="stacked"),
    ]
    inputs = [floats("q", 2, "t", 8), floats("k", 2, 8, 12), floats("p", 8, 4)]
    outputs = [floats("y", 2, 5, 12), floats("z", 4, 3), floats("s", 2, "t", 3)]
    weights = [tensor("left", 4, 6), tensor("kernel", 5, 4, 1), tensor("g", 8, 3), tensor("stack", 2, 8, 3)]
    model = build(nodes, inputs, outputs, weights)
    quantized, coverage = quantize(model)
    assert quantized.graph == model.graph
    rows = {row.node: row for row in coverage.rows}
    assert {row.became for row in rows.values()} == {"float32"}
    assert "two activations" in str(rows["scores"].reason)
    assert (rows["scores"].macs, rows["scores"].weight_bytes) == (96, 0)
    assert "left" in str(rows["mix"].reason)
    assert rows["mix"].weight_bytes == 96
    assert "couple time steps" in str(rows["conv"].reason)
    assert (rows["conv"].macs, rows["conv"].weight_bytes) == (20, 80)
    assert "transposed" in str(rows["turned"].reason)
    assert "3 dimensions" in str(rows["stacked"].reason)
    assert coverage.weight_share == 0


@pytest.mark.parametrize("condition", [True, False])
def test_nodes_inside_a_branch_are_quantized(condition: bool) -> None:
    def branch(name: str) -> onnx.GraphProto:
        node = helper.make_node("MatMul", ["x", "w"], [f"{name}_y"], name=f"{name}_head")
        return helper.make_graph([node], name, [], [floats(f"{name}_y", 4, 10)])

    choice = helper.make_node("If", ["c"], ["y"], name="choice", then_branch=branch("a"), else_branch=branch("b"))
    chosen = helper.make_tensor_value_info("c", TensorProto.BOOL, [])
    outside = helper.make_node("MatMul", ["x", "w"], ["z"], name="outside")
    model = build(
        [choice, outside],
        [chosen, floats("x", 4, 24)],
        [floats("y", 4, 10), floats("z", 4, 10)],
        [tensor("w", 24, 10)],
    )
    quantized, coverage = quantize(model)
    assert {row.node: row.became for row in coverage.rows} == dict.fromkeys(("a_head", "b_head", "outside"), "int8")
    assert coverage.rows[0].weight_bytes == 960
    feeds = {"c": np.array(condition), "x": draw(4, 24)}
    expected, actual = run(model, feeds), run(quantized, feeds)
    for name in "yz":
        assert snr(expected[name], actual[name]) > 33
    assert all(one.data_type != TensorProto.FLOAT or len(one.dims) < 2 for one in all_initializers(quantized.graph))


def test_weights_behind_a_chain_of_constants() -> None:
    constant = helper.make_node("Constant", [], ["half"], value=tensor("", 12, 10))
    nodes = [
        constant,
        helper.make_node("Concat", ["half", "other"], ["whole"], axis=0),
        helper.make_node("Cast", ["whole"], ["cast"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["cast"], ["turned"], perm=[1, 0]),
        helper.make_node("Slice", ["turned", "zero", "ten", "zero"], ["cut"]),
        helper.make_node("Unsqueeze", ["cut", "zero"], ["higher"]),
        helper.make_node("Reshape", ["higher", "shape"], ["flat"]),
        helper.make_node("Transpose", ["flat"], ["back"], perm=[1, 0]),
        helper.make_node("Split", ["back"], ["left", "right"], axis=1),
        helper.make_node("MatMul", ["x", "right"], ["y"], name="head"),
    ]
    weights = [tensor("other", 12, 10, seed=1), int64s("zero", 0), int64s("ten", 10), int64s("shape", 10, 24)]
    model = build(nodes, [floats("x", 4, 24)], [floats("y", 4, 5)], weights)
    quantized, coverage = quantize(model)
    assert coverage.rows[0].became == "int8"
    assert not {"Concat", "Split", "Transpose", "Constant"} & set(all_ops(quantized.graph))
    x = {"x": draw(4, 24)}
    assert snr(run(model, x)["y"], run(quantized, x)["y"]) > 34


def test_weights_that_a_caller_may_replace_stay() -> None:
    model = matmul(4)
    model.graph.input.append(floats("w", 24, 10))
    quantized, coverage = quantize(model)
    assert quantized.graph == model.graph
    assert coverage.rows[0].became == "float32"


def test_excluded_nodes_stay() -> None:
    quantized, coverage = quantize(matmul(4), "head")
    assert all_ops(quantized.graph) == ["MatMul"]
    assert coverage.rows[0].reason == "excluded by name"


def test_double_precision_stays() -> None:
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    x, y = (helper.make_tensor_value_info(name, TensorProto.DOUBLE, [4, 4]) for name in "xy")
    weights = [numpy_helper.from_array(np.eye(4), "w")]
    quantized, coverage = quantize(build([node], [x], [y], weights))
    assert all_ops(quantized.graph) == ["MatMul"]
    assert "float64, not float32" in str(coverage.rows[0].reason)
    assert coverage.rows[0].node == "y"
