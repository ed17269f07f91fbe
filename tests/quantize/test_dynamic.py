"""GRU, LSTM and RNN in dynamic int8: close to float, row by row and step by step, and int8 in the file."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto

from deploykit import registry
from deploykit.quantize import dynamic_8bit
from deploykit.quantize.dynamic import SCHEME
from tests.quantize.graphs import (
    DIRECTIONS,
    VARIANTS,
    Feeds,
    Form,
    Net,
    all_initializers,
    all_ops,
    both_forms,
    quantize,
    run,
    session,
    snr,
    with_one_state,
    worst_snr,
)

NEWEST = onnx.defs.onnx_opset_version()

nets = st.builds(
    lambda variant, **fields: Net(variant[0], variant[1], **fields),
    st.sampled_from(VARIANTS),
    inputs=st.integers(1, 40),
    hidden=st.integers(1, 40),
    direction=st.sampled_from(DIRECTIONS),
    layers=st.integers(1, 3),
    bias=st.booleans(),
    lengths=st.booleans(),
    initial=st.booleans(),
    opset=st.integers(14, NEWEST),
)


@both_forms
@pytest.mark.parametrize("initial", [False, True], ids=["zeros", "h0"])
@pytest.mark.parametrize("lengths", [False, True], ids=["whole", "lengths"])
@pytest.mark.parametrize("bias", [False, True], ids=["bare", "bias"])
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(("kind", "variant"), VARIANTS)
def test_close_to_float(
    kind: str, variant: str, direction: str, bias: bool, lengths: bool, initial: bool, kernels: Form
) -> None:
    net = Net(kind, variant, direction=direction, bias=bias, lengths=lengths, initial=initial)
    model = net.model()
    quantized, coverage = quantize(model, kernels=kernels)
    assert [row.became for row in coverage.rows] == ["int8"]
    assert kind not in all_ops(quantized.graph)
    for time, batch in ((1, 1), (7, 3), (23, 2)):
        assert worst_snr(model, quantized, net.feeds(time, batch)) > 34


@both_forms
@pytest.mark.parametrize("opset", [14, 17, 18, 20, NEWEST])
@pytest.mark.parametrize("kind", ["GRU", "LSTM", "RNN"])
def test_every_opset(kind: str, opset: int, kernels: Form) -> None:
    net = Net(kind, direction="bidirectional", layers=2, lengths=True, initial=True, opset=opset)
    model = net.model()
    quantized, _ = quantize(model, kernels=kernels)
    assert worst_snr(model, quantized, net.feeds(9, 3)) > 34
    other = "ai.deploykit" if kernels == "fused" else "com.microsoft"
    assert {entry.domain: entry.version for entry in quantized.opset_import} == {"": opset, other: 1}


@both_forms
@given(nets, st.integers(1, 12), st.integers(1, 4), st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_any_net_is_close_and_row_by_row_and_causal(kernels: Form, net: Net, time: int, batch: int, seed: int) -> None:
    model = net.model(seed)
    quantized, coverage = quantize(model, kernels=kernels)
    assert len(coverage.rows) == net.layers
    assert not coverage.recurrent_left
    feeds = net.feeds(time, batch, seed)
    expected, opened = run(model, feeds), session(quantized)
    actual = run(opened, feeds)
    # a handful of numbers can be unlucky in SNR, so the bound is a share of their possible size
    for name, value in expected.items():
        scale = max(1.0, float(np.abs(value).max()))
        assert float(np.abs(value - actual[name]).max()) < 0.06 * scale * net.layers, name
    for row in range(batch):
        alone = run(opened, pick_rows(feeds, [row]))
        for name in expected:
            np.testing.assert_array_equal(alone[name].squeeze(-2), actual[name][..., row, :])
    if net.direction == "forward" and time > 1 and not net.lengths:
        shorter = run(opened, {**feeds, "x": feeds["x"][: time // 2]})
        np.testing.assert_array_equal(shorter["y"], actual["y"][: time // 2])


def pick_rows(feeds: Feeds, rows: list[int]) -> Feeds:
    """The feeds of some batch rows: lengths have the batch first, all else has it second."""
    return {name: value[rows] if value.ndim == 1 else value[:, rows] for name, value in feeds.items()}


@both_forms
@pytest.mark.parametrize(("kind", "variant"), VARIANTS)
@pytest.mark.parametrize("batch", [2, 16, 37])
def test_loud_neighbours_change_no_bit(kind: str, variant: str, batch: int, kernels: Form) -> None:
    net = Net(kind, variant, inputs=40, hidden=70, direction="bidirectional", layers=2, initial=True)
    opened = session(quantize(net.model(), kernels=kernels)[0])
    feeds = net.feeds(9, batch)
    quiet = run(opened, pick_rows(feeds, [0]))
    feeds["x"][:, 1:] *= 100
    loud = run(opened, feeds)
    for name, value in quiet.items():
        np.testing.assert_array_equal(value.squeeze(-2), loud[name][..., 0, :])


@both_forms
@pytest.mark.parametrize(("kind", "variant"), VARIANTS)
def test_feeding_chunk_by_chunk_changes_no_bit(kind: str, variant: str, kernels: Form) -> None:
    net = Net(kind, variant, layers=2, initial=True)
    opened = session(quantize(net.model(), kernels=kernels)[0])
    feeds = net.feeds(20, 3)
    whole = run(opened, feeds)
    pieces, state = [], {name: value for name, value in feeds.items() if name != "x"}
    for start, stop in ((0, 1), (1, 7), (7, 20)):
        made = run(opened, {"x": feeds["x"][start:stop], **state})
        pieces.append(made["y"])
        state = {name: made[name.replace("0_", "_")] for name in state}
    np.testing.assert_array_equal(np.concatenate(pieces), whole["y"])
    for name, value in state.items():
        np.testing.assert_array_equal(value, whole[name.replace("0_", "_")])


@both_forms
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize(("kind", "variant"), VARIANTS)
def test_an_unsound_row_stays_alone_and_is_not_hidden(
    kind: str, variant: str, direction: str, bad: float, kernels: Form
) -> None:
    net = Net(kind, variant, inputs=40, direction=direction)
    opened = session(quantize(net.model(), kernels=kernels)[0])
    feeds = net.feeds(9, 4)
    sound = run(opened, feeds)
    feeds["x"][4, 2, 33] = bad
    unsound = run(opened, feeds)
    before, after = (slice(0, 4), slice(4, 9)) if direction == "forward" else (slice(5, 9), slice(0, 5))
    for name in sound:
        np.testing.assert_array_equal(unsound[name][..., [0, 1, 3], :], sound[name][..., [0, 1, 3], :])
        if name != "y":
            assert np.isnan(unsound[name][..., 2, :]).all()
    np.testing.assert_array_equal(unsound["y"][before], sound["y"][before])
    assert np.isnan(unsound["y"][after, :, 2]).all()


@both_forms
@pytest.mark.parametrize(("kind", "variant"), VARIANTS)
def test_an_unsound_initial_state_stays_alone_and_is_not_hidden(kind: str, variant: str, kernels: Form) -> None:
    net = Net(kind, variant, initial=True)
    opened = session(quantize(net.model(), kernels=kernels)[0])
    feeds = net.feeds(5, 3)
    sound = run(opened, feeds)
    feeds["h0_0"][0, 1, 3] = math.nan
    unsound = run(opened, feeds)["y"]
    np.testing.assert_array_equal(unsound[..., [0, 2], :], sound["y"][..., [0, 2], :])
    assert np.isnan(unsound[..., 1, :]).any(axis=-1).all()


@both_forms
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("kind", ["GRU", "LSTM", "RNN"])
def test_padding_is_never_read(kind: str, direction: str, kernels: Form) -> None:
    net = Net(kind, direction=direction, lengths=True)
    opened = session(quantize(net.model(), kernels=kernels)[0])
    feeds = net.feeds(8, 3)
    feeds["lengths"] = np.array([8, 5, 0], np.int32)
    expected = run(opened, feeds)
    feeds["x"][5:, 1] = math.nan
    feeds["x"][:, 2] = math.inf
    actual = run(opened, feeds)
    for name in expected:
        np.testing.assert_array_equal(actual[name], expected[name])
        assert not actual[name][..., 2, :].any()
    assert not actual["y"][5:, :, 1].any()


@both_forms
@pytest.mark.parametrize("initial", [False, True], ids=["zeros", "h0"])
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(("kind", "variant"), VARIANTS)
def test_steps_that_are_padding_in_every_row_are_not_run(
    kind: str, variant: str, direction: str, initial: bool, kernels: Form
) -> None:
    """The answer is that of the sequence without them, to the bit, and zeros; all rows may be empty."""
    net = Net(kind, variant, direction=direction, lengths=True, initial=initial)
    opened = session(quantize(net.model(), kernels=kernels)[0])
    feeds = net.feeds(9, 3)
    feeds["lengths"] = np.array([4, 2, 0], np.int32)
    padded, cut = run(opened, feeds), run(opened, {**feeds, "x": feeds["x"][:4]})
    np.testing.assert_array_equal(padded["y"][:4], cut["y"])
    assert not padded["y"][4:].any()
    assert padded["y"].shape[0] == 9
    for name in set(padded) - {"y"}:
        np.testing.assert_array_equal(padded[name], cut[name])
    feeds["lengths"][:] = 0
    assert not any(value.any() for value in run(opened, feeds).values())


@both_forms
@pytest.mark.parametrize(("kind", "variant"), VARIANTS)
def test_the_error_does_not_grow_over_ten_thousand_steps(kind: str, variant: str, kernels: Form) -> None:
    net = Net(kind, variant, inputs=24, hidden=48)
    model = net.model()
    feeds = net.feeds(10_000, 1)
    expected, actual = run(model, feeds)["y"], run(quantize(model, kernels=kernels)[0], feeds)["y"]
    early, *later = (snr(expected[at : at + 500], actual[at : at + 500]) for at in range(0, 10_000, 500))
    assert early > 36
    assert min(later) > early - 2


@both_forms
@pytest.mark.parametrize("kind", ["GRU", "LSTM", "RNN"])
def test_the_file_holds_no_float_matrix_and_is_a_quarter_of_the_size(kind: str, kernels: Form) -> None:
    net = Net(kind, inputs=256, hidden=256, direction="forward")
    model = net.model()
    quantized, coverage = quantize(model, kernels=kernels)
    assert model.ByteSize() / quantized.ByteSize() > 3.7
    tensors = all_initializers(quantized.graph)
    int8 = [one for one in tensors if one.data_type == TensorProto.INT8 and len(one.dims) > 1]
    assert sum(math.prod(one.dims) for one in int8) == coverage.rows[0].weight_bytes / 4 == coverage.rows[0].macs
    # the fused operators take both biases apart, as ONNX has them
    most = 4 * net.hidden * (2 if kernels == "fused" else 1)
    assert all(math.prod(one.dims) <= most for one in tensors if one.data_type != TensorProto.INT8)


def test_coverage_counts_weights_and_products() -> None:
    _, coverage = quantize(Net("LSTM", inputs=10, hidden=20, direction="bidirectional", layers=2).model())
    first, second = coverage.rows
    assert (first.node, first.kind, first.became, first.coupled, first.reason) == (
        "lstm_0",
        "LSTM",
        "int8",
        False,
        None,
    )
    assert first.macs == 2 * 4 * 20 * (10 + 20)
    assert second.macs == 2 * 4 * 20 * (40 + 20)
    assert first.weight_bytes == 4 * first.macs
    assert "Scan with one int8 product a step for each direction" in first.form
    assert coverage.weight_share == coverage.mac_share == 1
    assert "two int8 products" in quantize(Net("GRU", "0").model())[1].rows[0].form


@both_forms
@pytest.mark.parametrize(("kind", "variant"), VARIANTS)
def test_zero_weights(kind: str, variant: str, kernels: Form) -> None:
    model = Net(kind, variant).model()
    for one in model.graph.initializer:
        one.raw_data = bytes(len(one.raw_data))
    feeds = Net(kind, variant).feeds(4, 2)
    np.testing.assert_array_equal(run(quantize(model, kernels=kernels)[0], feeds)["y"], run(model, feeds)["y"])


@both_forms
@pytest.mark.parametrize("kind", ["GRU", "LSTM", "RNN"])
def test_an_outlier_channel_harms_no_other(kind: str, kernels: Form) -> None:
    net = Net(kind, hidden=32)
    model = net.model()
    for one in model.graph.initializer:
        if one.name in ("W0", "R0"):
            values = onnx.numpy_helper.to_array(one).copy()
            values[0, 5] *= 50
            one.CopyFrom(onnx.numpy_helper.from_array(values, one.name))
    feeds = net.feeds(20, 2)
    expected, actual = run(model, feeds)["y"], run(quantize(model, kernels=kernels)[0], feeds)["y"]
    others = np.arange(32) != 5
    assert snr(expected[..., others], actual[..., others]) > 34


@both_forms
@pytest.mark.parametrize(("kind", "variant"), VARIANTS)
def test_rows_of_zeros_and_of_extreme_size(kind: str, variant: str, kernels: Form) -> None:
    net = Net(kind, variant)
    model = net.model()
    feeds = net.feeds(6, 4)
    for row, factor in enumerate([0.0, 1e-38, 1e-20, 1e20]):
        feeds["x"][:, row] *= np.float32(factor)
    expected, actual = run(model, feeds)["y"], run(quantize(model, kernels=kernels)[0], feeds)["y"]
    assert np.isfinite(actual).all()
    for row in range(3):  # at 1e20 every gate is a sign, and the signs of sums near zero are nobody's to tell
        assert snr(expected[:, :, row], actual[:, :, row]) > 30


@both_forms
@pytest.mark.parametrize("used", [("y",), ("h_0",), ("c_0",), ("y", "c_0")])
@pytest.mark.parametrize("lengths", [False, True])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_outputs_that_nobody_reads_are_not_made(
    direction: str, lengths: bool, used: tuple[str, ...], kernels: Form
) -> None:
    net = Net("LSTM", direction=direction, lengths=lengths)
    model = net.model()
    kept = [output for output in model.graph.output if output.name in used]
    del model.graph.output[:]
    model.graph.output.extend(kept)
    whole = run(quantize(model, kernels=kernels)[0], net.feeds(7, 3))
    node = model.graph.node[0]
    node.output[:] = [name if name in used else "" for name in node.output]
    quantized, _ = quantize(model, kernels=kernels)
    trimmed = run(quantized, net.feeds(7, 3))
    full = run(quantize(net.model(), kernels=kernels)[0], net.feeds(7, 3))
    for name in used:
        np.testing.assert_array_equal(whole[name], full[name])
        np.testing.assert_array_equal(trimmed[name], full[name])
    names = [name for one in quantized.graph.node for name in one.output if name]
    assert len(names) == len(set(names))


@both_forms
def test_a_large_initial_state_is_followed(kernels: Form) -> None:
    for kind, variant in VARIANTS:
        net = Net(kind, variant, hidden=32, initial=True)
        model = net.model()
        feeds = net.feeds(30, 2)
        feeds["h0_0"] *= 20
        expected, actual = run(model, feeds)["y"], run(quantize(model, kernels=kernels)[0], feeds)["y"]
        assert snr(expected[0], actual[0]) > 28
        assert snr(expected, actual) > 24
        assert snr(expected[-5:], actual[-5:]) > 26


def test_an_initial_state_known_to_be_zero_costs_no_node() -> None:
    net = Net("GRU", initial=True)
    model = net.model()
    del model.graph.input[1]
    like = onnx.helper.make_tensor_value_info("like", TensorProto.INT64, [3])
    model.graph.input.append(like)
    model.graph.node.insert(0, onnx.helper.make_node("ConstantOfShape", ["like"], ["h0_0"]))
    known = all_ops(quantize(model)[0].graph)
    assert known.count("ReduceMax") == 1
    assert all_ops(quantize(net.model())[0].graph).count("ReduceMax") == 2


@both_forms
def test_names_dims_and_metadata_stay_and_nothing_is_left_over(
    capfd: pytest.CaptureFixture[str], kernels: Form
) -> None:
    model = Net("GRU", direction="bidirectional", layers=2, lengths=True, initial=True).model()
    model.metadata_props.add(key="author", value="someone")
    quantized, _ = quantize(model, kernels=kernels)
    assert list(quantized.graph.input) == list(model.graph.input)
    assert list(quantized.graph.output) == list(model.graph.output)
    assert quantized.metadata_props == model.metadata_props
    assert quantized.ir_version == model.ir_version
    read = {name for node in quantized.graph.node for name in node.input}
    assert {one.name for one in quantized.graph.initializer} <= read
    names = [node.name for node in quantized.graph.node if node.name]
    assert len(names) == len(set(names))
    session(quantized, severity=2)
    assert "Warning" not in "".join(capfd.readouterr())


@both_forms
def test_the_same_input_gives_the_same_file(kernels: Form) -> None:
    model = Net("LSTM", layers=2).model()
    first, second = (quantize(model, kernels=kernels)[0].SerializeToString(deterministic=True) for _ in range(2))
    assert first == second


def test_weights_are_int8_and_with_all_8_bits_uint8_and_closer() -> None:
    net = Net("GRU", inputs=32, hidden=64)
    model, feeds = net.model(), net.feeds(30, 2)
    found = {}
    for scheme, kind in ((SCHEME, TensorProto.INT8), (dynamic_8bit.SCHEME, TensorProto.UINT8)):
        quantized, coverage = quantize(model, scheme=scheme)
        assert coverage.rows[0].became == "int8"
        matrices = [one for one in all_initializers(quantized.graph) if len(one.dims) > 1]
        assert {one.data_type for one in matrices} == {kind}
        found[kind] = worst_snr(model, quantized, feeds)
    assert 34 < found[TensorProto.INT8] < found[TensorProto.UINT8]


def test_both_are_found_by_their_names() -> None:
    assert {"dynamic", "dynamic-8bit"} <= set(registry.scheme_names())
    assert registry.scheme("dynamic").produces == "onnx-int8"


@both_forms
def test_the_worst_case_product_does_not_saturate(kernels: Form) -> None:
    """Every weight and every activation at its largest: the 16-bit sums of an AVX2 uint8 x int8 product overflow."""
    net = Net("RNN", "Relu", inputs=64, hidden=64, bias=False)
    model = net.model()
    for one in model.graph.initializer:
        full = np.ones(list(one.dims), np.float32) * np.float32(1 / 128)
        one.CopyFrom(onnx.numpy_helper.from_array(full, one.name))
    feeds = {"x": np.ones((3, 1, 64), np.float32)}
    expected = run(model, feeds)["y"]
    for scheme in (SCHEME, dynamic_8bit.SCHEME):
        # A saturated sum would be off by half; equal weights, half a step from a level in pairs, by 1 %.
        np.testing.assert_allclose(
            run(quantize(model, scheme=scheme, kernels=kernels)[0], feeds)["y"], expected, rtol=0.02
        )


@both_forms
def test_excluded_and_float_layers_run_side_by_side(kernels: Form) -> None:
    net = Net("GRU", layers=3)
    model = net.model()
    quantized, coverage = quantize(model, "gru_1", kernels=kernels)
    assert [row.became for row in coverage.rows] == ["int8", "float32", "int8"]
    assert coverage.rows[1].reason == "excluded by name"
    assert [row.node for row in coverage.recurrent_left] == ["gru_1"]
    assert all_ops(quantized.graph).count("GRU") == 1
    whole, _ = quantize(model, kernels=kernels)
    feeds = net.feeds(12, 2)
    assert worst_snr(model, quantized, feeds) > 34
    assert worst_snr(model, whole, feeds) > 34
    assert dataclasses.replace(coverage.rows[1], reason=None).macs == 3 * 21 * 42


@both_forms
@pytest.mark.parametrize("kind", ["GRU", "LSTM", "RNN"])
def test_threads_and_graph_optimizations_change_no_bit(kind: str, kernels: Form) -> None:
    net = Net(kind, inputs=90, hidden=130, direction="bidirectional", initial=True)
    quantized, _ = quantize(net.model(), kernels=kernels)
    feeds = net.feeds(6, 19)
    expected = run(quantized, feeds)
    for threads, level in ((2, "ORT_ENABLE_ALL"), (1, "ORT_DISABLE_ALL")):
        for name, value in run(session(quantized, threads=threads, level=level), feeds).items():
            np.testing.assert_array_equal(value, expected[name])


@both_forms
def test_an_initial_state_alone_or_a_cell_state_alone(kernels: Form) -> None:
    for given_state in ("h0_0", "c0_0"):
        model, feeds = with_one_state(Net("LSTM", initial=True), given_state)
        assert worst_snr(model, quantize(model, kernels=kernels)[0], feeds) > 34
