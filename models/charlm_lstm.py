"""LSTM next-character model of Python source.

Bytes in, logits of the next byte out: embedding -> LSTM -> linear.
"""

from __future__ import annotations

from torch import Tensor, nn

from deploykit.types import ModelSpec

from ._charlm import VOCABULARY, charlm_spec
from ._charlm_training import CharTask
from ._training import Recipe

TASK = CharTask
TRAINING = Recipe(steps=3000, batch=32, time=96, lr=8e-3)

State = tuple[Tensor, Tensor]


class CharLSTM(nn.Module):
    """``text`` int64 [batch, time] to ``logits`` float32 [batch, time, 256]."""

    def __init__(self, hidden_size: int = 384, embedding_size: int = 64) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, embedding_size)
        self.rnn = nn.LSTM(embedding_size, hidden_size, batch_first=True)
        self.head = nn.Linear(hidden_size, VOCABULARY)

    def forward(self, text: Tensor) -> Tensor:
        y, _ = self.rnn(self.embedding(text))
        logits: Tensor = self.head(y)
        return logits

    def stream(self, text: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """``forward`` from a state (h, c) onwards, each [layers, batch, hidden_size]; training carries it along."""
        y, state = self.rnn(self.embedding(text), state)
        return self.head(y), state


def spec() -> ModelSpec:
    return charlm_spec("charlm-lstm", CharLSTM)
