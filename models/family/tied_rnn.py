"""Basic RNN with one matrix for input and state, h' = tanh(W (x + h) + b): half the recurrent layer's weights."""

from __future__ import annotations

import torch
from torch import Tensor

from ._tied import Tied


class Encoder(Tied):
    """A tied RNN; see ``Tied`` for its options."""

    gates = 1

    def run(self, x: Tensor, state: Tensor, weights: list[Tensor], dropout: float) -> tuple[Tensor, Tensor]:
        features, state = torch.rnn_tanh(x, state, weights, True, len(self.layers), dropout, dropout > 0, False, True)
        return features, state
