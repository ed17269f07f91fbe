"""GRU with weight normalization: each weight row is a length times a direction (Salimans, Kingma: arXiv 1602.07868)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from . import Recurrent


class Encoder(Recurrent):
    """``num_layers`` GRU layers with ``dropout`` between them; lengths and directions are what is trained.

    ``lengths`` change nothing: it only looks back, so that no real step sees the padding behind it.
    """

    def __init__(self, input_size: int, hidden_size: int, *, num_layers: int = 1, dropout: float = 0.0) -> None:
        super().__init__(input_size, hidden_size)
        self.rnn = nn.GRU(input_size, hidden_size, num_layers, dropout=dropout, batch_first=True)
        for name in [name for name, _ in self.rnn.named_parameters() if name.startswith("weight")]:
            weight_norm(self.rnn, name, dim=0)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        return self.stream(x)[0]

    def stream(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """``forward`` from the state [num_layers, batch, hidden_size] that an earlier piece of the rows left."""
        rnn = self.rnn
        state = x.new_zeros(rnn.num_layers, x.shape[0], rnn.hidden_size) if state is None else state
        # Not rnn(x): that would keep the weights of this moment, with their gradients' graph, in the layer.
        weights: list[Tensor] = [weight for layer in rnn.all_weights for weight in layer]
        features, state = torch.gru(
            x, state, weights, True, rnn.num_layers, rnn.dropout, self.training, rnn.bidirectional, rnn.batch_first
        )
        return features, state
