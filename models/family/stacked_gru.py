"""Stacked GRU: two or more layers with dropout between them (Zaremba et al., arXiv 1409.2329)."""

from __future__ import annotations

from torch import nn

from deploykit.errors import ModelError

from ._layers import OneWay


class Encoder(OneWay):
    """``num_layers`` GRU layers, each on the outputs of the one below, of which ``dropout`` are dropped in training."""

    def __init__(self, input_size: int, hidden_size: int, *, num_layers: int = 2, dropout: float = 0.1) -> None:
        if num_layers < 2:
            raise ModelError(f"stacked-gru has at least 2 layers, and num_layers is {num_layers}: take gru for one.")
        super().__init__(nn.GRU(input_size, hidden_size, num_layers, dropout=dropout, batch_first=True))
