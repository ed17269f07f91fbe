"""Graphs in float16: valid, the same interface, and close to float32 for every recurrent operator."""

from __future__ import annotations

import logging
import sys
import warnings
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper, parser
from torch import nn

from deploykit.errors import ExportError
from deploykit.export._half import Form, to_half

HEADER = '<ir_version: 10, opset_import: ["" : 20]>'
GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
GENERATOR = np.random.default_rng(0)


def parse(text: str) -> onnx.ModelProto:
    model = parser.parse_model(HEADER + text)
    onnx.checker.check_model(model, full_check=True)
    return model


def answers(model: onnx.ModelProto, feeds: dict[str, Any]) -> dict[str, Any]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    given = {
        value.name: feeds[value.name].astype(np.float16) if value.type == "tensor(float16)" else feeds[value.name]
        for value in session.get_inputs()
    }
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(None, given), strict=True))


def shape(value: onnx.ValueInfoProto) -> list[str | int]:
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


def check(model: onnx.ModelProto, feeds: dict[str, Any], keep_io: bool = True, atol: float = 2e-3) -> onnx.ModelProto:
    """The model in float16, which is valid, has the interface that it should have, and answers about the same."""
    before = model.SerializeToString(deterministic=True)
    half = to_half(model, keep_io)
    assert model.SerializeToString(deterministic=True) == before
    onnx.checker.check_model(half, full_check=True)
    onnx.shape_inference.infer_shapes(half, check_type=True, strict_mode=True)
    for old, new in zip(
        (*model.graph.input, *model.graph.output), (*half.graph.input, *half.graph.output), strict=True
    ):
        assert (new.name, shape(new)) == (old.name, shape(old))
        kind, was = new.type.tensor_type.elem_type, old.type.tensor_type.elem_type
        assert kind == (TensorProto.FLOAT16 if was == TensorProto.FLOAT and not keep_io else was)
    names = [node.name for node in half.graph.node]
    assert len(set(names)) == len(names) or not any(node.name for node in model.graph.node)
    expected, found = answers(model, feeds), answers(half, feeds)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name].astype(value.dtype), value, atol=atol, rtol=1e-2)
    return half


def stored(graph: onnx.GraphProto) -> dict[str, int]:
    return {tensor.name: tensor.data_type for tensor in graph.initializer}


