"""LSTM as DynamicQuantizeLSTM: close to float, without saturation, only where it is asked for, on record as coupled."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from deploykit.coverage import Coverage
from deploykit.errors import QuantizationError
from deploykit.quantize import QuantizeOptions, Scheme, dynamic_8bit
from deploykit.quantize._weights import per_output_channel
from deploykit.quantize.dynamic import SCHEME
from tests.quantize.graphs import (
    DIRECTIONS,
    Array,
    Net,
    all_ops,
    floats,
    run,
    session,
    tensor,
    with_one_state,
    worst_snr,
)

COUPLED = "DynamicQuantizeLSTM"
ALLOWED = QuantizeOptions(allow_coupled=True, prefer="int8")


def coupled(
    model: onnx.ModelProto, options: QuantizeOptions = ALLOWED, scheme: Scheme = SCHEME
) -> tuple[onnx.ModelProto, Coverage]:
    """The checked result, which has left its source alone."""
    before = model.SerializeToString(deterministic=True)
    result, coverage = scheme.apply(model, options)
    assert model.SerializeToString(deterministic=True) == before
    onnx.checker.check_model(result)
    return result, coverage


def lstm(net: Net, *, peepholes: bool = False, **attrs: Any) -> onnx.ModelProto:
    """The net's model, with peepholes and further attributes in every LSTM."""
    model = net.model()
    for index, node in enumerate(one for one in model.graph.node if one.op_type == "LSTM"):
        if peepholes:
            weights = tensor(f"P{index}", net.directions, 3 * net.hidden, seed=7, scale=0.5)
            model.graph.initializer.append(weights)
            node.input.extend([*[""] * (7 - len(node.input)), weights.name])
        node.attribute.extend(helper.make_attribute(name, value) for name, value in attrs.items())
    onnx.checker.check_model(model)
    return model


def initializers(model: onnx.ModelProto) -> dict[str, Array]:
    return {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}


def only(model: onnx.ModelProto, *outputs: str) -> onnx.ModelProto:
    """The model of one layer with some of its outputs; the others have empty names or none."""
    node = model.graph.node[0]
    node.output[:] = [name if name in outputs else "" for name in node.output]
    while not node.output[-1]:
        node.output.pop()
    kept = [one for one in model.graph.output if one.name in outputs]
    del model.graph.output[:]
    model.graph.output.extend(kept)
    return model


@pytest.mark.parametrize("clip", [None, 0.4], ids=["free", "clip"])
@pytest.mark.parametrize("peepholes", [False, True], ids=["plain", "peepholes"])
@pytest.mark.parametrize("initial", [False, True], ids=["zeros", "h0"])
@pytest.mark.parametrize("lengths", [False, True], ids=["whole", "lengths"])
@pytest.mark.parametrize("bias", [False, True], ids=["bare", "bias"])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_close_to_float(
    direction: str, bias: bool, lengths: bool, initial: bool, peepholes: bool, clip: float | None
) -> None:
    net = Net("LSTM", direction=direction, bias=bias, lengths=lengths, initial=initial)
    model = lstm(net, peepholes=peepholes, **({} if clip is None else {"clip": clip}))
    quantized, coverage = coupled(model)
    assert [row.became for row in coverage.rows] == ["int8"]
    assert "LSTM" not in all_ops(quantized.graph)
    for time, batch in ((1, 1), (7, 3), (23, 2), (9, 17)):
        assert worst_snr(model, quantized, net.feeds(time, batch)) > 29


