"""Constant values and bounds, and the clearing away of what nobody reads."""

from __future__ import annotations

import math

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from deploykit.quantize._constants import Constants
from deploykit.quantize._graph import Builder, Names, prune
from tests.quantize.graphs import build, floats, tensor


def test_a_value_is_folded_only_where_no_input_reaches_it() -> None:
    nodes = [
        helper.make_node("Transpose", ["w"], ["turned"]),
        helper.make_node("Add", ["turned", "turned"], ["doubled"]),
        helper.make_node("Add", ["turned", "x"], ["moved"]),
        helper.make_node("RandomNormal", [], ["drawn"], shape=[2, 3]),
        helper.make_node("Add", ["drawn", "w"], ["y"]),
    ]
    model = build(nodes, [floats("x", 3, 2)], [floats("moved", 3, 2), floats("y", 2, 3)], [tensor("w", 2, 3)])
    constants = Constants(model.graph, 17)
    w = numpy_helper.to_array(model.graph.initializer[0])
    np.testing.assert_array_equal(constants.value("doubled"), 2 * w.T)
    assert [constants.value(name) for name in ("x", "moved", "drawn", "y", "nowhere")] == [None] * 5
    assert constants.sources("doubled") == ("w",)


def test_a_very_long_chain_that_is_not_constant_is_no_trouble() -> None:
    nodes = [helper.make_node("Neg", [f"x{step}"], [f"x{step + 1}"]) for step in range(3000)]
    model = build(nodes, [floats("x0", 2)], [floats("x3000", 2)], [])
    assert Constants(model.graph, 17).value("x3000") is None


@pytest.mark.parametrize(
    ("node", "bound"),
    [
        (helper.make_node("ConstantOfShape", ["n"], ["v"]), 0.0),
        (
            helper.make_node(
                "ConstantOfShape", ["n"], ["v"], value=numpy_helper.from_array(np.array([-3], np.float32))
            ),
            3.0,
        ),
        (helper.make_node("Expand", ["w", "n"], ["v"]), 4.0),
        (helper.make_node("Concat", ["w", "w"], ["v"], axis=0), 4.0),
        (helper.make_node("Tanh", ["x"], ["v"]), 1.0),
        (helper.make_node("Relu", ["x"], ["v"]), math.inf),
        (helper.make_node("Expand", ["x", "n"], ["v"]), math.inf),
    ],
    ids=lambda value: str(getattr(value, "op_type", value)),
)
def test_bounds(node: onnx.NodeProto, bound: float) -> None:
    inputs = [floats("x", 2), helper.make_tensor_value_info("n", TensorProto.INT64, [1])]
    weights = [numpy_helper.from_array(np.array([1, -4], np.float32), "w")]
    model = build([node], inputs, [floats("v", "any")], weights)
    assert Constants(model.graph, 17).bound("v") == bound


def test_prune_keeps_what_an_inner_graph_reads() -> None:
    inner = helper.make_graph([helper.make_node("Add", ["x", "read"], ["z"])], "inner", [], [floats("z", 2)])
    other = helper.make_graph([helper.make_node("Neg", ["x"], ["n"])], "other", [], [floats("n", 2)])
    nodes = [
        helper.make_node("Neg", ["inner_only"], ["read"]),
        helper.make_node("Neg", ["dead_only"], ["dead"]),
        helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=other),
        helper.make_node("If", ["c"], ["dead_y"], then_branch=inner, else_branch=other),
    ]
    condition = helper.make_tensor_value_info("c", TensorProto.BOOL, [])
    weights = [tensor("inner_only", 2), tensor("dead_only", 2), tensor("unused", 2)]
    model = build(nodes, [condition, floats("x", 2)], [floats("y", 2)], weights)
    prune(model.graph)
    assert [node.op_type for node in model.graph.node] == ["Neg", "If"]
    assert [one.name for one in model.graph.initializer] == ["inner_only"]


def test_new_names_avoid_those_of_inner_graphs_and_constants_are_stored_once() -> None:
    inner = helper.make_graph([helper.make_node("Neg", ["x"], ["n/a"])], "inner", [], [floats("n/a", 2)])
    graph = helper.make_graph([helper.make_node("If", ["c"], ["y"], then_branch=inner)], "g", [], [floats("y", 2)])
    maker = Builder(Names(graph), "n", 17)
    assert [maker.fresh("a"), maker.fresh("a"), maker.fresh("b")] == ["n/a_1", "n/a_2", "n/b"]
    assert maker.ints(1, 2) == maker.ints(1, 2) != maker.ints(1)
    assert maker.scalar(1.0) != maker.constant(np.ones(1, np.float32), "one")
    assert len(maker.initializers) == 4
