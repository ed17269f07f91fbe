"""Layer-normalized GRU: both products normalized before the gates (Ba et al., arXiv 1607.06450, supplement)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import Recurrent


class Layer(nn.Module):
    """One layer, a loop over steps. With LN for layer normalization with a gain and a bias of its own in each place:

    (z, r) = sigmoid(LN(W x) + LN(U h)),  n = tanh(LN(V x) + r * LN(Q h)),  h' = (1 - z) h + z n.

    W over V are ``weight_ih_l0``, U over Q ``weight_hh_l0``; the biases are those of the normalizations.
    """

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.weight_ih_l0 = nn.Parameter(torch.empty(3 * hidden_size, input_size))
        self.weight_hh_l0 = nn.Parameter(torch.empty(3 * hidden_size, hidden_size))
        for weight in (self.weight_ih_l0, self.weight_hh_l0):
            nn.init.uniform_(weight, -(hidden_size**-0.5), hidden_size**-0.5)
        self.gates_x, self.gates_h = nn.LayerNorm(2 * hidden_size), nn.LayerNorm(2 * hidden_size)
        self.new_x, self.new_h = nn.LayerNorm(hidden_size), nn.LayerNorm(hidden_size)

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """``x`` [batch, time, input] from the state ``h`` [batch, hidden] on: all states, and the last."""
        sizes = [2 * self.hidden_size, self.hidden_size]
        # What comes from the input needs no state: all steps at once.
        gates_x, new_x = torch.split(F.linear(x, self.weight_ih_l0), sizes, dim=2)
        gates_x, new_x = self.gates_x(gates_x), self.new_x(new_x)
        states = []
        for step in range(x.shape[1]):
            gates_h, new_h = torch.split(F.linear(h, self.weight_hh_l0), sizes, dim=1)
            z, r = torch.sigmoid(gates_x[:, step] + self.gates_h(gates_h)).chunk(2, dim=1)
            n = torch.tanh(new_x[:, step] + r * self.new_h(new_h))
            h = (1 - z) * h + z * n
            states.append(h)
        return torch.stack(states, dim=1), h


class Encoder(Recurrent):
    """``num_layers`` layers with ``dropout`` between them.

    ``lengths`` change nothing: it only looks back, so that no real step sees the padding behind it.
    """

    def __init__(self, input_size: int, hidden_size: int, *, num_layers: int = 1, dropout: float = 0.0) -> None:
        super().__init__(input_size, hidden_size)
        self.layers = nn.ModuleList(
            Layer(hidden_size if above else input_size, hidden_size) for above in range(num_layers)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        return self.stream(x)[0]

    def stream(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """``forward`` from the state [num_layers, batch, hidden_size] that an earlier piece of the rows left."""
        state = x.new_zeros(len(self.layers), x.shape[0], self.hidden_size) if state is None else state
        last = []
        for index, layer in enumerate(self.layers):
            x, h = layer(self.dropout(x) if index else x, state[index])
            last.append(h)
        return x, torch.stack(last)
