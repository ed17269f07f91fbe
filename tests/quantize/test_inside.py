"""Nodes in the bodies of loops and the branches of conditions: quantized where they are, weights stored outside."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from deploykit import registry
from deploykit.quantize import Preference, QuantizeOptions
from tests.quantize.graphs import (
    Array,
    Form,
    all_initializers,
    both_forms,
    build,
    floats,
    quantize,
    run,
    session,
    snr,
    tensor,
)

WIDTH = 48


def step(place: str = "") -> onnx.GraphProto:
    """One step of a decoder: a GRU of one time step whose state is the loop's, and a head on it."""
    nodes = [
        helper.make_node("Unsqueeze", ["x", "first"], ["x_step"]),
        helper.make_node("Unsqueeze", ["h", "first"], ["h_step"]),
        helper.make_node(
            "GRU", ["x_step", "W", "R", "B", "", "h_step"], ["", "h_last"], name="cell", hidden_size=WIDTH
        ),
        helper.make_node("Squeeze", ["h_last", "first"], ["h_new"]),
        helper.make_node("Gemm", ["h_new", "G", "g"], ["y"], name=f"{place}head", transB=1),
    ]
    return helper.make_graph(
        nodes,
        "step",
        [floats("h", "batch", WIDTH), floats("x", "batch", WIDTH)],
        [floats("h_new", "batch", WIDTH), floats("y", "batch", WIDTH)],
        [tensor("G", WIDTH, WIDTH, seed=5)],
    )


def decoder() -> onnx.ModelProto:
    """A Scan over ``x`` ``[time, batch, width]`` whose body reads weights from outside and from inside."""
    scan = helper.make_node("Scan", ["h0", "x"], ["h_n", "y"], name="loop", body=step(), num_scan_inputs=1)
    return build(
        [scan],
        [floats("h0", "batch", WIDTH), floats("x", "time", "batch", WIDTH)],
        [floats("h_n", "batch", WIDTH), floats("y", "time", "batch", WIDTH)],
        [
            tensor("W", 1, 3 * WIDTH, WIDTH, seed=1),
            tensor("R", 1, 3 * WIDTH, WIDTH, seed=2),
            tensor("B", 1, 6 * WIDTH, seed=3),
            tensor("g", WIDTH, seed=4),
            numpy_helper.from_array(np.array([0], np.int64), "first"),
        ],
    )


def bare() -> onnx.ModelProto:
    """A Scan whose body gives out what its GRU makes, and says of no output which shape it has, as exporters do."""
    body = step()
    body.node[2].input[5], body.node[2].output[1] = "h", "h_new"
    body.node[3].input[0], body.node[3].output[0] = "h_new", "flat"
    body.node[4].input[0] = "flat"
    del body.node[1]
    body.input[0].CopyFrom(floats("h", 1, "batch", WIDTH))
    for output in body.output:
        output.type.tensor_type.ClearField("shape")
    model = decoder()
    next(one for one in model.graph.node[0].attribute if one.name == "body").g.CopyFrom(body)
    model.graph.input[0].CopyFrom(floats("h0", 1, "batch", WIDTH))
    model.graph.output[0].CopyFrom(floats("h_n", 1, "batch", WIDTH))
    return model


def feeds(time: int, batch: int) -> dict[str, Array]:
    rng = np.random.default_rng(3)
    shapes = {"h0": (batch, WIDTH), "x": (time, batch, WIDTH)}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


@both_forms
@pytest.mark.parametrize("method", ["dynamic", "dynamic-8bit"])
def test_a_step_in_int8(method: str, kernels: Form) -> None:
    model = decoder()
    result, coverage = quantize(model, scheme=registry.scheme(method), kernels=kernels)
    assert {row.node: row.became for row in coverage.rows} == {"cell": "int8", "head": "int8"}
    assert not [
        one
        for one in all_initializers(result.graph)
        if one.data_type == TensorProto.FLOAT and sum(d > 1 for d in one.dims) > 1
    ]
    given = feeds(15, 3)
    expected, actual = run(model, given), run(result, given)
    for name, value in expected.items():
        assert snr(value, actual[name]) > 28


@both_forms
def test_an_operator_whose_result_is_the_bodys_own_output(kernels: Form) -> None:
    model = bare()
    given = feeds(15, 3)
    given["h0"] = given["h0"][None]
    expected, actual = run(model, given), run(quantize(model, kernels=kernels)[0], given)
    for name, value in expected.items():
        assert snr(value, actual[name]) > 28


