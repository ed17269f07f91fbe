"""Bidirectional GRU surname classifier: which of 18 languages a name comes from, whatever its length.

Character by character, both ways, packed. The languages and the characters that it knows are in the weights file.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from deploykit import registry
from deploykit.types import ModelSpec

from ._heads import Classifier
from ._names import LONGEST, Layout, names_spec
from ._names_training import NamesTask
from ._training import Recipe
from .family.bigru import Encoder

NAME = "names-gru"
TASK = NamesTask
LAYOUT = Layout
TRAINING = Recipe(
    steps=5000,
    batch=128,
    time=LONGEST,
    lr=5e-3,
    lr_scale={},
    chunkable=False,
    validations=20,
    patience=8,
    average=0.99,
)


class NamesGRU(Classifier):
    """``text`` int64 [batch, time] and ``lengths`` int64 [batch] to ``logits`` [batch, languages].

    Few names and many weights: some of what goes into the network and of what comes out is dropped in training.
    """

    def __init__(self, layout: Layout, hidden_size: int = 128, embedding_size: int = 64, dropout: float = 0.2) -> None:
        super().__init__(Encoder(embedding_size, hidden_size), layout.vocabulary, len(layout.languages))
        self.dropout = nn.Dropout(dropout)

    def forward(self, text: Tensor, lengths: Tensor) -> Tensor:
        features = self.encoder(self.dropout(self.embedding(text)), lengths)
        logits: Tensor = self.head(self.dropout(self.encoder.summary(features, lengths)))
        return logits


def build(layout: Layout) -> NamesGRU:
    """The module for names in those characters and languages."""
    return NamesGRU(layout)


def spec(weights: Path | None = None) -> ModelSpec:
    return names_spec(NAME, build, weights or registry.zoo_weights(NAME))
