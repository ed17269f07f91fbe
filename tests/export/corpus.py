"""Models as users have them: small, but put together as theirs are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence


class ConvTagger(nn.Module):
    """Convolution and pooling before a bidirectional GRU, as in acoustic models: a quarter of the frames come out."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv1d(6, 8, 5, stride=2, padding=2), nn.BatchNorm1d(8), nn.ReLU(), nn.MaxPool1d(2)
        )
        self.rnn = nn.GRU(8, 9, num_layers=2, bidirectional=True, batch_first=True)
        self.norm = nn.LayerNorm(18)
        self.head = nn.Linear(18, 4)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.rnn(self.conv(x.transpose(1, 2)).transpose(1, 2))
        return functional.log_softmax(self.head(self.norm(y)), dim=-1)


class AttentionStep(nn.Module):
    """One step of a translation model's decoder: token, state tuple and encoder memory in, logits and state out."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(30, 8)
        self.cell = nn.GRUCell(8 + 6, 12)
        self.query = nn.Linear(12, 6)
        self.out = nn.Linear(12, 30)

    def forward(self, token: Tensor, state: tuple[Tensor, ...], *, memory: Tensor, mask: Tensor) -> dict[str, Any]:
        (h,) = state
        scores = torch.einsum("bd,btd->bt", self.query(h), memory).masked_fill(mask == 0, -1e4)
        weights = torch.softmax(scores, dim=-1)
        context = torch.einsum("bt,btd->bd", weights, memory)
        h = self.cell(torch.cat([self.embedding(token), context], dim=-1), h)
        return {"logits": self.out(h), "state": (h,), "weights": weights}


class VoiceActivity(nn.Module):
    """A stream's frame by frame decision with its state as an ordinary input and output."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv1d(5, 8, 3, padding=1), nn.ReLU())
        self.rnn = nn.LSTM(8, 10, batch_first=True)
        self.decoder = nn.Sequential(nn.ReLU(), nn.Conv1d(10, 1, 1), nn.Sigmoid())

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        y, state = self.rnn(self.encoder(x.transpose(1, 2)).transpose(1, 2), (h, c))
        return self.decoder(y.transpose(1, 2)).squeeze(1), state


class GroupedGru(nn.Module):
    """Several GRUs side by side on groups of channels, shuffled between two such stages, as in speech enhancement."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.ModuleList(nn.GRU(4, 5, batch_first=True) for _ in range(2))
        self.second = nn.ModuleList(nn.GRU(5, 4, batch_first=True) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([rnn(part)[0] for rnn, part in zip(self.first, x.chunk(2, dim=-1), strict=True)], dim=-1)
        y = y.reshape(y.shape[0], y.shape[1], 2, 5).transpose(2, 3).reshape(y.shape[0], y.shape[1], 10)
        z = torch.cat([rnn(part)[0] for rnn, part in zip(self.second, y.chunk(2, dim=-1), strict=True)], dim=-1)
        return x * torch.sigmoid(z)


class Moments(NamedTuple):
    loc: Tensor
    scale: Tensor


class DeepArStep(nn.Module):
    """A forecaster's step: a category and real covariates, a scale, a two-layer LSTM, a distribution's parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(12, 3)
        self.rnn = nn.LSTM(3 + 2 + 1, 8, num_layers=2, batch_first=True, dropout=0.1)
        self.loc = nn.Linear(8, 1)
        self.scale = nn.Linear(8, 1)

    def forward(self, series: Tensor, target: Tensor, covariates: Tensor) -> Moments:
        level = target.abs().mean(dim=1, keepdim=True).clamp(min=1e-3)
        inputs = torch.cat([(target / level).unsqueeze(-1), covariates], dim=-1)
        static = self.embedding(series).unsqueeze(1).expand(-1, target.shape[1], -1)
        y, _ = self.rnn(torch.cat([static, inputs], dim=-1))
        return Moments(self.loc(y).squeeze(-1) * level, functional.softplus(self.scale(y)).squeeze(-1) * level)


class NameClassifier(nn.Module):
    """The language of a name from its letters: embedding on the packed data, the final state of both directions."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(128, 16, padding_idx=0)
        self.rnn = nn.GRU(16, 32, batch_first=True, bidirectional=True)
        self.head = nn.Linear(64, 18)

    def forward(self, text: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(text, lengths.cpu(), batch_first=True, enforce_sorted=False)
        embedded = PackedSequence(
            self.embedding(packed.data), packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices
        )
        _, h = self.rnn(embedded)
        return self.head(torch.cat([h[0], h[1]], dim=-1))  # type: ignore[no-any-return]


class MaskedAttention(nn.Module):
    """Attention over what was padded again, with a mask of the whole time axis."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(6, 8, batch_first=True)
        self.score = nn.Linear(8, 1)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(x, lengths, batch_first=True)
        y, _ = pad_packed_sequence(self.rnn(packed)[0], batch_first=True, total_length=x.shape[1])
        mask = torch.arange(x.shape[1]).unsqueeze(0) < lengths.unsqueeze(1)
        weights = torch.softmax(self.score(y).squeeze(-1).masked_fill(~mask, -1e9), dim=-1)
        return (weights.unsqueeze(-1) * y).sum(dim=1)


