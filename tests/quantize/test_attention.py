"""Products of two activations in dynamic int8: attention's scores and contexts, row by row and step by step."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from deploykit.coverage import Coverage
from tests.quantize.graphs import Feeds, all_ops, build, floats, quantize, run, session, snr

Floats = NDArray[np.float32]
Dims = tuple[int | str, ...]

RNG = np.random.default_rng(11)
WIDTH = 24
HEADS: dict[int, Dims] = {2: (), 3: ("batch",), 4: ("batch", 2)}
MASKS = [-math.inf, -1e9]


def draw(*shape: int) -> Floats:
    return RNG.standard_normal(shape).astype(np.float32)


def attention(
    lead: Dims = ("batch",),
    *,
    opset: int = 17,
    memory: Dims | None = None,
    width: int | str = WIDTH,
    depth: int | str = WIDTH,
    queries: int | str = "time",
    keys: int | str = "time",
) -> onnx.ModelProto:
    """Scaled dot-product attention with an additive ``mask``.

    Queries have the dims ``lead`` in front, keys and values ``memory``; ``width`` is that of queries and keys,
    ``depth`` that of values.
    """
    memory = lead if memory is None else memory
    perm = [*range(len(memory)), len(memory) + 1, len(memory)]
    nodes = [
        helper.make_node("Transpose", ["k"], ["turned"], perm=perm),
        helper.make_node("MatMul", ["q", "turned"], ["scores"], name="scores"),
        helper.make_node("Mul", ["scores", "factor"], ["scaled"]),
        helper.make_node("Add", ["scaled", "mask"], ["masked"]),
        helper.make_node("Softmax", ["masked"], ["weights"], axis=-1),
        helper.make_node("MatMul", ["weights", "v"], ["y"], name="context"),
    ]
    inputs = [
        floats("q", *lead, queries, width),
        floats("k", *memory, keys, width),
        floats("v", *memory, keys, depth),
        floats("mask", queries, keys),
    ]
    longest = lead if len(lead) >= len(memory) else memory
    factor = numpy_helper.from_array(np.array(WIDTH**-0.5, np.float32), "factor")
    return build(nodes, inputs, [floats("y", *longest, queries, depth)], [factor], opset)


def causal(time: int, fill: float) -> Floats:
    return np.where(np.tril(np.ones((time, time), bool)), 0, fill).astype(np.float32)


def feeds_of(lead: tuple[int, ...] = (3,), time: int = 40, fill: float = -math.inf) -> Feeds:
    return {**{name: draw(*lead, time, WIDTH) for name in "qkv"}, "mask": causal(time, fill)}


def became(coverage: Coverage) -> dict[str, str]:
    return {row.node: row.became for row in coverage.rows}


def reasons(model: onnx.ModelProto) -> dict[str, str]:
    """Why nodes stayed, of a model of which none became int8."""
    quantized, coverage = quantize(model)
    assert set(became(coverage).values()) == {"float32"}
    assert quantized.graph == model.graph
    return {row.node: str(row.reason) for row in coverage.rows}


@pytest.mark.parametrize("opset", [14, 17, 18, 21, 23, 25])
@pytest.mark.parametrize("rank", HEADS)
def test_both_products_are_int8_and_close(rank: int, opset: int) -> None:
    model = attention(HEADS[rank], opset=opset)
    quantized, coverage = quantize(model)
    assert became(coverage) == {"scores": "int8", "context": "int8"}
    assert all(row.weight_bytes == 0 and row.kind == "MatMul" for row in coverage.rows)
    assert "MatMul" not in all_ops(quantized.graph)
    assert {"MatMulIntegerToFloat", "MatMulInteger"} <= set(all_ops(quantized.graph))
    opened, reference = session(quantized), session(model)
    for batch, time in ((1, 1), (3, 40), (2, 150)):
        feeds = feeds_of((batch, 2)[: rank - 2], time)
        assert snr(run(reference, feeds)["y"], run(opened, feeds)["y"]) > 35


def test_the_form_says_which_product_it_is() -> None:
    rows = quantize(attention())[1].rows
    assert [row.form for row in rows] == [
        "integer product of two activations (scores)",
        "integer product of two activations (context)",
    ]


@pytest.mark.parametrize(
    ("lead", "memory"),
    [
        (("batch", 2), (1, 2)),
        ((1, 2), ("batch", 2)),
        (("batch", 2), ()),
        ((), ("batch", 2)),
        ((2,), ("batch", 2)),
        (("batch", 2), (2,)),
    ],
)
def test_leading_dims_broadcast(lead: Dims, memory: Dims) -> None:
    model = attention(lead, memory=memory)
    quantized, coverage = quantize(model)
    assert became(coverage) == {"scores": "int8", "context": "int8"}
    shapes = {"q": lead, "k": memory, "v": memory}
    sizes: dict[str, tuple[int, ...]] = {
        name: tuple(3 if dim == "batch" else int(dim) for dim in dims) for name, dims in shapes.items()
    }
    feeds: Feeds = {name: draw(*dims, 20, WIDTH) for name, dims in sizes.items()}
    feeds["mask"] = causal(20, -1e9)
    expected, actual = run(model, feeds)["y"], run(quantized, feeds)["y"]
    assert expected.shape == actual.shape
    assert snr(expected, actual) > 35


def test_queries_of_another_length_than_keys() -> None:
    model = attention(queries="q_time", keys="k_time", depth=40)
    quantized, _ = quantize(model)
    feeds: Feeds = {"q": draw(2, 5, WIDTH), "k": draw(2, 90, WIDTH), "v": draw(2, 90, 40)}
    feeds["mask"] = np.zeros((5, 90), np.float32)
    assert snr(run(model, feeds)["y"], run(quantized, feeds)["y"]) > 35


def test_nothing_to_attend_to_or_nobody_who_does() -> None:
    opened = session(quantize(attention(queries="q_time", keys="k_time"))[0])
    for batch, queries, keys in ((2, 0, 9), (2, 9, 0), (0, 9, 9)):
        feeds: Feeds = {"q": draw(batch, queries, WIDTH), "mask": np.zeros((queries, keys), np.float32)}
        feeds |= {name: draw(batch, keys, WIDTH) for name in "kv"}
        # so that memory that comes back unwritten holds something
        run(opened, {**{name: draw(4, 50, WIDTH) for name in "qkv"}, "mask": np.zeros((50, 50), np.float32)})
        actual = run(opened, feeds)["y"]
        assert actual.shape == (batch, queries, WIDTH)
        assert np.abs(actual).max(initial=0) < 1e-20


def exact(left: Floats, right: Floats) -> NDArray[np.float64]:
    """The product with both operands rounded by the largest number of a row and of a column."""
    a, b = (np.abs(one).max(axis=axis, keepdims=True) / 127 for one, axis in ((left, -1), (right, -2)))
    product: NDArray[np.float64] = (np.rint(left / a).astype(int) @ np.rint(right / b).astype(int)) * (a * 1.0) * b
    return product


@pytest.mark.parametrize("width", [8, 64, 257])
def test_no_sum_saturates(width: int) -> None:
    nodes = [helper.make_node("MatMul", ["a", "b"], ["s"]), helper.make_node("Softmax", ["s"], ["y"])]
    outputs = [floats("s", "batch", "rows", "columns"), floats("y", "batch", "rows", "columns")]
    model = build(nodes, [floats("a", "batch", "rows", width), floats("b", "batch", width, "columns")], outputs, [])
    opened = session(quantize(model)[0])
    for sign in (1, -1):
        a = RNG.uniform(0.98, 1, (2, 33, width)).astype(np.float32)
        b = sign * RNG.uniform(0.98, 1, (2, width, 35)).astype(np.float32)
        np.testing.assert_allclose(run(opened, {"a": a, "b": b})["s"], exact(a, b), rtol=1e-6)


@pytest.mark.parametrize("fill", MASKS)
@pytest.mark.parametrize("rank", [3, 4])
def test_loud_neighbours_change_no_bit(rank: int, fill: float) -> None:
    opened = session(quantize(attention(HEADS[rank]))[0])
    feeds = feeds_of((5, 2)[: rank - 2], fill=fill)
    quiet = run(opened, {name: value if name == "mask" else value[:1] for name, value in feeds.items()})["y"]
    for name in "qkv":
        feeds[name][1:] *= 100
    np.testing.assert_array_equal(run(opened, feeds)["y"][:1], quiet)


@pytest.mark.parametrize("fill", MASKS)
@pytest.mark.parametrize("rank", HEADS)
def test_later_steps_change_no_bit(rank: int, fill: float) -> None:
    opened = session(quantize(attention(HEADS[rank]))[0])
    for time, first in ((17, 1), (40, 13), (131, 64)):
        feeds = feeds_of((3, 2)[: rank - 2], time, fill)
        before = run(opened, feeds)["y"]
        for name in "qkv":
            feeds[name][..., first:, :] = 100 * draw(*feeds[name][..., first:, :].shape)
        after = run(opened, feeds)["y"]
        np.testing.assert_array_equal(after[..., :first, :], before[..., :first, :])
        assert (after[..., first:, :] != before[..., first:, :]).any(axis=-1).all()


def product(form: str) -> onnx.ModelProto:
    """Scores of ``a`` and ``b``; or the context of ``a``, which has gone through a Softmax before, and ``b``."""
    if form == "scores":
        nodes = [helper.make_node("MatMul", ["a", "b"], ["y"]), helper.make_node("Softmax", ["y"], ["p"])]
        inputs = [floats("a", "batch", "time", 16), floats("b", "batch", 16, "time")]
        return build(nodes, inputs, [floats("y", "batch", "time", "time"), floats("p", "batch", "time", "time")], [])
    nodes = [
        helper.make_node("Softmax", ["a"], ["p"]),
        helper.make_node("Mul", ["p", "kept"], ["w"]),
        helper.make_node("MatMul", ["w", "b"], ["y"]),
    ]
    square = [floats(name, "batch", "time", "time") for name in ("a", "kept")]
    return build(nodes, [*square, floats("b", "batch", "time", 16)], [floats("y", "batch", "time", 16)], [])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_bad_query_or_key_spoils_its_own_scores(bad: float) -> None:
    opened = session(quantize(product("scores"))[0])
    a, b = draw(2, 20, 16), draw(2, 16, 20)
    good = run(opened, {"a": a, "b": b})["y"]
    a[0, 4, 15], b[1, 15, 7] = bad, bad
    actual = run(opened, {"a": a, "b": b})["y"]
    spoilt = np.zeros(good.shape, bool)
    spoilt[0, 4], spoilt[1, :, 7] = True, True
    assert np.isnan(actual[spoilt]).all()
    np.testing.assert_array_equal(actual[~spoilt], good[~spoilt])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_bad_weight_spoils_its_row_and_a_bad_value_all_that_weigh_it(bad: float) -> None:
    opened = session(quantize(product("context"))[0])
    feeds = {"a": draw(3, 20, 20), "kept": np.ones((3, 20, 20), np.float32), "b": draw(3, 20, 16)}
    good = run(opened, feeds)["y"]
    feeds["kept"][0, 4, 19], feeds["b"][1, 19, 15] = bad, bad
    actual = run(opened, feeds)["y"]
    spoilt = np.zeros(good.shape, bool)
    # 0 * NaN is NaN in float as well, so no weight shuts out a bad step of its own batch row.
    spoilt[0, 4], spoilt[1] = True, True
    assert np.isnan(actual[spoilt]).all()
    np.testing.assert_array_equal(actual[~spoilt], good[~spoilt])


def test_weights_and_values_of_nothing_are_nothing() -> None:
    opened = session(quantize(product("context"))[0])
    feeds = {"a": draw(2, 20, 20), "kept": np.ones((2, 20, 20), np.float32), "b": draw(2, 20, 16)}
    feeds["kept"][0, 3], feeds["b"][1] = 0, 0
    actual = run(opened, feeds)["y"]
    assert not actual[0, 3].any()
    assert not actual[1].any()
    assert np.isfinite(actual).all()


def chained(*between: onnx.NodeProto, weights: tuple[onnx.TensorProto, ...] = (), end: str = "s") -> onnx.ModelProto:
    """Scores, then those nodes, from ``raw`` to ``end``, then Softmax and the context."""
    nodes = [
        helper.make_node("MatMul", ["q", "k"], ["raw"], name="scores"),
        *between,
        helper.make_node("Softmax", [end], ["p"]),
        helper.make_node("IsNaN", ["p"], ["empty"]),
        helper.make_node("Where", ["empty", "zero", "p"], ["kept"]),
        helper.make_node("MatMul", ["kept", "v"], ["y"], name="context"),
    ]
    inputs = [floats("q", "batch", 9, 16), floats("k", "batch", 16, 9), floats("v", "batch", 9, 16)]
    zero = numpy_helper.from_array(np.array(0, np.float32), "zero")
    return build(nodes, inputs, [floats("y", "batch", 9, 16)], [zero, *weights])


def test_the_softmax_is_found_behind_other_operators() -> None:
    between = [
        helper.make_node("Div", ["raw", "four"], ["divided"]),
        helper.make_node("Tanh", ["divided"], ["capped"]),
        helper.make_node("Cast", ["capped"], ["cast"], to=TensorProto.FLOAT),
        helper.make_node("Where", ["mask", "low", "cast"], ["masked"]),
        helper.make_node("Reshape", ["masked", "shape"], ["shaped"]),
        helper.make_node("Identity", ["shaped"], ["s"]),
    ]
    weights = (
        numpy_helper.from_array(np.array(4, np.float32), "four"),
        numpy_helper.from_array(np.array(-math.inf, np.float32), "low"),
        numpy_helper.from_array(np.triu(np.ones((9, 9), bool), 1), "mask"),
        numpy_helper.from_array(np.array([-1, 9, 9], np.int64), "shape"),
    )
    model = chained(*between, weights=weights)
    quantized, coverage = quantize(model)
    assert became(coverage) == {"scores": "int8", "context": "int8"}
    feeds = {"q": draw(2, 9, 16), "k": draw(2, 16, 9), "v": draw(2, 9, 16)}
    assert snr(run(model, feeds)["y"], run(quantized, feeds)["y"]) > 35


def test_a_condition_or_shape_is_no_way_to_a_softmax() -> None:
    between = [
        helper.make_node("Greater", ["raw", "zero"], ["high"]),
        helper.make_node("Where", ["high", "v9", "zero"], ["s"]),
    ]
    weights = (numpy_helper.from_array(draw(9, 9), "v9"),)
    assert became(quantize(chained(*between, weights=weights))[1]) == {"scores": "float32", "context": "int8"}


def single(nodes: list[onnx.NodeProto], inputs: list[onnx.ValueInfoProto], *y: int | str) -> onnx.ModelProto:
    kind = inputs[0].type.tensor_type.elem_type
    return build(nodes, inputs, [helper.make_tensor_value_info("y", kind, y)], [])


def test_products_outside_attention_stay() -> None:
    node = helper.make_node("MatMul", ["a", "b"], ["y"], name="product")
    found = reasons(single([node], [floats("a", "batch", 9, 16), floats("b", "batch", 16, 9)], "batch", 9, 9))
    assert found["product"] == "a product of two activations outside attention"


def test_weights_on_the_right_stay() -> None:
    nodes = [
        helper.make_node("Softmax", ["b"], ["p"], axis=1),
        helper.make_node("MatMul", ["a", "p"], ["y"], name="product"),
    ]
    inputs = [floats("a", "batch", 16, "time"), floats("b", "batch", "time", 9)]
    found = reasons(single(nodes, inputs, "batch", 16, 9))
    assert "weights are the right operand" in found["product"]


@pytest.mark.parametrize(
    ("left", "right", "y"),
    [((16,), (16, 9), (9,)), ((9, 16), (16,), (9,)), ((16,), ("batch", 16, 9), ("batch", 9))],
)
def test_vectors_stay(left: Dims, right: Dims, y: Dims) -> None:
    nodes = [
        helper.make_node("MatMul", ["a", "b"], ["s"], name="product"),
        helper.make_node("Softmax", ["s"], ["y"]),
    ]
    assert "a vector" in reasons(single(nodes, [floats("a", *left), floats("b", *right)], *y))["product"]


def test_double_precision_stays() -> None:
    nodes = [
        helper.make_node("MatMul", ["a", "b"], ["s"], name="product"),
        helper.make_node("Softmax", ["s"], ["y"]),
    ]
    inputs = [helper.make_tensor_value_info(name, TensorProto.DOUBLE, [16, 16]) for name in "ab"]
    assert "not float32" in reasons(single(nodes, inputs, 16, 16))["product"]


@pytest.mark.parametrize(
    ("sizes", "left"),
    [
        ({"width": 4}, {"scores"}),
        ({"depth": 4}, {"context"}),
        ({"queries": 1}, {"scores", "context"}),
        ({"keys": 7}, {"scores", "context"}),
    ],
)
def test_small_products_stay(sizes: dict[str, Any], left: set[str]) -> None:
    coverage = quantize(attention(**sizes))[1]
    assert {row.node for row in coverage.rows if row.became == "float32"} == left
    assert all("fewer than 8" in str(row.reason) for row in coverage.rows if row.node in left)


@pytest.mark.parametrize(("sizes", "left"), [({"width": "features"}, "scores"), ({"depth": "time"}, "context")])
def test_a_scale_that_might_span_time_steps_is_not_taken(sizes: dict[str, Any], left: str) -> None:
    coverage = quantize(attention(**sizes))[1]
    assert became(coverage) == {"scores": "int8", "context": "int8"} | {left: "float32"}
    assert any("might span time steps" in str(row.reason) for row in coverage.rows)


def test_operands_of_unknown_rank_stay() -> None:
    nodes = [
        helper.make_node("Reshape", ["q", "shape"], ["a"]),
        helper.make_node("MatMul", ["a", "k"], ["s"], name="product"),
        helper.make_node("Softmax", ["s"], ["y"]),
    ]
    shape = helper.make_tensor_value_info("shape", TensorProto.INT64, ["rank"])
    inputs = [floats("q", 9, 16), floats("k", 16, 9), shape]
    assert "unknown rank" in reasons(single(nodes, inputs, "batch", 9, 9))["product"]


def test_excluded_products_stay() -> None:
    quantized, coverage = quantize(attention(), "scores")
    assert became(coverage) == {"scores": "float32", "context": "int8"}
    assert all_ops(quantized.graph).count("MatMul") == 1


class DotProduct(nn.Module):
    """Causal self-attention with two heads."""

    def __init__(self, fused: bool = False) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(32, 32) for _ in range(3))
        self.fused = fused

    def forward(self, x: Tensor) -> Tensor:
        batch, time, width = x.shape
        q, k, v = (layer(x).view(batch, time, 2, 16).transpose(1, 2) for layer in (self.q, self.k, self.v))
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            later = torch.ones(time, time, dtype=torch.bool).triu(1)
            y = torch.softmax((q @ k.transpose(-2, -1) / 4).masked_fill(later, -math.inf), dim=-1) @ v
        return y.transpose(1, 2).reshape(batch, time, width)


def traced(folder: Path, fused: bool) -> onnx.ModelProto:
    axes = {"x": {0: "batch", 1: "time"}}
    file = folder / "traced.onnx"
    torch.onnx.export(
        DotProduct(fused).eval(),
        (torch.randn(2, 9, 32),),
        file,
        dynamo=False,
        opset_version=17,
        input_names=["x"],
        output_names=["y"],
        dynamic_axes=axes,
    )
    return onnx.load(file)


def captured(_: Path, fused: bool, opset: int = 18) -> onnx.ModelProto:
    dims = {0: torch.export.Dim("batch"), 1: torch.export.Dim("time")}
    program = torch.onnx.export(
        DotProduct(fused).eval(),
        (torch.randn(2, 9, 32),),
        dynamo=True,
        opset_version=opset,
        input_names=["x"],
        output_names=["y"],
        dynamic_shapes=(dims,),
        verbose=False,
    )
    assert program is not None
    return program.model_proto


@pytest.mark.parametrize("fused", [False, True], ids=["by hand", "fused"])
@pytest.mark.parametrize("export", [traced, captured])
def test_what_torch_exports(export: Any, fused: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = export(tmp_path, fused)
    quantized, coverage = quantize(model)
    assert [row.became for row in coverage.rows] == ["int8"] * 5
    x = draw(3, 50, 32)
    opened = session(quantized)
    whole = run(opened, {"x": x})["y"]
    assert snr(run(model, {"x": x})["y"], whole) > 35
    x[1:] *= 100
    x[0, 20:] *= -100
    np.testing.assert_array_equal(run(opened, {"x": x})["y"][0, :20], whole[0, :20])


def test_an_attention_operator_stays_whole(tmp_path: Path) -> None:
    model = captured(tmp_path, True, opset=23)
    quantized, coverage = quantize(model)
    assert "Attention" in all_ops(quantized.graph)
    assert [row.became for row in coverage.rows] == ["int8"] * 3


def test_the_attention_of_the_zoo() -> None:
    from deploykit.export import to_onnx
    from models.charlm_gru_attention import spec

    model = to_onnx(spec()).model
    quantized, coverage = quantize(model)
    context = [row for row in coverage.rows if "context" in row.form]
    assert len(context) == 1
    assert not any("scores" in row.form for row in coverage.rows)
    text = {"text": RNG.integers(32, 127, (3, 60))}
    opened = session(quantized)
    whole = run(opened, text)["logits"]
    assert snr(run(model, text)["logits"], whole) > 35
    text["text"][1:], text["text"][0, 30:] = 10, 200
    np.testing.assert_array_equal(run(opened, text)["logits"][0, :30], whole[0, :30])
