"""Two-layer tanh RNN next-character model of Python source.

Bytes in, logits of the next byte out: embedding -> RNN -> dropout -> RNN -> linear.
"""

from __future__ import annotations

from torch import Tensor, nn

from deploykit.types import ModelSpec

from ._charlm import VOCABULARY, charlm_spec
from ._charlm_training import CharTask
from ._training import Recipe

# Without gates, gradients through time are the least tame of the four: a lower rate than the others have.
TASK = CharTask
TRAINING = Recipe(steps=3200, batch=32, time=96, lr=3e-3)


class CharRNN(nn.Module):
    """``text`` int64 [batch, time] to ``logits`` float32 [batch, time, 256]."""

    def __init__(
        self, hidden_size: int = 256, num_layers: int = 2, embedding_size: int = 64, dropout: float = 0.05
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, embedding_size)
        self.rnn = nn.RNN(embedding_size, hidden_size, num_layers, dropout=dropout, batch_first=True)
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
    return charlm_spec("charlm-rnn", CharRNN)