@both_forms
def test_rows_and_steps_do_not_touch(kernels: Form) -> None:
    opened = session(quantize(decoder(), kernels=kernels)[0])
    given = feeds(12, 4)
    whole = run(opened, given)
    loud = {name: value.copy() for name, value in given.items()}
    loud["x"][:, 1:] *= 50
    loud["h0"][1:] = np.nan
    np.testing.assert_array_equal(run(opened, loud)["y"][:, 0], whole["y"][:, 0])
    loud = {**given, "x": np.concatenate([given["x"][:7], given["x"][7:] * 50])}
    np.testing.assert_array_equal(run(opened, loud)["y"][:7], whole["y"][:7])


@pytest.mark.parametrize(("method", "prefer"), [("weight-only", "speed"), ("dynamic", "speed")])
def test_stored_weights_are_made_float_outside_the_loop(method: str, prefer: Preference) -> None:
    model = decoder()
    result, coverage = quantize(model, scheme=registry.scheme(method), prefer=prefer)
    assert {row.became for row in coverage.rows} == {"int8-storage"}
    (loop,) = [node for node in result.graph.node if node.op_type == "Scan"]
    (body,) = [one.g for one in loop.attribute if one.name == "body"]
    assert not {"Cast", "Mul", "DequantizeLinear"} & {node.op_type for node in body.node}
    assert [node.op_type for node in result.graph.node].count("Cast") == 3
    given = feeds(15, 2)
    assert snr(run(model, given)["y"], run(result, given)["y"]) > 40


@both_forms
def test_a_node_inside_is_excluded_by_its_name(kernels: Form) -> None:
    _, coverage = quantize(decoder(), "head", kernels=kernels)
    assert {row.node: row.became for row in coverage.rows} == {"cell": "int8", "head": "float32"}


def test_static_leaves_them_and_says_where_they_lie() -> None:
    options = QuantizeOptions(calibration=feeds(12, 4))
    _, coverage = registry.scheme("static").apply(decoder(), options)
    assert {row.node: row.became for row in coverage.rows} == {"cell": "float32", "head": "float32"}
    assert {row.reason for row in coverage.rows} == {"it lies inside Scan 'loop'"}


def test_a_loop_in_a_branch_in_a_loop() -> None:
    """Graphs three deep: a Loop whose body holds an If, whose branch holds a Scan."""
    inner = helper.make_node(
        "Scan", ["state", "x"], ["unused", "scanned"], name="loop", body=step("deep_"), num_scan_inputs=1
    )
    last = helper.make_node("ReduceSum", ["scanned", "first"], ["new"], keepdims=0)
    then = helper.make_graph([inner, last], "then", [], [floats("new", "batch", WIDTH)])
    product = helper.make_node("MatMul", ["state", "M"], ["other"], name="product")
    other = helper.make_graph([product], "otherwise", [], [floats("other", "batch", WIDTH)])
    choose = helper.make_node("If", ["odd"], ["state_new"], name="choice", then_branch=then, else_branch=other)
    turn = helper.make_node("Not", ["odd"], ["odd_new"])
    turns = helper.make_graph(
        [choose, turn, helper.make_node("Identity", ["go"], ["go_new"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("odd", TensorProto.BOOL, []),
            floats("state", "batch", WIDTH),
        ],
        [
            helper.make_tensor_value_info("go_new", TensorProto.BOOL, []),
            helper.make_tensor_value_info("odd_new", TensorProto.BOOL, []),
            floats("state_new", "batch", WIDTH),
        ],
    )
    outer = helper.make_node("Loop", ["turns", "", "start", "h0"], ["last", "y"], name="outer", body=turns)
    source = decoder().graph.initializer
    weights = [*source, tensor("M", WIDTH, WIDTH, seed=9)]
    weights += [
        numpy_helper.from_array(np.array(2, np.int64), "turns"),
        numpy_helper.from_array(np.array(True), "start"),
    ]
    ends = [floats("h0", "batch", WIDTH), floats("x", "time", "batch", WIDTH)], [floats("y", "batch", WIDTH)]
    model = build([outer], *ends, weights)
    given = feeds(6, 2)
    for prefer, became in (("int8", "int8"), ("speed", "int8-storage")):
        result, coverage = quantize(model, prefer=prefer)  # type: ignore[arg-type]
        assert {row.node: row.became for row in coverage.rows} == dict.fromkeys(
            ("cell", "deep_head", "product"), became
        )
        assert snr(run(model, given)["y"], run(result, given)["y"]) > 28
