"""Initial weights of recurrent layers, the ones that are known to train."""

from __future__ import annotations

import torch
from torch import Tensor, nn


@torch.no_grad()
def initialize_recurrent(module: nn.Module) -> None:
    """Initialize every RNN, LSTM and GRU below ``module`` in place.

    Recurrent weights: orthogonal, each gate's block by itself (Saxe et al., arXiv 1312.6120), so that at first neither
    states nor gradients grow or fade. Input weights: Glorot, gate by gate. Biases: zero, but 1 in sum for an
    LSTM's forget gate (Jozefowicz et al., ICML 2015), which so begins by remembering.
    """
    for layer in module.modules():
        if isinstance(layer, nn.RNNBase):
            for name, parameter in layer.named_parameters():
                _initialize(layer, name, parameter)


def gate_blocks(layer: nn.RNNBase, parameter: Tensor) -> tuple[Tensor, ...]:
    """The parameter's rows gate by gate, as views, in PyTorch's order: RNN one; GRU r, z, n; LSTM i, f, g, o."""
    return torch.split(parameter, layer.hidden_size)


def _initialize(layer: nn.RNNBase, name: str, parameter: Tensor) -> None:
    kind = name.partition("_l")[0]
    if kind == "weight_hh":
        for block in gate_blocks(layer, parameter):
            nn.init.orthogonal_(block)
    elif kind == "weight_ih":
        for block in gate_blocks(layer, parameter):
            nn.init.xavier_uniform_(block)
    elif kind in {"bias_ih", "bias_hh"}:
        nn.init.zeros_(parameter)
        if isinstance(layer, nn.LSTM) and kind == "bias_ih":
            nn.init.ones_(gate_blocks(layer, parameter)[1])