def recurrent(kind: str, direction: str, lengths: bool, scale: float = 1.0) -> onnx.ModelProto:
    """One layer of 5 inputs and 6 units, with an initial state and, where asked for, lengths."""
    both, gates = 2 if direction == "bidirectional" else 1, GATES[kind]
    weights = {"W": (both, gates * 6, 5), "R": (both, gates * 6, 6), "B": (both, gates * 12)}
    initializers = [
        numpy_helper.from_array((GENERATOR.uniform(-1, 1, dims) * scale).astype(np.float32), f"rnn.{name}")
        for name, dims in weights.items()
    ]
    states = ["h0", "c0"] if kind == "LSTM" else ["h0"]
    last = ["h", "c"] if kind == "LSTM" else ["h"]
    node = helper.make_node(
        kind,
        ["x", *(f"rnn.{name}" for name in weights), "lengths" if lengths else "", *states],
        ["y", *last],
        name=f"rnn/{kind}",
        hidden_size=6,
        direction=direction,
    )
    state: list[str | int] = [both, "batch", 6]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["time", "batch", 5])]
    inputs += [helper.make_tensor_value_info("lengths", TensorProto.INT32, ["batch"])] if lengths else []
    inputs += [helper.make_tensor_value_info(name, TensorProto.FLOAT, state) for name in states]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["time", both, "batch", 6])]
    outputs += [helper.make_tensor_value_info(name, TensorProto.FLOAT, state) for name in last]
    graph = helper.make_graph([node], "g", inputs, outputs, initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.mark.parametrize("keep_io", [True, False])
@pytest.mark.parametrize("lengths", [False, True], ids=["whole", "lengths"])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("kind", list(GATES))
def test_every_recurrent_operator(kind: str, direction: str, lengths: bool, keep_io: bool) -> None:
    both = 2 if direction == "bidirectional" else 1
    feeds = {"x": GENERATOR.standard_normal((7, 3, 5)).astype(np.float32), "lengths": np.array([7, 2, 4], np.int32)}
    feeds |= {name: GENERATOR.uniform(-1, 1, (both, 3, 6)).astype(np.float32) for name in ("h0", "c0")}
    half = check(recurrent(kind, direction, lengths), feeds, keep_io, atol=5e-3)
    assert set(stored(half.graph).values()) == {TensorProto.FLOAT16}
    (node,) = (node for node in half.graph.node if node.op_type == kind)
    assert node.name == f"rnn/{kind}"
    assert node.input[4] == ("lengths" if lengths else "")
    assert sum(node.op_type == "Cast" for node in half.graph.node) == (0 if not keep_io else 6 if kind == "LSTM" else 4)


SCAN = """g (float[time, 4] x, float[4] s) => (float[4] last, float[time, 4] y)
<float[4, 4] weight = {1, 0, 0.5, 0, 0, 1, 0, 0.25, 0.1, 0, 1, 0, 0, 0.2, 0, 1}, float[4] bias = {0.1, 0.2, 0.3, 0.4},
 float start = {0}, float delta = {0.5}> {
  doubled = Add(x, x)
  shift = ReduceMean<keepdims = 0>(doubled)
  last, y = Scan<num_scan_inputs = 1, body = step (float[4] state, float[4] one) => (float[4] next, float[4] out)
  <float limit = {2}> {
    moved = MatMul(state, weight)
    biased = Add(moved, bias)
    sum = Add(biased, one)
    steps = Range(start, limit, delta)
    along = Add(sum, steps)
    scaled = Mul(along, shift)
    next = Tanh(scaled)
    axis = Constant<value_int = 0>()
    summed = CumSum(next, axis)
    half = Constant<value_float = 0.5>()
    out = Mul(summed, half)
  }>(s, doubled)
}"""


@pytest.mark.parametrize("keep_io", [True, False])
def test_bodies_of_scans_capture_half_weights(keep_io: bool) -> None:
    feeds = {"x": GENERATOR.standard_normal((6, 4)).astype(np.float32), "s": np.ones(4, np.float32)}
    half = check(parse(SCAN), feeds, keep_io)
    # What only Range reads is exact as it is.
    kinds = stored(half.graph)
    assert {name for name, kind in kinds.items() if kind == TensorProto.FLOAT} == {"start", "delta"}


def test_branches_and_loops_are_converted() -> None:
    text = """g (float[N] x, bool c, int64 n) => (float[N] y, float[N] z, float[m, 1] all) {
      k = Constant<value = float {2.5}>()
      y = If(c) <then_branch = t () => (float[N] a) { a = Mul(x, k) },
                 else_branch = e () => (float[N] b) { l = Constant<value_floats = [1.5]>() b = Add(x, l) }>
      yes = Constant<value = bool {1}>()
      z, all = Loop(n, yes, x) <body = b (int64 i, bool go, float[N] v) => (bool on, float[N] w, float[1] o) {
        on = Identity(go)
        f = Cast<to = 1>(i)
        g = Mul(v, k)
        w = Sub(g, f)
        zero = Constant<value_ints = [0]>()
        o = Unsqueeze(f, zero)
      }>
    }"""
    for c in (True, False):
        feeds = {"x": np.array([0.5, -1, 2], np.float32), "c": np.array(c), "n": np.array(3)}
        check(parse(text), feeds, atol=1e-2)


def test_a_name_that_an_inner_graph_uses_again_is_another_value() -> None:
    text = """g (float[N] x, bool c) => (float[N] y) {
      y = If(c) <then_branch = t () => (float[N] a) { a = Neg(x) },
                 else_branch = e () => (float[M] a) { r = Shape(x) a = Cast<to = 1>(r) }> }"""
    check(parse(text), {"x": np.ones(1, np.float32), "c": np.array(False)})


def test_indices_and_other_dtypes_are_left_alone() -> None:
    text = """g (int64[batch, time] ids, double[3] d)
      => (float[batch, time, 2] y, double[3] e, float[batch, k] top, int64[batch, k] at)
    <float[3, 2] table = {1, 2, 3, 4, 5, 6}, int64[1] k = {1}, int64[1] last = {-1}> {
      y = Gather(table, ids)
      e = Neg(d)
      m = ReduceMean<keepdims = 0>(y, last)
      top, at = TopK(m, k)
    }"""
    half = check(parse(text), {"ids": np.array([[0, 2], [1, 1]]), "d": np.arange(3.0)})
    assert stored(half.graph) == {"table": TensorProto.FLOAT16, "k": TensorProto.INT64, "last": TensorProto.INT64}
    (gather,) = (node for node in half.graph.node if node.op_type == "Gather")
    assert list(gather.input) == ["table", "ids"]


@pytest.mark.parametrize(
    "line",
    [
        'y = Resize<mode = "linear">(x, , scales)',
        "y, mean, deviation = LayerNormalization(x, ones, ones)  y2 = Add(y, mean)",
        "shape = Shape(x)  zeros = ConstantOfShape(shape)  y = Add(x, zeros)",
        "shape = Shape(x)  filled = ConstantOfShape<value = float[1] {1.5}>(shape)  y = Add(x, filled)",
        "q, s, z = DynamicQuantizeLinear(x)  y = DequantizeLinear(q, s, z)",
        "y = CastLike(sixes, x)",
        "two = SequenceConstruct(x, x)  y = ConcatFromSequence<axis = 0>(two)",
        "y = Identity(constant)",
        "y = Softmax(x)",
        "y = Where(mask, x, never)",
    ],
)
@pytest.mark.parametrize("keep_io", [True, False])
def test_operators_with_rules_of_their_own(line: str, keep_io: bool) -> None:
    text = f"""g (float[2, 3, 4] x) => (float[a, b, c] y)
    <float[3] scales = {{1, 1, 2}}, float[4] ones = {{1, 1, 1, 1}}, int32[2, 1, 1] sixes = {{6, 6}},
     float[1, 1, 1] constant = {{0.25}}, bool[4] mask = {{1, 1, 0, 1}}, float never = {{-65504}}> {{ {line} }}"""
    feeds = {"x": GENERATOR.standard_normal((2, 3, 4)).astype(np.float32)}
    half = check(parse(text), feeds, keep_io, atol=2e-2)
    # Sizes are kept exact, as ONNX defines no other scales.
    assert stored(half.graph).get("scales", TensorProto.FLOAT) == TensorProto.FLOAT


@pytest.mark.parametrize("between", ["Identity", "Relu"])
@pytest.mark.parametrize("perm", ["1, 0, 2", "1, 2, 0", "2, 0, 1", "0, 2, 1"])
@pytest.mark.parametrize("keep_io", [True, False])
def test_loads_where_a_recurrent_layer_comes_before_a_linear_one(perm: str, between: str, keep_io: bool) -> None:
    # Of the Transpose in float16, onnxruntime 1.32 makes a crash, not an error.
    text = f"""g (float[a, b, 4] x) => (float[c, d, 3] y) <float[4, 3] w = {{1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3}}> {{
      n = Neg(x)  z = Transpose<perm = [{perm}]>(n)  i = {between}(z)  y = MatMul(i, w) }}"""
    check(parse(text), {"x": GENERATOR.standard_normal((4, 4, 4)).astype(np.float32)}, keep_io, atol=5e-2)


@pytest.mark.parametrize("keep_io", [True, False])
def test_outputs_that_others_read_and_inputs_that_nobody_does(keep_io: bool) -> None:
    text = """g (float[N] x, float[N] unused) => (float[N] y, float[N] z, float[3] constant)
    <float[3] constant = {1, 2, 3}> { y = Neg(x)  z = Abs(y) }"""
    check(parse(text), {"x": np.array([1.5, -2, 3], np.float32), "unused": np.ones(3, np.float32)}, keep_io)


@pytest.mark.parametrize("value", [1e5, -7e4, 3.4e38])
@pytest.mark.parametrize("place", ["weight", "inner", "constant"])
def test_a_weight_beyond_the_range_is_refused_by_name(place: str, value: float) -> None:
    text = {
        "weight": "g (float[2] x) => (float[2] y) <float[2] head.weight = {1, VALUE}> { y = Mul(x, head.weight) }",
        "inner": "g (float[2] x, bool c) => (float[2] y) { y = If(c) <then_branch = t () => (float[2] a) "
        "<float[2] head.weight = {1, VALUE}> { a = Mul(x, head.weight) }, "
        "else_branch = e () => (float[2] b) { b = Neg(x) }> }",
        "constant": "g (float[2] x) => (float[2] y) { head.weight = Constant<value = float {VALUE}>() "
        "y = Mul(x, head.weight) }",
    }[place]
    text = text.replace("VALUE", f"{value:f}").replace("head.weight", "head_weight")
    with pytest.raises(ExportError, match=r"^head_weight holds -?\d.*float16 ends at ±65504: export the model as fp32"):
        to_half(parse(text))


def test_infinities_and_what_rounds_to_nothing_pass() -> None:
    text = "g (float[3] x) => (float[3] y) <float[3] w = {0.5, 1e-9, 1}> { y = Add(x, w) }"
    model = parse(text)
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.array([-np.inf, 1e-9, 65504], np.float32), "w"))
    np.testing.assert_array_equal(
        answers(to_half(model), {"x": np.zeros(3, np.float32)})["y"], np.array([-np.inf, 0, 65504], np.float32)
    )


