from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploykit.advise.evidence import Evidence, Quality
from deploykit.advise.quality import Index, Judge
from tests.advise.samples import QUALITIES, TASK, quality


def judge(*rows: Quality, higher_is_better: bool = False) -> Judge:
    return Judge([Evidence(qualities=rows)], [replace(TASK, higher_is_better=higher_is_better)])


def index(found: Judge, name: str, hidden: int, steps: int = 20, precision: str = "float32") -> Index:
    known = found.index(name, hidden, steps, precision)
    assert known is not None
    return known


def test_the_reference_is_one() -> None:
    found = index(judge(*QUALITIES), "gru", 64)
    assert found.median == pytest.approx(1.0)
    assert found.low == pytest.approx(20.0 / 20.2)
    assert found.high == pytest.approx(20.4 / 20.2)


def test_int8_costs_what_it_cost() -> None:
    found = judge(*QUALITIES)
    assert index(found, "gru", 64, precision="int8").median == pytest.approx(1.01)


def test_of_an_accuracy_it_is_the_errors_that_count() -> None:
    found = judge(quality("gru", 64, (0.8,)), quality("lstm", 64, (0.9,)), higher_is_better=True)
    assert index(found, "lstm", 64).median == pytest.approx(0.5)


@given(st.integers(16, 64))
def test_between_two_sizes_the_index_lies_between_theirs(hidden: int) -> None:
    found = judge(*QUALITIES)
    assert index(found, "gru", 64).median <= index(found, "gru", hidden).median <= index(found, "gru", 16).median


def test_a_single_size_gains_and_loses_as_the_gru_does() -> None:
    found = index(judge(*QUALITIES), "rnn-tanh", 16)
    assert found.median == pytest.approx(24.2 / 20.2 * 22.2 / 20.2)
    assert any("hidden size 64 alone" in said for said in found.thin)


def test_what_is_smaller_than_all_that_was_trained_is_never_better_for_it() -> None:
    found = judge(quality("gru", 16, (19.0,)), quality("gru", 64, (20.0,)), quality("lstm", 64, (21.0,)))
    assert index(found, "lstm", 16).median == index(found, "lstm", 64).median
    assert index(found, "gru", 8).median == index(found, "gru", 16).median


def test_beyond_the_largest_size_nothing_is_gained() -> None:
    found = index(judge(*QUALITIES), "gru", 256)
    assert found.median == pytest.approx(1.0)
    assert any("over 64" in said for said in found.thin)


def test_other_steps_change_it_as_they_changed_it_against_the_gru() -> None:
    swept = [
        quality(name, 64, (value,), window=window, swept=True)
        for name, window, value in (
            ("gru", 20, 20.0),
            ("rnn-tanh", 20, 22.0),
            ("gru", 80, 20.0),
            ("rnn-tanh", 80, 30.0),
        )
    ]
    found = judge(*QUALITIES, *swept)
    near, far = index(found, "rnn-tanh", 64, 20), index(found, "rnn-tanh", 64, 80)
    assert far.median / near.median == pytest.approx(30 / 22)
    assert index(found, "gru", 64, 80).median == pytest.approx(1.0)


def test_steps_that_nobody_trained_at_are_thin() -> None:
    assert any("not at 200" in said for said in index(judge(*QUALITIES), "rnn-tanh", 64, 200).thin)


def test_few_seeds_are_thin() -> None:
    found = judge(quality("gru", 64, (20.0, 21.0)))
    assert any("2 runs of gru" in said for said in index(found, "gru", 64).thin)


def test_nothing_is_said_of_what_nobody_trained() -> None:
    assert judge(*QUALITIES).index("lstm", 64, 20, "float32") is None
    assert judge().index("gru", 64, 20, "float32") is None


def test_nothing_is_said_of_what_is_smaller_than_the_only_size() -> None:
    found = judge(quality("gru", 64, (20.0,)), quality("lstm", 64, (21.0,)))
    assert found.index("lstm", 16, 20, "float32") is None
    assert index(found, "lstm", 128).median == index(found, "lstm", 64).median


def test_a_task_that_lacks_is_named() -> None:
    other = replace(TASK, name="other")
    rows = (*QUALITIES, quality("gru", 64, (20.0,), task="other"))
    found = Judge([Evidence(qualities=rows)], [TASK, other])
    assert found.lacking(index(found, "rnn-tanh", 64)) == ("other",)
    assert found.lacking(index(found, "gru", 64)) == ()


def test_indices_meet_where_their_ranges_do() -> None:
    wide, one, two = Index(1.0, 0.8, 1.2), Index(1.0, 0.9, 1.1), Index(1.3, 1.2, 1.4)
    assert wide.meets(one)
    assert wide.meets(two)
    assert not one.meets(two)
    assert not two.meets(one)
