"""GRU with causal additive attention, next-character model of Python source.

Bytes in, logits of the next byte out: embedding -> GRU -> causal attention -> tanh(linear) -> linear. Scores are
v^T tanh(W_q h_t + W_k h_s), as in Bahdanau, Cho and Bengio (arXiv 1409.0473, appendix A.1.2), here with h_t for s <= t.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from deploykit.types import ModelSpec

from ._charlm import VOCABULARY, charlm_spec
from ._charlm_training import CharTask
from ._training import Recipe
from .family._attention import CausalAdditiveAttention

TASK = CharTask
TRAINING = Recipe(steps=2000, batch=32, time=96, lr=8e-3, chunkable=False)

LONGEST = 1024  # the scores take time x time x attention_size floats a row


class CharGRUAttention(nn.Module):
    """``text`` int64 [batch, time] to ``logits`` float32 [batch, time, 256]."""

    def __init__(self, hidden_size: int = 256, attention_size: int = 32, embedding_size: int = 64) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, embedding_size)
        self.rnn = nn.GRU(embedding_size, hidden_size, batch_first=True)
        self.attention = CausalAdditiveAttention(hidden_size, attention_size)
        self.combine = nn.Linear(2 * hidden_size, hidden_size)
        self.head = nn.Linear(hidden_size, VOCABULARY)

    def forward(self, text: Tensor) -> Tensor:
        y, _ = self.rnn(self.embedding(text))
        return self._predict(y)

    def stream(self, text: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """``forward`` from a GRU state [1, batch, hidden_size] onwards; attention begins anew with each chunk."""
        y, state = self.rnn(self.embedding(text), state)
        return self._predict(y), state

    def _predict(self, y: Tensor) -> Tensor:
        both = torch.cat((self.attention(y), y), dim=-1)
        logits: Tensor = self.head(torch.tanh(self.combine(both)))
        return logits


def spec() -> ModelSpec:
    return charlm_spec("charlm-gru-attention", CharGRUAttention, longest=LONGEST)
