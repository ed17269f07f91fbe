"""What integer inputs mean is found by running the model once."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence

from deploykit.probing import with_ranges
from deploykit.types import ModelSpec, TensorSpec, ValueRange
from tests.export.agree import assert_agrees

TEXT = TensorSpec("text", "int64", ("batch", "time"))
LENGTHS = TensorSpec("lengths", "int64", ("batch",))


class Text(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(300, 4)
        self.small = nn.Embedding(20, 4)
        self.rnn = nn.GRU(4, 4, batch_first=True)

    def forward(self, text: Tensor, kind: Tensor, lengths: Tensor, other: Tensor) -> Tensor:
        x = self.embedding(text.to(torch.int64).contiguous()) + functional.embedding(kind, self.small.weight)
        packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
        return self.rnn(packed)[1] + other.sum()  # type: ignore[no-any-return]


def test_rows_of_embeddings_and_lengths_are_found() -> None:
    inputs = (
        TensorSpec("text", "int32", ("batch", "time")),
        TensorSpec("kind", "int64", ("batch", "time")),
        LENGTHS,
        TensorSpec("other", "int64", ("batch",)),
    )
    spec = with_ranges(ModelSpec(Text().eval(), inputs))
    assert spec.ranges == {
        "text": ValueRange(0, 299),
        "kind": ValueRange(0, 19),
        "lengths": ValueRange(1, "time"),
    }
    feeds = spec.feeds(0, batch=50, time=30)
    assert feeds["text"].max() > 200
    assert feeds["kind"].max() <= 19
    assert feeds["lengths"].min() >= 1
    assert feeds["lengths"][0] == 30 == feeds["lengths"].max()
    assert set(feeds["other"].tolist()) == {0, 1}
    assert feeds["text"].dtype == "int32"


class Sorted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(4, 4, batch_first=True)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        return self.rnn(pack_padded_sequence(x, lengths, batch_first=True))[1]  # type: ignore[no-any-return]


def test_lengths_that_must_be_sorted_are() -> None:
    spec = with_ranges(ModelSpec(Sorted().eval(), (TensorSpec("x", "float32", ("batch", "time", 4)), LENGTHS)))
    assert spec.ranges == {"lengths": ValueRange(1, "time", descending=True)}
    lengths = spec.feeds(3, batch=9, time=20)["lengths"]
    assert (lengths[1:] <= lengths[:-1]).all()
    assert lengths[0] == 20
    spec.run([torch.from_numpy(value) for value in spec.feeds(3, batch=9, time=20).values()])


def test_an_embedding_used_with_two_inputs_and_one_input_used_with_two() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = nn.Embedding(10, 2), nn.Embedding(7, 2)

        def forward(self, text: Tensor) -> Tensor:
            return self.one(text) + self.other(text)  # type: ignore[no-any-return]

    assert with_ranges(ModelSpec(Two().eval(), (TEXT,))).ranges == {"text": ValueRange(0, 6)}


@pytest.mark.parametrize("kind", ["sorted", "halved", "listed", "ints"])
def test_lengths_that_the_model_makes_of_an_input(kind: str) -> None:
    class Derived(Sorted):
        def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
            made: Any = lengths
            if kind == "sorted":
                made, order = lengths.sort(descending=True)
                x = x[order]
            elif kind == "halved":
                x, made = x[:, ::2], torch.div(lengths + 1, 2, rounding_mode="floor")
            elif kind == "listed":
                made = lengths.tolist()
            else:
                made = lengths.int()
            packed = pack_padded_sequence(x, made, batch_first=True, enforce_sorted=kind != "halved")
            return self.rnn(packed)[1]  # type: ignore[no-any-return]

    spec = with_ranges(ModelSpec(Derived().eval(), (TensorSpec("x", "float32", ("batch", "time", 4)), LENGTHS)))
    assert spec.ranges == {"lengths": ValueRange(1, "time", descending=kind in ("listed", "ints"))}
    spec.run([torch.from_numpy(value) for value in spec.feeds(3, batch=9, time=20).values()])
    assert_agrees(replace(spec, module=spec.module.requires_grad_(False)))


def test_a_spec_with_a_sample_and_one_without_integers_stay_as_they_are() -> None:
    floats = ModelSpec(nn.Identity(), (TensorSpec("x", "float32", ("batch",)),))
    assert with_ranges(floats) is floats
    own = ModelSpec(nn.Embedding(9, 2), (TEXT,), sample=lambda seed, **sizes: {})
    assert with_ranges(own) is own


def test_a_model_that_fails_is_left_to_whoever_runs_it_next() -> None:
    class Fails(nn.Module):
        def forward(self, text: Tensor) -> Tensor:
            raise ValueError("no")

    assert with_ranges(ModelSpec(Fails(), (TEXT,))).ranges == {}
