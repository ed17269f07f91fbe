"""Packed sequences while a model is traced: the padded tensor and its lengths under the guise of a PackedSequence.

PyTorch packs by moving data in ways that depend on the lengths' values, which no trace can follow. ONNX's recurrent
operators take the padded tensor and ``sequence_lens`` instead, in any order. So, during the trace, a PackedSequence's
``data`` is the padded tensor with time and batch as one axis, [time * batch, ...], rows unsorted: whatever works on
``data`` row by row (an embedding, dropout, a linear layer, a softmax) computes the same on each row that counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from deploykit.errors import ExportError

_NOTE = "_deploykit_packing"
_PADDED = "_deploykit_padded"


@dataclass(frozen=True)
class Packing:
    """What a packed sequence of a trace stands for: ``lengths`` [batch], and the padded tensor's two axes.

    ``short`` are the lengths as int32, in which ONNX's operators want them.
    """

    lengths: Tensor
    short: Tensor
    time: int
    batch: int

    def data(self, padded: Tensor, zeroed: bool = True) -> Tensor:
        """``padded`` [time, batch, ...] as PackedSequence.data; ``zeroed`` where it is 0 beyond each row's length."""
        data = padded.flatten(0, 1)
        setattr(data, _PADDED, (padded, zeroed))  # for whoever takes it as it is: then no reshape is left in the graph
        return data

    def padded(self, data: Tensor) -> Tensor:
        """The reverse of ``data``, whatever has been computed on it row by row meanwhile."""
        noted: tuple[Tensor, bool] | None = getattr(data, _PADDED, None)
        return data.reshape(self.time, self.batch, *data.shape[1:]) if noted is None else noted[0]

    def valid(self) -> Tensor:
        """bool [time, batch]: which steps count."""
        return torch.arange(self.time).unsqueeze(1) < self.lengths.unsqueeze(0)


class Listed:
    """What ``tolist`` gives in a trace: it may go where lengths go, and there is still the tensor; it is no list."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def _refuse(self, *_: Any) -> NoReturn:
        raise ExportError(
            "its code makes a Python list of a tensor and works on that, which is fixed in a trace: work on the tensor"
        )

    __iter__ = __len__ = __getitem__ = __bool__ = __contains__ = __add__ = __mul__ = __eq__ = __float__ = _refuse
    __hash__ = None  # type: ignore[assignment]


def packing(batch_sizes: Tensor) -> Packing:
    """What the ``batch_sizes`` of a packed sequence stand for.

    Raises:
        ExportError: they are none that ``pack_padded_sequence`` has made during the trace.
    """
    noted: Packing | None = getattr(batch_sizes, _NOTE, None)
    if noted is None:
        raise ExportError(
            "its packed sequence was not made by pack_padded_sequence in the model itself: take the padded tensor and "
            "its lengths as inputs, and pack inside the model"
        )
    return noted


def first_batch_size(batch_sizes: Any) -> int | None:
    """``batch_sizes[0]`` without a look at the lengths' values: the whole batch; None for any other tensor."""
    noted: Packing | None = getattr(batch_sizes, _NOTE, None)
    return None if noted is None else noted.batch


class TracedPacker:
    """Packs and pads in a trace (``deploykit.packing.Packer``).

    ``trim`` says whether what is padded again ends at its longest row, as in PyTorch, or keeps the time axis it had.
    ``packs`` counts the sequences, ``trims`` those that end at their longest row.
    """

    def __init__(self, trim: bool) -> None:
        self._trim = trim
        self.packs = 0
        self.trims = 0

    def pack(self, x: Tensor, lengths: Any, batch_first: bool, enforce_sorted: bool) -> PackedSequence:
        """Rows stay in their order, whether or not PyTorch would want them sorted."""
        self.packs += 1
        x = x.transpose(0, 1) if batch_first else x
        lengths = lengths.tensor if isinstance(lengths, Listed) else lengths
        counts = lengths if isinstance(lengths, Tensor) else torch.as_tensor(lengths, dtype=torch.int64)
        made = Packing(counts.to(torch.int64), counts.to(torch.int32), x.shape[0], x.shape[1])
        # As many entries as there are steps, and not as the longest row has: only its first is ever asked for.
        batch_sizes = made.valid().sum(1)
        setattr(batch_sizes, _NOTE, made)
        return PackedSequence(made.data(x, zeroed=False), batch_sizes, None, None)

    def pad(
        self, sequence: PackedSequence, batch_first: bool, padding_value: float, total_length: int | None
    ) -> tuple[Tensor, Tensor]:
        """What ``pad_packed_sequence`` returns."""
        made = packing(sequence.batch_sizes)
        x = made.padded(sequence.data)
        if padding_value != 0 or not getattr(sequence.data, _PADDED, (x, False))[1]:
            valid = made.valid()
            for _ in range(x.dim() - 2):
                valid = valid.unsqueeze(-1)
            x = torch.where(valid, x, torch.full((), padding_value, dtype=x.dtype))
        if total_length is not None:
            x = _resized(x, total_length, padding_value)
        else:
            self.trims += 1
            x = torch.ops.deploykit.trim(x, made.lengths) if self._trim else x
        return x.transpose(0, 1) if batch_first else x, made.lengths


def _resized(x: Tensor, total_length: int, padding_value: float) -> Tensor:
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    more = total_length - x.shape[0]
    if statically_known_true(more == 0):
        return x
    return torch.nn.functional.pad(x, [0, 0] * (x.dim() - 1) + [0, more], value=padding_value)
