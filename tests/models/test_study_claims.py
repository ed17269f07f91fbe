from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from models._study import claims
from models._study.results import GRU, LSTM, RNN, Results
from models._study.statistics import Interval, best, comparison, paired_ratio, separated, spread
from tests.models.studies import EMPTY, TWO, family, latency, pace, windows

HOLDS, NOT, UNSAID = "holds", "does not hold", "cannot be said here"


def test_medians_ranges_and_pairs() -> None:
    assert spread([3.0, 1.0, 2.0]) == Interval(2.0, 1.0, 3.0)
    assert spread([2.0]) == Interval(2.0, None, None)
    assert spread([]) is None
    assert paired_ratio({0: 2.0, 1: 9.0, 2: 1.0}, {0: 1.0, 1: 3.0, 3: 7.0}) == Interval(2.5, 2.0, 3.0)
    assert paired_ratio({0: 2.0}, {1: 1.0}) is None
    assert Interval(2.0, 1.0, 4.0).inverse() == Interval(0.5, 0.25, 1.0)


@pytest.mark.parametrize(
    ("interval", "value", "side"),
    [
        (Interval(1.1, 1.05, 1.2), 1.0, "above"),
        (Interval(0.9, 0.8, 0.95), 1.0, "below"),
        (Interval(1.1, 0.99, 1.2), 1.0, "unclear"),
        (Interval(1.5, None, None), 1.0, "unclear"),
    ],
)
def test_an_interval_takes_a_side_only_as_a_whole(interval: Interval, value: float, side: str) -> None:
    assert interval.against(value) == side


def test_nobody_wins_where_runs_overlap() -> None:
    low, high, across = {0: 1.0, 1: 1.1}, {0: 2.0, 1: 2.1}, {0: 1.05, 1: 1.2}
    assert separated(low, high) == "below"
    assert comparison(low, high, higher_is_better=False) == "better"
    assert comparison(low, high, higher_is_better=True) == "worse"
    # On every seed the first is lower, and still the ranges meet.
    assert comparison(low, across, higher_is_better=False) == "no difference seen"
    assert comparison({0: 1.0}, high, higher_is_better=False) == "too few runs to say"
    assert best({"a": low, "b": high}, higher_is_better=False) == "a"
    assert best({"a": low, "b": high, "c": across}, higher_is_better=False) is None


@pytest.mark.parametrize(
    ("rnn", "gru", "lstm", "verdict"),
    [
        ((24, 25), (20, 21), (18, 19), HOLDS),
        ((24, 25), (20, 21), (22, 23), NOT),  # the LSTM errs more than the GRU
        ((18, 19), (20, 21), (16, 17), NOT),  # the RNN errs less
        ((24, 25), (20, 21), (19, 20.5), UNSAID),
        ((24,), (20,), (18,), UNSAID),
    ],
)
def test_the_order_of_errors(rnn: Sequence[float], gru: Sequence[float], lstm: Sequence[float], verdict: str) -> None:
    finding = claims.error_order(family({RNN: rnn, GRU: gru, LSTM: lstm}))
    assert finding.verdict == verdict
    assert f"{sorted(a / b for a, b in zip(rnn, gru, strict=True))[0]:.2f}" in finding.evidence


def test_of_an_accuracy_it_is_the_errors_that_count() -> None:
    accuracies = {RNN: (0.70, 0.71), GRU: (0.80, 0.81), LSTM: (0.85, 0.86)}
    assert claims.error_order(family(accuracies, higher_is_better=True)).verdict == HOLDS
    assert claims.quality(family(accuracies, higher_is_better=True)).verdict == NOT  # 0.80 / 0.85 is 94 %
    assert claims.quality(family({GRU: (0.84, 0.85), LSTM: (0.85, 0.86)}, higher_is_better=True)).verdict == HOLDS


@pytest.mark.parametrize(
    ("gru", "lstm", "verdict"),
    [((20, 21), (19.5, 20.5), HOLDS), ((20, 21), (17, 18), NOT), ((20, 21), (18.9, 20.1), UNSAID)],
)
def test_ninety_five_percent_of_the_quality(gru: Sequence[float], lstm: Sequence[float], verdict: str) -> None:
    assert claims.quality(family({GRU: gru, LSTM: lstm})).verdict == verdict


