"""GRU with one matrix for input and state: half the weights of a GRU whose input is as wide as its state."""

from __future__ import annotations

import torch
from torch import Tensor

from ._tied import Tied


class Encoder(Tied):
    """A tied GRU; see ``Tied`` for its options."""

    gates = 3

    def run(self, x: Tensor, state: Tensor, weights: list[Tensor], dropout: float) -> tuple[Tensor, Tensor]:
        features, state = torch.gru(x, state, weights, True, len(self.layers), dropout, dropout > 0, False, True)
        return features, state
