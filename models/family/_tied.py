"""One matrix for the input and the state: what the tied architectures share."""

from __future__ import annotations

from abc import abstractmethod
from typing import cast

import torch
from torch import Tensor, nn

from . import Recurrent


class TiedLayer(nn.Module):
    """Parameters of one layer under PyTorch's names; ``weight_hh_l0`` [gates * hidden, hidden] is weight_ih_l0 too.

    A second name for one tensor would be saved twice, and safetensors refuses that: so there is only one.
    """

    def __init__(self, hidden_size: int, gates: int) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.weight_hh_l0 = nn.Parameter(torch.empty(gates * hidden_size, hidden_size))
        self.bias_ih_l0 = nn.Parameter(torch.zeros(gates * hidden_size))
        self.bias_hh_l0 = nn.Parameter(torch.zeros(gates * hidden_size))
        nn.init.uniform_(self.weight_hh_l0, -(hidden_size**-0.5), hidden_size**-0.5)

    def weights(self) -> list[Tensor]:
        return [self.weight_hh_l0, self.weight_hh_l0, self.bias_ih_l0, self.bias_hh_l0]


class Tied(Recurrent):
    """``num_layers`` layers with ``dropout`` between them. An input of another size is projected to ``hidden_size``.

    ``lengths`` change nothing: it only looks back, so that no real step sees the padding behind it.
    """

    #: How many gates a layer's weights hold, one below the other.
    gates: int

    def __init__(self, input_size: int, hidden_size: int, *, num_layers: int = 1, dropout: float = 0.0) -> None:
        super().__init__(input_size, hidden_size)
        same = input_size == hidden_size
        self.project = nn.Identity() if same else nn.Linear(input_size, hidden_size, bias=False)
        self.layers = nn.ModuleList(TiedLayer(hidden_size, self.gates) for _ in range(num_layers))
        self.dropout = dropout

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        return self.stream(x)[0]

    def stream(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """``forward`` from the state [num_layers, batch, hidden_size] that an earlier piece of the rows left."""
        state = x.new_zeros(len(self.layers), x.shape[0], self.hidden_size) if state is None else state
        weights = [weight for layer in self.layers for weight in cast(TiedLayer, layer).weights()]
        return self.run(self.project(x), state, weights, self.dropout if self.training else 0.0)

    @abstractmethod
    def run(self, x: Tensor, state: Tensor, weights: list[Tensor], dropout: float) -> tuple[Tensor, Tensor]:
        """The layers by PyTorch's own function for them, which takes weights from wherever they come."""