class SelfAttention(nn.Module):
    """A GRU whose steps look at all steps before them."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(6, 8, batch_first=True)
        self.qkv = nn.Linear(8, 24)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.rnn(x)
        q, k, v = self.qkv(y).chunk(3, dim=-1)
        later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        scores = (q @ k.transpose(1, 2)).masked_fill(later, -1e9) / 8**0.5
        return y + torch.softmax(scores, dim=-1) @ v  # type: ignore[no-any-return]


class Gates(nn.Module):
    """An LSTM written out by hand, gate by gate."""

    def __init__(self) -> None:
        super().__init__()
        self.x = nn.Linear(5, 28)
        self.h = nn.Linear(7, 28, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = c = x.new_zeros(x.shape[0], 7)
        outputs = []
        for t in range(x.shape[1]):
            i, f, g, o = (self.x(x[:, t]) + self.h(h)).chunk(4, dim=-1)
            c = torch.sigmoid(f + 1) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            outputs.append(h)
        return torch.stack(outputs, dim=1), c


class CellDecoder(nn.Module):
    """Two stacked cells in a loop with attention over a memory, each step fed with the output of the one before."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.LSTMCell(4 + 3 + 6, 8)
        self.second = nn.LSTMCell(8, 6)
        self.out = nn.Linear(6, 3)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        one = two = None
        fed = x.new_zeros(x.shape[0], 3)
        query = x.new_zeros(x.shape[0], 6)
        outputs = []
        for t in range(x.shape[1]):
            weights = torch.softmax((memory * query.unsqueeze(1)).sum(-1), dim=-1)
            context = (weights.unsqueeze(-1) * memory).sum(1)
            one = self.first(torch.cat([x[:, t], fed, context], dim=-1), one)
            two = self.second(one[0], two)
            query, fed = two[0], self.out(two[0])
            outputs.append(fed)
        return torch.stack(outputs, dim=1)


class PlainCells(nn.Module):
    """Two cells, one on the other, in a loop over time."""

    def __init__(self, kind: Callable[[int, int], nn.Module], first: int = 6, second: int = 7) -> None:
        super().__init__()
        self.first = kind(5, first)
        self.second = kind(first, second)

    def forward(self, x: Tensor) -> Tensor:
        one: Any = None
        two: Any = None
        outputs = []
        for step in x.unbind(1):
            one = self.first(step, one)
            two = self.second(one[0] if isinstance(one, tuple) else one, two)
            outputs.append(two[0] if isinstance(two, tuple) else two)
        return torch.stack(outputs, dim=1)


@dataclass(frozen=True)
class Entry:
    """A model, what it takes and returns, how many recurrent operators it must become, and whether it needs a Scan."""

    make: Callable[[], nn.Module]
    inputs: tuple[str, ...]
    operators: int
    scan: bool = False
    least_time: int = 1
    outputs: tuple[str, ...] = ("output",)


CORPUS = {
    "conv-tagger": Entry(ConvTagger, ("x:float32[batch,time,6]",), 2, least_time=3),
    "attention-step": Entry(
        AttentionStep,
        ("token:int64[batch]", "state.0[batch,12]", "memory[batch,time,6]", "mask:int64[batch,time]"),
        1,
        outputs=("logits", "state_0", "weights"),
    ),
    "voice-activity": Entry(
        VoiceActivity,
        ("x[batch,time,5]", "h[1,batch,10]", "c[1,batch,10]"),
        1,
        outputs=("output_0", "output_1", "output_2"),
    ),
    "grouped-gru": Entry(GroupedGru, ("x[batch,time,8]",), 4),
    "deepar-step": Entry(
        DeepArStep,
        ("series:int64[batch]", "target[batch,time]", "covariates[batch,time,2]"),
        2,
        outputs=("loc", "scale"),
    ),
    "name-classifier": Entry(NameClassifier, ("text:int64[batch,time]", "lengths:int64[batch]"), 1),
    "masked-attention": Entry(MaskedAttention, ("x[batch,time,6]", "lengths:int64[batch]"), 1),
    "self-attention": Entry(SelfAttention, ("x[batch,time,6]",), 1),
    "gates": Entry(Gates, ("x[batch,time,5]",), 0, scan=True, outputs=("output_0", "output_1")),
    "cell-decoder": Entry(CellDecoder, ("x[batch,time,4]", "memory[batch,slots,6]"), 2, scan=True),
    "plain-gru-cells": Entry(lambda: PlainCells(nn.GRUCell), ("x[batch,time,5]",), 2),
    "plain-lstm-cells": Entry(lambda: PlainCells(nn.LSTMCell), ("x[batch,time,5]",), 2),
    "plain-rnn-cells": Entry(lambda: PlainCells(nn.RNNCell), ("x[batch,time,5]",), 2),
    # The exporter joins equal weights of several steps where they are small, and leaves large ones apart.
    "wide-gru-cells": Entry(lambda: PlainCells(nn.GRUCell, 40, 33), ("x[batch,time,5]",), 2),
}
