"""Hybrid of GRU and Transformer: a GRU, then causal multi-head self-attention (Vaswani et al., arXiv 1706.03762)."""

from __future__ import annotations

from torch import Tensor, nn

from . import Recurrent
from ._attention import CausalSelfAttention


class Encoder(Recurrent):
    """y = LN(h + attention(h)) of the GRU's states h, which know the order: no positions are added.

    Step t attends to steps 0 to t: padding behind a row is never seen, so ``lengths`` change nothing. ``dropout`` is
    between the GRU's layers and on what attention adds.
    """

    def __init__(
        self, input_size: int, hidden_size: int, *, num_layers: int = 1, dropout: float = 0.0, heads: int = 4
    ) -> None:
        super().__init__(input_size, hidden_size)
        between = dropout if num_layers > 1 else 0.0
        self.rnn = nn.GRU(input_size, hidden_size, num_layers, dropout=between, batch_first=True)
        self.attention = CausalSelfAttention(hidden_size, heads)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(hidden_size)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        h, _ = self.rnn(x)
        features: Tensor = self.norm(h + self.dropout(self.attention(h)))
        return features
