from __future__ import annotations

import pytest
import torch
from torch import nn

from models._initialization import gate_blocks, initialize_recurrent

HIDDEN = 12
GATES = {nn.RNN: 1, nn.GRU: 3, nn.LSTM: 4}


@pytest.mark.parametrize("kind", GATES)
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}])
def test_recurrent_weights_are_orthogonal_gate_by_gate(kind: type[nn.RNNBase], options: dict[str, int]) -> None:
    layer = kind(5, HIDDEN, **options)  # type: ignore[arg-type]
    initialize_recurrent(nn.Sequential(layer))
    recurrent = [weight for name, weight in layer.named_parameters() if name.startswith("weight_hh")]
    assert len(recurrent) == (4 if options else 1)
    for weight in recurrent:
        blocks = gate_blocks(layer, weight)
        assert len(blocks) == GATES[kind]
        for block in blocks:
            torch.testing.assert_close(block @ block.T, torch.eye(HIDDEN), atol=1e-5, rtol=0)
        assert not any(torch.equal(blocks[0], other) for other in blocks[1:])


def test_an_lstm_begins_by_remembering() -> None:
    layer = nn.LSTM(5, HIDDEN)
    initialize_recurrent(layer)
    biases = [value for name, value in layer.named_parameters() if name.startswith("bias")]
    i, f, g, o = gate_blocks(layer, biases[0] + biases[1])
    assert torch.equal(f, torch.ones(HIDDEN))
    assert all(torch.equal(other, torch.zeros(HIDDEN)) for other in (i, g, o))


def test_other_layers_and_layers_without_bias_are_left_in_peace() -> None:
    linear = nn.Linear(3, 3)
    before = linear.weight.clone()
    initialize_recurrent(nn.ModuleList([linear, nn.GRU(3, HIDDEN, bias=False)]))
    assert torch.equal(linear.weight, before)
