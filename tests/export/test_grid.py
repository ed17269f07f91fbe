"""The grid that PyTorch tests its own ONNX export of recurrent layers with, written again: 192 cases."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from deploykit.types import ModelSpec, TensorSpec, ValueRange
from tests.export.agree import assert_agrees, recurrent

KINDS: dict[str, Any] = {
    "rnn-tanh": (nn.RNN, {"nonlinearity": "tanh"}),
    "rnn-relu": (nn.RNN, {"nonlinearity": "relu"}),
    "lstm": (nn.LSTM, {}),
    "gru": (nn.GRU, {}),
}
GRID = list(
    itertools.product(
        KINDS, (1, 3), (False, True), (False, True), ("unpacked", "batch-first", "time-first"), (0.0, 0.5)
    )
)


class Layer(nn.Module):
    """A recurrent layer with all it can be given and all it returns."""

    def __init__(self, layer: nn.RNNBase, packed: bool, given: bool) -> None:
        super().__init__()
        self.layer = layer
        self.packed = packed
        self.given = given

    def forward(self, x: Tensor, *rest: Tensor) -> Any:
        lengths, states = (rest[0], rest[1:]) if self.packed else (None, rest)
        state = None if not self.given else states[0] if len(states) == 1 else tuple(states)
        if lengths is None:
            return self.layer(x, state)
        first = self.layer.batch_first
        y, last = self.layer(pack_padded_sequence(x, lengths, first, enforce_sorted=False), state)
        padded, counts = pad_packed_sequence(y, first)
        return padded, counts, last


def spec_of(layer: nn.RNNBase, packed: bool, given: bool) -> ModelSpec:
    """The layer as a model, its lengths and states inputs where it has them."""
    axes = ("batch", "time") if layer.batch_first else ("time", "batch")
    inputs = [TensorSpec("x", "float32", (*axes, layer.input_size))]
    if packed:
        inputs.append(TensorSpec("lengths", "int64", ("batch",)))
    if given:
        rows = layer.num_layers * (2 if layer.bidirectional else 1)
        inputs.append(TensorSpec("h0", "float32", (rows, "batch", layer.proj_size or layer.hidden_size)))
        if isinstance(layer, nn.LSTM):
            inputs.append(TensorSpec("c0", "float32", (rows, "batch", layer.hidden_size)))
    ranges = {"lengths": ValueRange(1, "time")} if packed else {}
    return ModelSpec(Layer(layer, packed, given).eval().requires_grad_(False), tuple(inputs), ranges=ranges)


@pytest.mark.parametrize(("kind", "layers", "bidirectional", "state", "packed", "dropout"), GRID)
@pytest.mark.filterwarnings("ignore:dropout option adds dropout")
def test_every_case_of_the_grid(
    kind: str, layers: int, bidirectional: bool, state: bool, packed: str, dropout: float
) -> None:
    torch.manual_seed(0)
    cls, options = KINDS[kind]
    layer = cls(
        5, 7, layers, bidirectional=bidirectional, batch_first=packed == "batch-first", dropout=dropout, **options
    )
    made = assert_agrees(spec_of(layer, packed != "unpacked", state))
    assert len(recurrent(made)) == layers == made.layers
    assert made.model.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    assert made.model.graph.input[0].type.tensor_type.shape.dim[1].dim_param
    operators = [node for node in made.model.graph.node if node.op_type in ("RNN", "LSTM", "GRU")]
    assert all(bool(node.input[4:5] and node.input[4]) == (packed != "unpacked") for node in operators)
    assert all(bool(node.input[5:6] and node.input[5]) == state for node in operators)
    assert "Scan" not in {node.op_type for node in made.model.graph.node}


@settings(max_examples=24, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    kind=st.sampled_from(sorted(KINDS)),
    options=st.fixed_dictionaries(
        {
            "input_size": st.integers(1, 9),
            "hidden_size": st.integers(2, 11),
            "num_layers": st.integers(1, 3),
            "bidirectional": st.booleans(),
            "bias": st.booleans(),
            "batch_first": st.booleans(),
        }
    ),
    projected=st.booleans(),
    given_state=st.booleans(),
    packed=st.booleans(),
    shapes=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 33)), min_size=2, max_size=4),
    opset=st.sampled_from([17, 18, 20, 22, 25]),
)
def test_any_layer_at_any_shape(
    kind: str,
    options: dict[str, Any],
    projected: bool,
    given_state: bool,
    packed: bool,
    shapes: list[tuple[int, int]],
    opset: int,
) -> None:
    torch.manual_seed(0)
    cls, more = KINDS[kind]
    if kind == "lstm" and projected:
        more = {"proj_size": max(1, options["hidden_size"] // 2)}
    made = assert_agrees(spec_of(cls(**options, **more), packed, given_state), opset, shapes)
    assert len(recurrent(made)) == options["num_layers"]
