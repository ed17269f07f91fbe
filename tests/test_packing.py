"""The exchange of the two packing functions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils import rnn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from deploykit import packing


class Answer:
    def __init__(self) -> None:
        self.asked: list[Any] = []

    def pack(self, x: Tensor, lengths: Any, batch_first: bool, enforce_sorted: bool) -> rnn.PackedSequence:
        self.asked.append((lengths, batch_first, enforce_sorted))
        return rnn.PackedSequence(x, torch.ones(1, dtype=torch.int64))

    def pad(
        self, sequence: rnn.PackedSequence, batch_first: bool, padding_value: float, total_length: int | None
    ) -> tuple[Tensor, Tensor]:
        self.asked.append((batch_first, padding_value, total_length))
        return sequence.data, sequence.batch_sizes


def test_both_functions_are_answered_under_any_name_and_their_defaults_hold() -> None:
    answer, x = Answer(), torch.zeros(3, 1, 2)
    with packing.answered_by(answer):
        for pack in (pack_padded_sequence, rnn.pack_padded_sequence, torch.nn.utils.rnn.pack_padded_sequence):
            packed = pack(x, [3])
        pack_padded_sequence(x, [3], batch_first=True, enforce_sorted=False)
        pad_packed_sequence(packed, padding_value=2.0)
    assert answer.asked == [*[([3], False, True)] * 3, ([3], True, False), (False, 2.0, None)]


def test_pytorchs_own_come_back_also_after_an_error() -> None:
    x = torch.arange(6.0).reshape(3, 1, 2)
    with pytest.raises(ZeroDivisionError), packing.answered_by(Answer()):
        raise ZeroDivisionError
    padded, lengths = pad_packed_sequence(pack_padded_sequence(x, [2]))
    assert torch.equal(padded, x[:2])
    assert lengths.tolist() == [2]


def test_a_packer_may_pass_calls_on() -> None:
    pack, pad = packing.original("pack_padded_sequence"), packing.original("pad_packed_sequence")
    x = torch.arange(6.0).reshape(3, 1, 2)
    with packing.answered_by(Answer()):
        assert torch.equal(pad(pack(x, [3]))[0], x)
