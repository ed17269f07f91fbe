"""GRU surname classifier: which of 18 languages a name comes from, read character by character.

The languages and the characters that it knows are in the weights file.
"""

from __future__ import annotations

from pathlib import Path

from deploykit import registry
from deploykit.types import ModelSpec

from ._heads import Classifier
from ._names import LONGEST, Layout, names_spec
from ._names_training import NamesTask
from ._training import Recipe
from .family.gru import Encoder

NAME = "names-gru"
TASK = NamesTask
LAYOUT = Layout
TRAINING = Recipe(
    steps=2000,
    batch=128,
    time=LONGEST,
    lr=4e-3,
    lr_scale={"encoder": 0.5},
    chunkable=False,
    validations=20,
    patience=8,
)


def build(layout: Layout) -> Classifier:
    """The module for names in those characters and languages."""
    return Classifier(Encoder(48, 128), layout.vocabulary, len(layout.languages))


def spec(weights: Path | None = None) -> ModelSpec:
    return names_spec(NAME, build, weights or registry.zoo_weights(NAME))
