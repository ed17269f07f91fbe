"""GRU: two gates and one state (Cho et al., arXiv 1406.1078), with PyTorch's reset after the product."""

from __future__ import annotations

from torch import nn

from ._layers import OneWay


class Encoder(OneWay):
    """``num_layers`` GRU layers with ``dropout`` between them."""

    def __init__(self, input_size: int, hidden_size: int, *, num_layers: int = 1, dropout: float = 0.0) -> None:
        super().__init__(nn.GRU(input_size, hidden_size, num_layers, dropout=dropout, batch_first=True))