def test_an_operator_that_onnx_does_not_know_is_refused() -> None:
    header = '<ir_version: 10, opset_import: ["" : 20, "mine" : 1]>'
    text = f"{header} g (float[3] x) => (float[3] y) {{ z = mine.Own(x) y = Neg(z) }}"
    with pytest.raises(ExportError, match=r"Own \(z\).*dtype of its output z"):
        to_half(parser.parse_model(text))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(10, 8)
        self.norm = nn.LayerNorm(8)
        self.conv = nn.Conv1d(8, 8, 3, padding=1)
        self.rnn = nn.LSTM(8, 6, num_layers=2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(12, 5)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.embedding(ids))
        y, _ = self.rnn(self.conv(x.transpose(1, 2)).transpose(1, 2))
        y = y.masked_fill((ids == 0).unsqueeze(-1), float("-inf")).relu()
        result: torch.Tensor = self.head(y).softmax(-1)
        return result


def test_what_torch_exports_and_nothing_is_said(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    ids = torch.randint(0, 10, (3, 7))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(Net().eval(), (ids,), dynamo=True, opset_version=18, verbose=False)
    assert program is not None
    paths, _ = list(sys.path), capfd.readouterr()
    with warnings.catch_warnings(), caplog.at_level(logging.DEBUG):
        warnings.simplefilter("error")
        caplog.clear()
        half = to_half(program.model_proto)
    assert capfd.readouterr() == ("", "")
    assert not caplog.records
    assert sys.path == paths
    check(program.model_proto, {half.graph.input[0].name: ids.numpy()})
    assert TensorProto.FLOAT not in stored(half.graph).values()
    names = {node.name for node in half.graph.node}
    assert {node.name for node in program.model_proto.graph.node} <= names


BFLOAT16 = Form(TensorProto.BFLOAT16, "bfloat16", "±3.39e38", ort=False)


def test_bfloat16_rounds_to_the_nearest_and_keeps_what_float16_cannot_hold() -> None:
    import ml_dtypes

    values = np.array([1.0, 1 + 2**-8, 1 + 3 * 2**-8, -1e9, 1e-40, np.inf, -np.inf, np.nan], np.float32)
    model = parse("g (float[8] x) => (float[8] y) { y = Add(x, w) }".replace("{", "<float[8] w = {0}> {", 1))
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(values, "w"))
    half = to_half(model, form=BFLOAT16)
    (weight,) = half.graph.initializer
    assert weight.data_type == TensorProto.BFLOAT16
    found = np.frombuffer(weight.raw_data, "<u2").view(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(found, values.astype(ml_dtypes.bfloat16))
    assert [node.op_type for node in half.graph.node] == ["Cast", "Add", "Cast"]
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.full(8, 3.4e38, np.float32), "w"))
    with pytest.raises(ExportError, match=r"w holds 3.4e\+38, and bfloat16 ends at"):
        to_half(model, form=BFLOAT16)


def test_the_detour_around_onnxruntime_is_taken_for_onnxruntime_alone() -> None:
    model = parse(
        "g (float[2, 3, 4] x) => (float[3, 2, 4] y) { z = Neg(x) t = Transpose <perm=[1, 0, 2]> (z) y = Neg(t) }"
    )
    plain = Form(TensorProto.FLOAT16, "float16", "±65504", ort=False)
    casts = [
        sum(node.op_type == "Cast" for node in to_half(model, **more).graph.node) for more in ({}, {"form": plain})
    ]
    assert casts == [4, 2]


def test_what_a_form_lacks_stays_float32() -> None:
    model = parse("g (float[2] x) => (float[2] y) { z = Neg(x) t = Exp(z) y = Neg(t) }")
    form = Form(TensorProto.FLOAT16, "float16", "±65504", lacks=lambda node: node.op_type == "Exp")
    assert [node.op_type for node in to_half(model, form=form).graph.node] == (
        ["Cast", "Neg", "Cast", "Exp", "Cast", "Neg", "Cast"]
    )
