from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models import _charlm
from models._ngram import NGram

if TYPE_CHECKING:
    from deploykit.types import Array, Feeds


def as_bytes(text: bytes) -> _charlm.Bytes:
    return np.frombuffer(text, dtype=np.uint8)


@settings(max_examples=30, deadline=None)
@given(st.binary(min_size=5, max_size=60), st.binary(min_size=0, max_size=3), st.integers(3, 4))
def test_probabilities_sum_to_one_and_none_is_zero(text: bytes, context: bytes, order: int) -> None:
    model = NGram.fit(as_bytes(text), order)
    probabilities = model.probabilities(as_bytes(context).reshape(1, -1))
    assert probabilities.shape == (1, 256)
    assert probabilities.sum() == pytest.approx(1)
    assert (probabilities > 0).all()


def test_probabilities_are_witten_bells_by_hand() -> None:
    model = NGram.fit(as_bytes(b"abac"), 1)
    # No context: a twice, b and c once, 3 different bytes of 4. After a: b and c once each, 2 different bytes of 2.
    unigram = (np.array([2, 1, 1]) + 3 / 256) / (4 + 3)
    after_a = (np.array([0, 1, 1]) + 2 * unigram) / (2 + 2)
    assert model.probabilities(as_bytes(b"").reshape(1, 0))[0, [97, 98, 99]] == pytest.approx(unigram)
    assert model.probabilities(as_bytes(b"a").reshape(1, 1))[0, [97, 98, 99]] == pytest.approx(after_a)


def test_an_unseen_context_falls_back_to_the_shorter_one() -> None:
    model = NGram.fit(as_bytes(b"abcabdabc"), 2)
    assert np.array_equal(
        model.probabilities(as_bytes(b"zb").reshape(1, 2)), model.probabilities(as_bytes(b"b").reshape(1, 1))
    )


def test_inference_agrees_with_the_probabilities_step_by_step() -> None:
    model = NGram.fit(_charlm.text("validation")[:20_000], 3)
    window = _charlm.windows("held-out", 2, 5)
    logits = model.infer({"text": window.astype(np.int64)})["logits"]
    for step in range(6):
        expected = np.log(model.probabilities(window[:, max(0, step - 2) : step + 1]))
        assert logits[:, step] == pytest.approx(expected)


def test_more_context_predicts_better_than_less() -> None:
    chosen = _charlm.windows("held-out", 8, 64)
    data = _charlm.text("validation")
    bits = [_charlm.bits_per_character(NGram.fit(data, order).infer, chosen) for order in (1, 2, 3)]
    assert 7 > bits[0] > bits[1] > bits[2]


def test_text_shorter_than_the_context_is_scored_too() -> None:
    model = NGram.fit(as_bytes(b"abcabd"), 3)

    def infer(feeds: Feeds) -> dict[str, Array]:
        return model.infer(feeds)

    assert infer({"text": np.array([[97]])})["logits"].shape == (1, 1, 256)
