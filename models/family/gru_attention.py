"""GRU with causal additive attention: it looks back over its own outputs (Bahdanau et al., arXiv 1409.0473)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from . import Recurrent
from ._attention import CausalAdditiveAttention


class Encoder(Recurrent):
    """GRU, attention, and tanh(linear) of both; ``attention_size`` is the width in which states are compared.

    Step t attends to steps 0 to t: padding behind a row is never seen, so ``lengths`` change nothing. Memory: time x
    time x ``attention_size`` floats a row.
    """

    def __init__(
        self, input_size: int, hidden_size: int, *, num_layers: int = 1, dropout: float = 0.0, attention_size: int = 32
    ) -> None:
        super().__init__(input_size, hidden_size)
        self.rnn = nn.GRU(input_size, hidden_size, num_layers, dropout=dropout, batch_first=True)
        self.attention = CausalAdditiveAttention(hidden_size, attention_size)
        self.combine = nn.Linear(2 * hidden_size, hidden_size)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        h, _ = self.rnn(x)
        return torch.tanh(self.combine(torch.cat((self.attention(h), h), dim=-1)))