@pytest.mark.parametrize(
    ("low", "high", "verdict"), [(1.25, 1.4, HOLDS), (0.9, 1.1, NOT), (1.2, 1.3, UNSAID), (1.0, 1.21, NOT)]
)
def test_inference_is_22_percent_faster(low: float, high: float, verdict: str) -> None:
    finding = claims.inference(replace(EMPTY, latencies=(latency(LSTM, low, high),)))
    assert finding.verdict == verdict
    assert f"{1 / high:.2f}" in finding.evidence


def test_inference_is_decided_by_float_at_one_hidden_size() -> None:
    others = (latency(LSTM, 1.3, 1.5, ""), latency(LSTM, 1.3, 1.5, precision="int8"))
    assert claims.inference(replace(EMPTY, latencies=others)).verdict == UNSAID
    finding = claims.inference(replace(EMPTY, latencies=(*others, latency(LSTM, 0.9, 1.0))))
    assert finding.verdict == NOT
    assert "equal parameters" in finding.evidence


@pytest.mark.parametrize(("gru", "lstm", "verdict"), [(3, 4, HOLDS), (31, 40, NOT), (None, 4, UNSAID)])
def test_three_quarters_of_the_parameters(gru: int | None, lstm: int, verdict: str) -> None:
    counts = {name: count for name, count in ((GRU, gru), (LSTM, lstm)) if count is not None}
    assert claims.recurrent_parameters(replace(EMPTY, counts=counts)).verdict == verdict


@pytest.mark.parametrize(
    ("low", "high", "verdict"), [(1.25, 1.5, HOLDS), (0.6, 0.8, NOT), (1.6, 1.9, NOT), (1.1, 1.3, UNSAID)]
)
def test_training_is_30_percent_faster(low: float, high: float, verdict: str) -> None:
    assert claims.training_speed(replace(EMPTY, paces=(pace(LSTM, low, high),))).verdict == verdict


@pytest.mark.parametrize(
    ("rnn", "lstm", "verdict"),
    [((0.85, 0.86), (1.28, 1.29), HOLDS), ((0.4, 0.5), (0.8, 0.9), NOT), ((0.8, 0.9), (1.1, 1.5), UNSAID)],
)
def test_training_time(rnn: tuple[float, float], lstm: tuple[float, float], verdict: str) -> None:
    paces = (pace(GRU, 1, 1), pace(RNN, *rnn), pace(LSTM, *lstm))
    assert claims.training_time(replace(EMPTY, paces=paces)).verdict == verdict


GOOD, BAD, MIDDLE = (1.0, 1.1), (2.0, 2.1), (1.05, 1.2)


@pytest.mark.parametrize(
    ("claim", "window", "chosen"),
    [(claims.short_windows, 10, RNN), (claims.middle_windows, 50, GRU), (claims.long_windows, 150, LSTM)],
)
def test_windows(claim: claims.Claim, window: int, chosen: str) -> None:
    others = [name for name in (RNN, GRU, LSTM) if name != chosen]

    def asked(*errors: Sequence[float]) -> Results:
        return windows({window: dict(zip((chosen, *others), errors, strict=True))})

    assert claim(asked(GOOD, BAD, BAD)).verdict == HOLDS
    assert claim(asked(BAD, GOOD, BAD)).verdict == NOT
    assert claim(asked(GOOD, MIDDLE, BAD)).verdict == UNSAID
    assert "No difference seen" in claim(asked(GOOD, MIDDLE, BAD)).evidence
    assert (
        claim(windows({1000 if window < 101 else 10: {chosen: GOOD, others[0]: BAD, others[1]: BAD}})).verdict == UNSAID
    )


def test_without_numbers_nothing_can_be_said() -> None:
    assert {finding.verdict for finding in claims.findings(EMPTY)} == {UNSAID}
    assert len(claims.findings(EMPTY)) == len(claims.CLAIMS)


def test_every_finding_is_a_sentence_with_numbers() -> None:
    for finding in claims.findings(TWO):
        assert finding.evidence.endswith(".")
