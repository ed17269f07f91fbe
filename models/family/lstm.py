"""LSTM: three gates and a cell beside the state (Hochreiter and Schmidhuber 1997; forget gate: Gers et al. 2000)."""

from __future__ import annotations

from torch import nn

from ._layers import OneWay


class Encoder(OneWay):
    """``num_layers`` LSTM layers with ``dropout`` between them."""

    def __init__(self, input_size: int, hidden_size: int, *, num_layers: int = 1, dropout: float = 0.0) -> None:
        super().__init__(nn.LSTM(input_size, hidden_size, num_layers, dropout=dropout, batch_first=True))
