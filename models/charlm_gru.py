"""GRU next-character model of Python source: the default, wide enough that int8 pays.

Bytes in, logits of the next byte out: embedding -> GRU -> linear.
"""

from __future__ import annotations

from torch import Tensor, nn

from deploykit.types import ModelSpec

from ._charlm import VOCABULARY, charlm_spec
from ._charlm_training import CharTask
from ._training import Recipe

TASK = CharTask
TRAINING = Recipe(steps=3200, batch=32, time=64, lr=8e-3)


class CharGRU(nn.Module):
    """``text`` int64 [batch, time] to ``logits`` float32 [batch, time, 256]."""

    def __init__(self, hidden_size: int = 512, embedding_size: int = 64) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, embedding_size)
        self.rnn = nn.GRU(embedding_size, hidden_size, batch_first=True)
        self.head = nn.Linear(hidden_size, VOCABULARY)

    def forward(self, text: Tensor) -> Tensor:
        y, _ = self.rnn(self.embedding(text))
        logits: Tensor = self.head(y)
        return logits

    def stream(self, text: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """``forward`` from a state [layers, batch, hidden_size] onwards; training carries it from chunk to chunk."""
        y, state = self.rnn(self.embedding(text), state)
        return self.head(y), state


def spec() -> ModelSpec:
    return charlm_spec("charlm-gru", CharGRU)
