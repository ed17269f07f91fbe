from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models import _charlm
from models._charlm_training import Batch, CharTask, bucketed, buckets, pad, segments, streams
from models._training import detach
from models.charlm_gru import CharGRU
from models.charlm_lstm import CharLSTM
from models.charlm_rnn import CharRNN

SOURCE = b'''"""Doc."""
import os

@decorator
def first(a):
    return a


class Second:
    x = 1
TAIL = 2
'''


def test_a_stream_goes_on_where_it_ended() -> None:
    first, second = islice(streams(4, 16, seed=0), 2)
    assert first.fresh
    assert not second.fresh
    assert torch.equal(first.batch.target[:, :-1], first.batch.text[:, 1:])
    assert torch.equal(first.batch.target[:, -1], second.batch.text[:, 0])


def test_streams_are_as_long_as_the_text_and_then_begin_anew() -> None:
    batch, time = 64, 4096
    lane = len(_charlm.text("train")) // batch
    fresh = [step.fresh for step in islice(streams(batch, time, seed=0), lane // time + 1)]
    assert fresh == [True, *[False] * (lane // time - 1), True]


def test_a_seed_means_one_order_of_text() -> None:
    one, same, other = (next(streams(2, 50, seed)).batch.text for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_segments_are_functions_and_classes_with_their_decorators() -> None:
    assert segments(SOURCE, longest=100) == [
        b'"""Doc."""\nimport os\n\n',
        b"@decorator\ndef first(a):\n    return a\n",
        b"\n\n",
        b"class Second:\n    x = 1\n",
        b"TAIL = 2\n",
    ]


def test_every_byte_but_a_segments_first_is_predicted_once() -> None:
    pieces = segments(SOURCE, longest=7)
    assert all(2 <= len(piece) <= 8 for piece in pieces)
    assert sum(len(piece) - 1 for piece in pieces) == len(SOURCE) - 5


def test_source_of_another_python_is_cut_all_the_same() -> None:
    assert segments(b"print 'no Python 3'", longest=10) == [b"print 'no P", b"Python 3'"]


def test_buckets_hold_every_segment_once_within_the_budget() -> None:
    parts = segments(_charlm.text("held-out").tobytes(), longest=64)
    found = buckets(parts, 512, np.random.default_rng(0))
    assert sorted(part for batch in found for part in batch) == sorted(parts)
    assert all(len(batch) * max(map(len, batch)) <= 512 for batch in found)


def test_bucketing_lowers_padding() -> None:
    parts = [part for source in _charlm.sources("validation").values() for part in segments(source, longest=512)]
    generator = np.random.default_rng(0)
    shuffled = [parts[index] for index in generator.permutation(len(parts))]
    by_chance = [shuffled[low : low + 8] for low in range(0, len(parts), 8)]
    assert padding(buckets(parts, 2048, generator)) < padding(by_chance) / 3


def padding(batches: list[list[bytes]]) -> float:
    room = sum(len(batch) * max(map(len, batch)) for batch in batches)
    return 1 - sum(len(part) for batch in batches for part in batch) / room


def test_what_is_padded_does_not_count() -> None:
    together = pad([b"abcd", b"xy"])
    assert together.text.tolist() == [[97, 98, 99], [120, 121, 0]]
    assert together.mask is not None
    assert together.mask.tolist() == [[True, True, True], [True, False, False]]
    torch.manual_seed(0)
    module = CharGRU(hidden_size=8)
    task = CharTask(2, 4, 0)
    both, count, _ = task.loss(module, together, None)
    alone = [task.loss(module, pad([part]), None)[:2] for part in (b"abcd", b"xy")]
    assert count == 4
    torch.testing.assert_close(both * 4, sum(loss * number for loss, number in alone))


def test_bucketed_batches_are_seeded_and_stateless() -> None:
    one, same = (list(islice(bucketed(4, 16, seed=3), 5)) for _ in range(2))
    assert all(step.fresh and step.batch.text.numel() <= 4 * 16 for step in one)
    assert all(torch.equal(a.batch.text, b.batch.text) for a, b in zip(one, same, strict=True))


@pytest.mark.parametrize("kind", [CharGRU, CharLSTM, CharRNN])
@pytest.mark.parametrize("masked", [False, True])
def test_checkpointing_gives_the_same_gradients(kind: type[nn.Module], masked: bool) -> None:
    torch.manual_seed(0)
    module = kind(hidden_size=8).eval()
    text = torch.randint(0, 256, (3, 11))
    mask = torch.rand(3, 10) < 0.5 if masked else None
    batch = Batch(text[:, :-1], text[:, 1:], mask)
    state = detach(CharTask(3, 10, 0).loss(module, batch, None)[2])
    whole, in_chunks = (gradients(module, CharTask(3, 10, 0, chunks=chunks), batch, state) for chunks in (1, 3))
    for one, other in zip(whole, in_chunks, strict=True):
        torch.testing.assert_close(one, other)


def gradients(module: nn.Module, task: CharTask, batch: Batch, state: object) -> list[Tensor]:
    module.zero_grad()
    loss, _, _ = task.loss(module, batch, state)
    loss.backward()  # type: ignore[no-untyped-call]
    return [parameter.grad.clone() for parameter in module.parameters() if parameter.grad is not None]
