"""Initial weights of recurrent layers, the ones that are known to train."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized


@torch.no_grad()
def initialize_recurrent(module: nn.Module, *, orthogonal: bool = True, forget_bias: float = 1.0) -> None:
    """Initialize every recurrent layer and cell below ``module`` in place.

    Recurrent weights: orthogonal, each gate's block by itself (Saxe et al., arXiv 1312.6120), so that at first neither
    states nor gradients grow or fade; without ``orthogonal`` uniform within 1 / sqrt(hidden), as PyTorch has them.
    Input weights: Glorot, gate by gate; of a layer that has the recurrent weights for those too, it is these that
    count. Biases: zero, but ``forget_bias`` in sum for an LSTM's forget gate (Jozefowicz et al., ICML 2015), which so
    begins by remembering.

    A layer is recurrent if it names its parameters as PyTorch's layers do, ``weight_hh…``, and has a ``hidden_size``.
    What a parametrization computes, such as weight normalization, is set through it.
    """
    for layer in module.modules():
        for name, value in list(recurrent_parameters(layer)):
            kind = name.partition("_l")[0]
            if kind == "weight_hh":
                _recurrent_weight(layer, value, orthogonal)
            elif kind == "weight_ih":
                for block in gate_blocks(layer, value):
                    nn.init.xavier_uniform_(block)
            elif kind in {"bias_ih", "bias_hh"}:
                nn.init.zeros_(value)
                if isinstance(layer, nn.LSTM | nn.LSTMCell) and kind == "bias_ih":
                    nn.init.constant_(gate_blocks(layer, value)[1], forget_bias)
            if _computed(layer, name):
                setattr(layer, name, value)


def recurrent_parameters(layer: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The layer's own weights and biases by PyTorch's names, if it is recurrent; copies where they are computed."""
    names = [name for name, _ in layer.named_parameters(recurse=False)]
    if is_parametrized(layer):
        names += list(cast(nn.ModuleDict, layer.parametrizations))
    if any(name.startswith("weight_hh") for name in names):
        for name in names:
            value: Tensor = getattr(layer, name)
            yield name, value.clone() if _computed(layer, name) else value


def gate_blocks(layer: nn.Module, parameter: Tensor) -> tuple[Tensor, ...]:
    """The parameter's rows gate by gate, as views, in PyTorch's order: RNN one; GRU r, z, n; LSTM i, f, g, o."""
    return torch.split(parameter, cast(int, layer.hidden_size))


def _recurrent_weight(layer: nn.Module, value: Tensor, orthogonal: bool) -> None:
    if not orthogonal:
        nn.init.uniform_(value, -(value.shape[1] ** -0.5), value.shape[1] ** -0.5)
        return
    for block in gate_blocks(layer, value):
        nn.init.orthogonal_(block)


def _computed(layer: nn.Module, name: str) -> bool:
    return is_parametrized(layer, name)