@given(
    st.builds(
        Net,
        st.just("LSTM"),
        inputs=st.integers(1, 40),
        hidden=st.integers(1, 40),
        direction=st.sampled_from(DIRECTIONS),
        layers=st.integers(1, 3),
        bias=st.booleans(),
        lengths=st.booleans(),
        initial=st.booleans(),
        opset=st.sampled_from([14, 17, 20, 23]),
    ),
    st.integers(1, 12),
    st.integers(1, 6),
    st.integers(0, 10**6),
    st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_any_net_is_close(net: Net, time: int, batch: int, seed: int, peepholes: bool) -> None:
    model, feeds = lstm(net, peepholes=peepholes), net.feeds(time, batch, seed)
    expected, actual = run(model, feeds), run(coupled(model)[0], feeds)
    for name, value in expected.items():
        scale = max(1.0, float(np.abs(value).max()))
        assert float(np.abs(value - actual[name]).max()) < 0.06 * scale * net.layers, name


@pytest.mark.parametrize("opset", range(14, 26))
def test_every_opset(opset: int) -> None:
    net = Net("LSTM", direction="bidirectional", layers=2, lengths=True, initial=True, opset=opset)
    model = net.model()
    quantized, _ = coupled(model)
    assert all_ops(quantized.graph).count(COUPLED) == 2
    assert worst_snr(model, quantized, net.feeds(9, 3)) > 29
    assert {entry.domain: entry.version for entry in quantized.opset_import} == {"": opset, "com.microsoft": 1}


@pytest.mark.parametrize(
    "attrs",
    [
        {"input_forget": 1},
        {"activations": ["HardSigmoid", "Softsign", "Tanh"], "activation_alpha": [0.3], "activation_beta": [0.4]},
        {"activations": ["Sigmoid", "Relu", "Relu"]},
        {
            "activations": ["sigmoid", "LeakyRelu", "ScaledTanh"],
            "activation_alpha": [0.1, 0.9],
            "activation_beta": [0.8],
        },
    ],
    ids=["input_forget", "alpha", "relu", "mixed"],
)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_attributes_are_kept(direction: str, attrs: dict[str, Any]) -> None:
    net = Net("LSTM", direction=direction, lengths=True)
    twice: dict[str, Any] = {
        name: value * net.directions if isinstance(value, list) else value for name, value in attrs.items()
    }
    model = lstm(net, **twice)
    quantized, coverage = coupled(model)
    assert [row.coupled for row in coverage.rows] == [True]
    feeds = net.feeds(9, 3)
    assert worst_snr(model, quantized, feeds) > 29
    assert worst_snr(net.model(), quantized, feeds) < 20


def test_empty_lists_of_activations_and_layout_0_say_nothing() -> None:
    net = Net("LSTM")
    model = lstm(net, layout=0)
    empty = onnx.AttributeProto(name="activation_alpha", type=onnx.AttributeProto.FLOATS)
    model.graph.node[0].attribute.append(empty)
    quantized, coverage = coupled(model)
    assert coverage.rows[0].coupled
    assert worst_snr(net.model(), quantized, net.feeds(9, 3)) > 29


@pytest.mark.parametrize("outputs", [("y",), ("h_0",), ("c_0",), ("y", "c_0"), ("h_0", "c_0")], ids="+".join)
@pytest.mark.parametrize("lengths", [False, True], ids=["whole", "lengths"])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_outputs_that_are_not_there(direction: str, lengths: bool, outputs: tuple[str, ...]) -> None:
    net = Net("LSTM", direction=direction, lengths=lengths)
    model = only(net.model(), *outputs)
    quantized, _ = coupled(model)
    assert worst_snr(model, quantized, net.feeds(9, 3)) > 29


@pytest.mark.parametrize("state", ["h0_0", "c0_0"])
def test_an_initial_state_alone_or_a_cell_state_alone(state: str) -> None:
    model, feeds = with_one_state(Net("LSTM", initial=True), state)
    assert worst_snr(model, coupled(model)[0], feeds) > 29


@pytest.mark.parametrize("outputs", [("y", "h_0", "c_0"), ("h_0", "c_0")], ids=["with_y", "without_y"])
@pytest.mark.parametrize("lengths", [(5, 0, 3), (0, 7, 7), (7, 0, 0), (0, 0, 0)], ids=str)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_rows_without_steps(direction: str, lengths: tuple[int, ...], outputs: tuple[str, ...]) -> None:
    net = Net("LSTM", direction=direction, lengths=True, initial=True)
    model = only(net.model(), *outputs)
    opened, feeds = session(coupled(model)[0]), net.feeds(7, 3)
    expected = run(model, {**feeds, "lengths": np.array(lengths, np.int32)})
    # the memory of earlier, loud runs is what an operator would find that forgets to clear its own
    for _ in range(2):
        run(opened, {**feeds, "x": feeds["x"] * 1000, "lengths": np.array([7, 7, 7], np.int32)})
    actual = run(opened, {**feeds, "lengths": np.array(lengths, np.int32)})
    for name, value in expected.items():
        np.testing.assert_allclose(actual[name], value, atol=0.03)
        none = [row for row, length in enumerate(lengths) if not length]
        assert not actual[name][..., none, :].any()


@pytest.mark.parametrize("lengths", [False, True], ids=["whole", "lengths"])
def test_with_lengths_y_is_always_computed(lengths: bool) -> None:
    """Without it a row without steps would lend all others the scale of whatever its memory held before: chance."""
    quantized, _ = coupled(only(Net("LSTM", lengths=lengths).model(), "h_0"))
    node = next(one for one in quantized.graph.node if one.op_type == COUPLED)
    assert bool(node.output[0]) == lengths


def test_no_steps_at_all() -> None:
    net = Net("LSTM", direction="bidirectional")
    model, feeds = net.model(), {"x": np.zeros((0, 2, net.inputs), np.float32)}
    expected, actual = run(model, feeds), run(coupled(model)[0], feeds)
    # onnxruntime leaves Y_c as it found the memory, in the float operator as in this one
    for name in ("y", "h_0"):
        np.testing.assert_array_equal(actual[name], expected[name])


@pytest.mark.parametrize("padding", [1e6, math.nan, math.inf])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_what_lies_beyond_a_rows_end_changes_no_bit(direction: str, padding: float) -> None:
    net = Net("LSTM", direction=direction, lengths=True)
    opened, feeds = session(coupled(net.model())[0]), net.feeds(9, 3)
    results = []
    for fill in (0.0, padding):
        x = feeds["x"].copy()
        for row, length in enumerate(feeds["lengths"]):
            x[length:, row] = fill
        results.append(run(opened, {**feeds, "x": x}))
    for name, value in results[0].items():
        np.testing.assert_array_equal(results[1][name], value)


def test_the_coverage_says_coupled() -> None:
    _, coverage = coupled(Net("LSTM", direction="bidirectional", layers=2).model())
    first, second = coverage.rows
    assert (first.node, first.kind, first.became, first.form) == ("lstm_0", "LSTM", "int8", COUPLED)
    assert first.coupled
    assert second.coupled
    assert first.reason is None
    assert first.macs == 2 * 4 * 21 * (11 + 21)
    assert first.weight_bytes == 4 * first.macs
    assert not coverage.recurrent_left
    assert (coverage.weight_share, coverage.mac_share) == (1.0, 1.0)


def test_a_row_does_depend_on_its_neighbours_and_on_later_steps() -> None:
    net = Net("LSTM", inputs=64, hidden=64)
    opened, feeds = session(coupled(net.model())[0]), net.feeds(20, 4)
    calm = run(opened, feeds)["y"]
    loud, longer = feeds["x"].copy(), feeds["x"].copy()
    loud[:, 1:] *= 10
    longer[10:] *= 10
    assert (run(opened, {"x": loud})["y"][:, :, 0] != calm[:, :, 0]).any()
    assert (run(opened, {"x": longer})["y"][:10] != calm[:10]).any()


@pytest.mark.parametrize("scheme", [SCHEME, dynamic_8bit.SCHEME], ids=["dynamic", "dynamic-8bit"])
def test_only_where_it_is_allowed_and_only_for_an_lstm(scheme: Scheme) -> None:
    model = Net("LSTM").model()
    quantized, coverage = coupled(model, QuantizeOptions(prefer="int8"), scheme)
    assert COUPLED not in all_ops(quantized.graph)
    assert not any(row.coupled for row in coverage.rows)
    quantized, coverage = coupled(model, ALLOWED, scheme)
    assert COUPLED in all_ops(quantized.graph)
    assert [(row.coupled, row.reason) for row in coverage.rows] == [(True, None)]
    for kind in ("GRU", "RNN"):
        quantized, coverage = coupled(Net(kind).model(), ALLOWED, scheme)
        assert COUPLED not in all_ops(quantized.graph)
        assert [(row.became, row.coupled) for row in coverage.rows] == [("int8", False)]


def test_excluded_layers_stay_in_float() -> None:
    net = Net("LSTM", layers=3)
    options = QuantizeOptions(exclude=frozenset({"lstm_1"}), allow_coupled=True, prefer="int8")
    quantized, coverage = coupled(net.model(), options)
    assert [row.became for row in coverage.rows] == ["int8", "float32", "int8"]
    assert coverage.rows[1].reason == "excluded by name"
    assert worst_snr(net.model(), quantized, net.feeds(12, 2)) > 29


def test_layout_1_stays_in_float() -> None:
    x, y = floats("x", "batch", "time", 5), floats("y", "batch", "time", 1, 3)
    weights = [tensor("W", 1, 12, 5), tensor("R", 1, 12, 3)]
    node = helper.make_node("LSTM", ["x", "W", "R"], ["y"], name="lstm", hidden_size=3, layout=1)
    graph = helper.make_graph([node], "net", [x], [y], weights)
    quantized, coverage = coupled(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    assert [(row.became, row.reason) for row in coverage.rows] == [("float32", "layout=1 (batch first)")]
    assert all_ops(quantized.graph) == ["LSTM"]


@pytest.mark.parametrize("name", ["W0", "R0"])
def test_weights_that_are_fed_stay_in_float(name: str) -> None:
    model = Net("LSTM").model()
    model.graph.input.append(floats(name, *initializers(model)[name].shape))
    _, coverage = coupled(model)
    assert [(row.became, row.reason) for row in coverage.rows] == [("float32", "its weights are not constant")]


def test_a_bias_that_is_fed_is_handed_on() -> None:
    net = Net("LSTM")
    model = net.model()
    bias = initializers(model)["B0"]
    model.graph.input.append(floats("B0", *bias.shape))
    feeds = {**net.feeds(9, 3), "B0": bias + np.float32(0.3)}
    assert worst_snr(model, coupled(model)[0], feeds) > 29


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["W0", "R0", "B0", "P0"])
def test_unsound_weights_are_refused(name: str, bad: float) -> None:
    model = lstm(Net("LSTM"), peepholes=True)
    broken = next(one for one in model.graph.initializer if one.name == name)
    value = numpy_helper.to_array(broken).copy()
    value[(0,) * value.ndim] = bad
    broken.CopyFrom(numpy_helper.from_array(value, name))
    with pytest.raises(QuantizationError, match=f"'{name}' holds"):
        coupled(model)


def test_weights_that_are_all_zero() -> None:
    net = Net("LSTM")
    model = net.model()
    for one in model.graph.initializer:
        if one.name in ("W0", "R0"):
            one.CopyFrom(numpy_helper.from_array(np.zeros(list(one.dims), np.float32), one.name))
    feeds = net.feeds(9, 3)
    expected, actual = run(model, feeds), run(coupled(model)[0], feeds)
    for name, value in expected.items():
        np.testing.assert_allclose(actual[name], value, atol=1e-6)


def test_one_matrix_for_the_input_and_the_state_of_two_layers() -> None:
    net = Net("LSTM", inputs=21, layers=2)
    model = net.model()
    for node in model.graph.node:
        if node.op_type == "LSTM":
            node.input[1] = node.input[2] = "R0"
    quantized, _ = coupled(model)
    assert (
        sum(one.data_type == onnx.TensorProto.INT8 and len(one.dims) == 3 for one in quantized.graph.initializer) == 1
    )
    assert worst_snr(model, quantized, net.feeds(9, 3)) > 29


@given(st.integers(1, 9), st.integers(1, 5), st.floats(-30, 4), st.integers(0, 10**6))
@settings(max_examples=100, deadline=None)
def test_no_pair_of_equal_sign_exceeds_128(rows: int, columns: int, exponent: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    matrix = (rng.choice([-1, -0.5, 0, 0.3, 0.5, 1], (rows, columns)) * 10**exponent).astype(np.float32)
    result = per_output_channel(matrix)
    values = result.values.astype(np.int64)
    assert values.shape == matrix.shape
    assert result.scale.shape == (columns,)
    even = np.pad(values, ((0, rows % 2), (0, 0))).reshape(-1, 2, columns)
    assert np.maximum(even, 0).sum(axis=1).max() <= 128
    assert np.minimum(even, 0).sum(axis=1).min() >= -128
    assert (np.abs(values * result.scale.astype(np.float64) - matrix) <= 0.5001 * result.scale).all()


def hostile(outputs: int, inputs: int, seed: int) -> NDArray[np.float32]:
    """``[1, outputs, inputs]`` of pairs that add up to 127, or to 128 once they are rounded, of one sign an output."""
    rng = np.random.default_rng(seed)
    pairs = np.array([(63.5, 63.5), (127, 0), (0, 127), (100, 27)])[rng.integers(0, 4, (outputs, (inputs + 1) // 2))]
    signed = pairs.reshape(outputs, -1)[:, :inputs] * rng.choice([-1, 1], (outputs, 1))
    result: NDArray[np.float32] = (signed[None] / (127 * inputs)).astype(np.float32)
    return result


@pytest.mark.parametrize(
    ("inputs", "hidden"), [(2, 2), (3, 5), (8, 9), (33, 31), (64, 63), (257, 256), (400, 401), (769, 33)]
)
def test_the_operator_does_not_saturate(inputs: int, hidden: int) -> None:
    net = Net("LSTM", inputs=inputs, hidden=hidden, bias=False, initial=True)
    model = net.model()
    for one, width in zip(model.graph.initializer, (inputs, hidden), strict=True):
        one.CopyFrom(numpy_helper.from_array(hostile(4 * hidden, width, width), one.name))
    quantized, _ = coupled(model)
    opened, rng = session(quantized), np.random.default_rng(1)
    for time, batch in ((1, 1), (4, 1), (3, 2), (2, 5), (3, 17)):
        # Nearly all activations are 255 with zero point 0: no product can be larger.
        x, h = (rng.uniform(0.95, 1, shape).astype(np.float32) for shape in ((time, batch, inputs), (1, batch, hidden)))
        c = rng.standard_normal(h.shape).astype(np.float32)
        actual = run(opened, {"x": x, "h0_0": h, "c0_0": c})["y"][:, 0]
        np.testing.assert_allclose(actual, emulated(quantized, x, h[0], c[0]), atol=2e-6)


def emulated(model: onnx.ModelProto, x: Array, h: Array, c: Array) -> Array:
    """What the model's one operator has to give, with sums that cannot saturate."""
    node = next(one for one in model.graph.node if one.op_type == COUPLED)
    known = initializers(model)
    w, r, w_scale, r_scale = (known[node.input[place]][0] for place in (1, 2, 8, 10))
    share = integer_product(x, w, w_scale)
    steps = []
    for one in share:
        i, o, f, g = np.split(one + integer_product(h, r, r_scale), 4, axis=-1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = (sigmoid(o) * np.tanh(c)).astype(np.float32)
        steps.append(h)
    return np.stack(steps)


def integer_product(value: Array, matrix: Array, scale: Array) -> Array:
    low, high = min(np.float32(0), value.min()), max(np.float32(0), value.max())
    step = np.float32((high - low) / np.float32(255))
    zero = np.rint(-low / step)
    rounded = np.clip(np.rint(value / step) + zero, 0, 255) - zero
    product: Array = (rounded.astype(np.int64) @ matrix.astype(np.int64)) * (step * scale).astype(np.float64)
    return product


def sigmoid(value: Array) -> Array:
    result: Array = 1 / (1 + np.exp(-value))
    return result
