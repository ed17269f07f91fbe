"""Basic RNN with tanh: h' = tanh(W x + U h + b) (Elman, Cognitive Science 14, 1990)."""

from __future__ import annotations

from torch import nn

from ._layers import OneWay


class Encoder(OneWay):
    """``num_layers`` RNN layers with ``dropout`` between them."""

    def __init__(self, input_size: int, hidden_size: int, *, num_layers: int = 1, dropout: float = 0.0) -> None:
        super().__init__(
            nn.RNN(input_size, hidden_size, num_layers, nonlinearity="tanh", dropout=dropout, batch_first=True)
        )
