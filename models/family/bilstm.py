"""Bidirectional LSTM: reads each row both ways (Graves and Schmidhuber, 2005), so it needs the whole row."""

from __future__ import annotations

from torch import nn

from ._layers import BothWays


class Encoder(BothWays):
    """``hidden_size`` features each way; ``num_layers`` layers with ``dropout`` between them."""

    def __init__(self, input_size: int, hidden_size: int, *, num_layers: int = 1, dropout: float = 0.0) -> None:
        super().__init__(
            nn.LSTM(input_size, hidden_size, num_layers, dropout=dropout, batch_first=True, bidirectional=True)
        )
