"""What several architectures share: one of PyTorch's recurrent layers, run on padded rows, whole or piece by piece."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from . import Recurrent


class Layers(Recurrent):
    """``rnn``, an ``nn.RNN``, ``nn.LSTM`` or ``nn.GRU`` with ``batch_first``, is the whole architecture."""

    def __init__(self, rnn: nn.RNNBase) -> None:
        super().__init__(rnn.input_size, rnn.hidden_size)
        self.output_size = rnn.hidden_size * (2 if rnn.bidirectional else 1)
        self.rnn = rnn

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Features [batch, time, output_size]; with ``lengths`` the rows are packed, and what is behind them is 0."""
        if lengths is None:
            whole: Tensor = self.rnn(x)[0]
            return whole
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        features, _ = pad_packed_sequence(self.rnn(packed)[0], batch_first=True, total_length=x.shape[1])
        return features


class OneWay(Layers):
    """Layers that read forwards, and so can go on where an earlier piece ended."""

    def stream(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """``forward`` from the state that an earlier piece of the same rows left; None is their beginning."""
        features, state = self.rnn(x, state)
        return features, state


class BothWays(Layers):
    """Layers that read in both directions: features of the way forward first, then those of the way back."""

    causal = False

    def summary(self, features: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Each way where it has seen the whole row: forward at the last real step, backward at the first."""
        forward = super().summary(features, lengths)[:, : self.hidden_size]
        return torch.cat((forward, features[:, 0, self.hidden_size :]), dim=1)
