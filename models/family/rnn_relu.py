"""Basic RNN with relu: gradients do not fade where it is active (Le et al., arXiv 1504.00941)."""

from __future__ import annotations

from torch import nn

from ._layers import OneWay


class Encoder(OneWay):
    """``num_layers`` RNN layers with ``dropout`` between them."""

    def __init__(self, input_size: int, hidden_size: int, *, num_layers: int = 1, dropout: float = 0.0) -> None:
        super().__init__(
            nn.RNN(input_size, hidden_size, num_layers, nonlinearity="relu", dropout=dropout, batch_first=True)
        )
