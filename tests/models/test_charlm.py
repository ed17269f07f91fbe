from __future__ import annotations

import math
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploykit.errors import ModelError, UsageError
from models import _charlm

if TYPE_CHECKING:
    from deploykit.types import Array, Feeds

    Logits = dict[str, Array]


@pytest.fixture
def no_cache() -> Iterator[None]:
    _charlm.sources.cache_clear()
    _charlm.text.cache_clear()
    yield
    _charlm.sources.cache_clear()
    _charlm.text.cache_clear()


def uniform(feeds: Feeds) -> Logits:
    return {"logits": np.full((*feeds["text"].shape, 256), 3.0, np.float32)}


def test_splits_share_no_module_and_no_text() -> None:
    train, validation, held_out = (_charlm.sources(split) for split in ("train", "validation", "held-out"))
    assert not train.keys() & validation.keys()
    assert not train.keys() & held_out.keys()
    assert not validation.keys() & held_out.keys()
    assert not {*train.values()} & {*held_out.values(), *validation.values()}


def test_held_out_text_is_about_400_kb_and_training_text_far_more() -> None:
    assert 300_000 < len(_charlm.text("held-out")) < 800_000
    assert len(_charlm.text("train")) > 8 * len(_charlm.text("held-out"))


def test_no_excluded_folder_is_trained_on() -> None:
    for name in _charlm.sources("train"):
        assert not _charlm.EXCLUDED_FOLDERS.intersection(name.split("/"))
        assert "_sysconfigdata" not in name


def test_text_is_the_modules_in_order() -> None:
    folder = Path(sysconfig.get_path("stdlib"))
    first = (folder / _charlm.HELD_OUT[0]).read_bytes()
    assert _charlm.text("held-out")[: len(first)].tobytes() == first


@pytest.mark.usefixtures("no_cache")
def test_a_standard_library_without_sources_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sysconfig, "get_path", lambda _: str(tmp_path / "python311.zip"))
    for split in ("train", "held-out"):
        with pytest.raises(ModelError, match="has no source text"):
            _charlm.sources(split)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32), batch=st.integers(1, 64), time=st.integers(1, 4096))
def test_samples_are_held_out_text(seed: int, batch: int, time: int) -> None:
    sample = _charlm.sample(seed, batch=batch, time=time)
    assert sample.keys() == {"text"}
    assert sample["text"].shape == (batch, time)
    assert sample["text"].dtype == np.int64
    assert sample["text"][0].astype(np.uint8).tobytes() in _charlm.text("held-out").tobytes()


def test_a_seed_means_one_sample() -> None:
    one, same, other = (_charlm.sample(seed, batch=4, time=50)["text"] for seed in (1, 1, 2))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


def test_a_sample_longer_than_the_text_is_refused() -> None:
    with pytest.raises(UsageError, match="time steps"):
        _charlm.sample(0, batch=1, time=10**8)


def test_windows_are_spread_over_the_whole_split() -> None:
    chosen = _charlm.windows("held-out", 3, 10)
    data = _charlm.text("held-out")
    assert chosen.shape == (3, 11)
    assert np.array_equal(chosen[0], data[:11])
    assert np.array_equal(chosen[-1], data[-11:])


def test_a_uniform_guess_costs_8_bits() -> None:
    assert _charlm.evaluate(uniform) == pytest.approx(8)


def test_a_perfect_guess_costs_nothing() -> None:
    chosen = _charlm.windows("held-out", 20, 30)
    rows = {row[:-1].tobytes(): row[1:] for row in chosen}

    def perfect(feeds: Feeds) -> Logits:
        target = np.stack([rows[row.astype(np.uint8).tobytes()] for row in feeds["text"]])
        return {"logits": 1000 * np.eye(256, dtype=np.float32)[target]}

    assert _charlm.bits_per_character(perfect, chosen) == pytest.approx(0, abs=1e-12)


def test_huge_logits_do_not_overflow_and_a_certain_mistake_is_dear() -> None:
    chosen = np.zeros((1, 5), np.uint8)

    def wrong(feeds: Feeds) -> Logits:
        logits = np.zeros((*feeds["text"].shape, 256), np.float32)
        logits[..., 1] = 1e6
        return {"logits": logits}

    assert _charlm.bits_per_character(wrong, chosen) == pytest.approx(1e6 / math.log(2))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_one_bad_logit_makes_the_metric_nan(bad: float) -> None:
    def broken(feeds: Feeds) -> Logits:
        logits = uniform(feeds)["logits"]
        logits[0, 0, 7] = bad
        return {"logits": logits}

    assert math.isnan(_charlm.bits_per_character(broken, _charlm.windows("held-out", 4, 8)))


def test_metric_says_what_it_is() -> None:
    assert _charlm.METRIC.name == "bits_per_character"
    assert not _charlm.METRIC.higher_is_better
