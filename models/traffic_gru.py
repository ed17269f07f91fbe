"""GRU traffic forecaster: two hours of five-minute flow, occupancy and speed to the next flow, in vehicles.

Raw units in and out; what the columns are, and their scales, is in the weights file.
"""

from __future__ import annotations

from pathlib import Path

from deploykit import registry
from deploykit.types import ModelSpec

from ._traffic import Layout, TrafficForecaster, traffic_spec
from ._traffic_training import TrafficTask
from ._training import Recipe
from .family.gru import Encoder

NAME = "traffic-gru"
TASK = TrafficTask
LAYOUT = Layout
TRAINING = Recipe(
    steps=1000,
    batch=64,
    time=24,
    lr=4e-3,
    lr_scale={},
    chunkable=False,
    validations=20,
    patience=10,
    average=0.99,
)


def build(layout: Layout) -> TrafficForecaster:
    """The module for a series of that layout."""
    return TrafficForecaster(Encoder(layout.input_size, 32), layout)


def spec(weights: Path | None = None) -> ModelSpec:
    return traffic_spec(NAME, build, weights or registry.zoo_weights(NAME))
