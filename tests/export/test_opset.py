"""Graphs of opset 18 written in opset 17: the same answers in onnxruntime, or a refusal where 17 has no word."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import parser
from torch import nn

from deploykit.errors import ExportError
from deploykit.export._opset import to_17

HEADER = '<ir_version: 10, opset_import: ["" : 18]>'
X = np.random.default_rng(0).standard_normal((3, 4, 5)).astype(np.float32)


def parse(text: str) -> onnx.ModelProto:
    model = parser.parse_model(HEADER + text)
    onnx.checker.check_model(model, full_check=True)
    return model


def answers(model: onnx.ModelProto, feeds: dict[str, Any]) -> list[Any]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found: list[Any] = session.run(None, feeds)
    return found


def check(model: onnx.ModelProto, feeds: dict[str, Any]) -> onnx.ModelProto:
    """The model in opset 17, which answers as before, while the one of opset 18 is left alone."""
    before = model.SerializeToString(deterministic=True)
    changed = to_17(model)
    assert model.SerializeToString(deterministic=True) == before
    assert [entry.version for entry in changed.opset_import if not entry.domain] == [17]
    assert changed.ir_version == 8
    onnx.checker.check_model(changed, full_check=True)
    for old, new in zip(answers(model, feeds), answers(changed, feeds), strict=True):
        np.testing.assert_array_equal(new, old)
    assert list(changed.graph.input) == list(model.graph.input)
    assert list(changed.graph.output) == list(model.graph.output)
    return changed


REDUCTIONS = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare")
# What holds the axes, what makes them, and how the reduction reads them.
AXES = {
    "initializer": ("<int64[2] axes = {0, 2}>", "", ", axes"),
    "negative": ("<int64[1] axes = {-1}>", "", ", axes"),
    "constant": ("", "axes = Constant<value = int64[2] {0, 2}>()", ", axes"),
    "constant ints": ("", "axes = Constant<value_ints = [0, 2]>()", ", axes"),
    "none": ("", "", ""),
}


@pytest.mark.parametrize("kind", REDUCTIONS)
@pytest.mark.parametrize("form", list(AXES))
def test_axes_of_reductions_become_attributes(kind: str, form: str) -> None:
    held, made, read = AXES[form]
    lines = f"{made} z = Abs(x) r = Reduce{kind}<keepdims = 0>(z{read}) y = ReduceSum<keepdims = 0>(r)"
    changed = check(parse(f"g (float[N, 4, 5] x) => (float y) {held} {{ {lines} }}"), {"x": X})
    assert not changed.graph.initializer
    assert "Constant" not in {node.op_type for node in changed.graph.node}


def test_a_constant_that_others_read_stays() -> None:
    text = """g (float[N, 4, 5] x) => (float y, int64[1] kept) <int64[1] axes = {1}> {
      m = ReduceMean(x, axes)  y = ReduceSum<keepdims = 0>(m)  kept = Identity(axes) }"""
    assert [tensor.name for tensor in check(parse(text), {"x": X}).graph.initializer] == ["axes"]


@pytest.mark.parametrize("kind", ["Max", "Mean", "Min", "Prod"])
def test_a_reduction_over_no_axes_is_its_input(kind: str) -> None:
    line = f"y = Reduce{kind}<noop_with_empty_axes = 1>(x, axes)"
    model = parse(f"g (float[N, 4, 5] x) => (float[N, 4, 5] y) <int64[0] axes = {{}}> {{ {line} }}")
    assert [node.op_type for node in check(model, {"x": X}).graph.node] == ["Identity"]


@pytest.mark.parametrize(("axis", "parts"), [(1, 2), (-2, 4), (2, 2), (2, 5)])
def test_splits_by_a_number_of_outputs(axis: int, parts: int) -> None:
    names = [f"y{index}" for index in range(parts)]
    declared = ", ".join(f"float[a, b, of_{name}] {name}" for name in names)
    line = f"z = Neg(x) {', '.join(names)} = Split<axis = {axis}, num_outputs = {parts}>(z)"
    check(parse(f"g (float[N, 4, 5] x) => ({declared}) {{ {line} }}"), {"x": X})


@pytest.mark.parametrize(
    "line",
    [
        "y = Pad(x, pads, , axes)",
        "y = Pad<mode = 'reflect'>(x, ones)",
        "y = Pad(x, pads, value, axes)",
        "y = Resize<mode = 'linear', axes = [1, 2]>(x, , scales)",
        "y = Resize<mode = 'nearest', axes = [0, 1, 2], keep_aspect_ratio_policy = 'stretch'>(x, , three)",
        "y = Resize<mode = 'nearest', antialias = 0>(x, , , sizes)",
        "y = ScatterND<reduction = 'add'>(x, at, row)",
        "y = ScatterElements<axis = 1>(x, where, what)",
        "y = LpPool<kernel_shape = [2], p = 2, ceil_mode = 0, dilations = [1]>(x)",
    ],
)
def test_what_18_added_to_other_operators_goes(line: str) -> None:
    held = """<int64[2] pads = {1, 2}, int64[1] axes = {-1}, float value = {7.0}, int64[6] ones = {0, 1, 1, 0, 1, 1},
        float[2] scales = {2.0, 2.0}, float[3] three = {1.0, 2.0, 2.0}, int64[3] sizes = {3, 8, 7},
        int64[1, 1] at = {1}, float[1, 4, 5] row = {1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0},
        int64[1, 1, 1] where = {2}, float[1, 1, 1] what = {5}>"""
    line = line.replace("'", '"')
    check(parse(f"g (float[3, 4, 5] x) => (float[a, b, c] y) {held} {{ {line} }}"), {"x": X})


SCAN = """g (float[T, 4] x, float[4] s) => (float[4] last, float[T, 2] y)
<int64[1] axes = {0}> {
  last, y = Scan<num_scan_inputs = 1, body = step (float[4] state, float[4] one) => (float[4] next, float[2] out) {
    mean = ReduceMean(one, axes)
    most = ReduceMax<keepdims = 1>(state, axes)
    sum = Add(one, state)
    scaled = Mul(sum, mean)
    next = Tanh(scaled)
    first, second = Split<num_outputs = 2>(next)
    out = Add(first, most)
  }>(s, x)
}"""


def test_bodies_of_scans_are_rewritten_too() -> None:
    changed = check(parse(SCAN), {"x": X[0, :3, :4].copy(), "s": np.ones(4, np.float32)})
    assert not changed.graph.initializer
    body = changed.graph.node[0].attribute
    inner = next(attribute.g for attribute in body if attribute.name == "body")
    assert [attribute.name for attribute in inner.node[0].attribute] == ["axes"]


def test_branches_with_one_name_for_two_sizes_are_not_mixed_up() -> None:
    text = """g (bool c, float[4] x) => (float[2] y) { y = If(c) <
        then_branch = t () => (float[2] a) { z = Identity(x)  a, b = Split<num_outputs = 2>(z) },
        else_branch = e () => (float[2] d) { z = Concat<axis = 0>(x, x)  d0, f, g, d = Split<num_outputs = 4>(z) }> }"""
    model = parse(text)
    with pytest.raises(ExportError, match=r"Split \(a\).*opset 18"):
        to_17(model)


class Net(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm = nn.LayerNorm(8)
        self.conv = nn.Conv1d(8, 8, 3, padding=1)
        self.rnn = getattr(nn, kind)(8, 6, batch_first=True, bidirectional=True)
        self.head = nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x = self.norm(self.conv(x.transpose(1, 2)).transpose(1, 2))
        y, _ = self.rnn(x)
        logits = self.head(y)
        first, second = nn.functional.pad(x, (1, 1)).chunk(2, dim=-1)
        pooled = logits.amax(1) + logits.mean((0, 1)) + logits.logsumexp(1) + logits.norm(dim=1)
        kept = torch.where(logits.cumsum(1) > 0, logits, -torch.ones_like(logits)).softmax(-1)
        return kept, pooled, first + second, nn.functional.interpolate(x, scale_factor=2.0)


@pytest.mark.parametrize("kind", ["RNN", "GRU", "LSTM"])
def test_what_torch_writes_at_18(kind: str) -> None:
    x = torch.randn(3, 7, 8)
    dynamic = (
        {0: torch.export.Dim("batch"), 1: torch.export.Dim("time")} if kind == "" else {0: torch.export.Dim("batch")}
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            Net(kind).eval(), (x,), dynamo=True, opset_version=18, dynamic_shapes=(dynamic,), verbose=False
        )
    assert program is not None
    model = program.model_proto
    changed = check(model, {model.graph.input[0].name: x.numpy()})
    # Names and what the exporter noted stay: later passes read them.
    kept = {node.name for node in changed.graph.node}
    assert [node.name for node in changed.graph.node] == [n.name for n in model.graph.node if n.name in kept]
    noted = {node.name: list(node.metadata_props) for node in model.graph.node}
    assert all(list(node.metadata_props) == noted[node.name] for node in changed.graph.node)


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ("float[3, 4] x, int64[1] axes", "y = ReduceMean(x, axes)"),
        ("float[3, 4] x", "y = ReduceL1<noop_with_empty_axes = 1>(x)"),
        ("float[3, N] x", "y, z = Split<axis = 1, num_outputs = 2>(x)"),
        ("float[3, 4] x, int64[2] pads", "y = Pad(x, pads, , one)"),
        ("float[1, 2, 4] x", 'y = Resize<mode = "linear", antialias = 1>(x, , scales)'),
        ("float[N, 2, 4] x", "y = Resize<axes = [2]>(x, , , one)"),
        ("float[N, 2, 4] x", 'y = Resize<keep_aspect_ratio_policy = "not_larger">(x, , , three)'),
        ("float[3] x", 'y = ScatterND<reduction = "max">(x, at, update)'),
        ("float[3] x", 'y = ScatterElements<reduction = "min">(x, one, update)'),
        ("float[1, 2, 5] x", "y = LpPool<kernel_shape = [2], ceil_mode = 1>(x)"),
        ("float[3] x", "y = Mish(x)"),
        ("int32[3] x", "y = BitwiseAnd(x, x)"),
        ("int32[3] x", "y = BitwiseNot(x)"),
        ("float[3] x", "y = CenterCropPad(x, one)"),
        ("float[1, 2, 5] x", "y = GroupNormalization<num_groups = 1>(x, update, update)"),
    ],
)
def test_refused_by_name(values: str, line: str) -> None:
    held = """<int64[1] one = {1}, int64[3] three = {1, 2, 8}, float[3] scales = {1, 1, 2}, int64[1, 1] at = {1},
        float[1] update = {2}>"""
    operator = line.partition(" = ")[2].partition("<")[0].partition("(")[0]
    with pytest.raises(ExportError, match=rf"has {operator} \(y\), and opset 17 .*: choose opset 18 or later\.$"):
        # Unchecked: the checker itself no longer takes GroupNormalization at 18.
        to_17(parser.parse_model(f"{HEADER} g ({values}) => (float y) {held} {{ {line} }}"))


@pytest.mark.parametrize("version", [17, 19])
def test_only_models_of_18_are_taken(version: int) -> None:
    model = parse("g (float[3] x) => (float[3] y) { y = Neg(x) }")
    model.opset_import[0].version = version
    with pytest.raises(ExportError, match=f"this one is of opset {version}"):
        to_17(model)
