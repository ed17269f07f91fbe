from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploykit.bench import stats

Windows = list[list[int]]


def windows(seed: int, scale: float = 1.0, rounds: int = 20, each: int = 30) -> Windows:
    """Log-normal latencies of about 1 ms around a machine's speed that drifts by a third over the run."""
    generator = np.random.default_rng(seed)
    drift = 1 + 0.33 * np.linspace(0, 1, rounds)[:, None]
    drawn = 1e6 * scale * drift * generator.lognormal(0, 0.15, (rounds, each))
    return [[int(value) for value in window] for window in drawn]


def test_percentiles_need_samples_enough() -> None:
    def known(count: int) -> list[bool]:
        found = stats.latency([[1_000_000] * count])
        return [value is not None for value in (found.p50, found.p90, found.p95, found.p99)]

    assert known(1) == [False, False, False, False]
    assert known(2) == [True, False, False, False]
    assert known(9) == [True, False, False, False]
    assert known(10) == [True, True, False, False]
    assert known(19) == [True, True, False, False]
    assert known(20) == [True, True, True, False]
    assert known(99) == [True, True, True, False]
    assert known(100) == [True, True, True, True]


def test_latency_is_in_milliseconds_over_all_windows() -> None:
    found = stats.latency([[1_000_000, 2_000_000], [3_000_000]])
    assert (found.p50, found.mean, found.min, found.samples, found.windows) == (2, 2, 1, 3, 2)
    assert found.cv == pytest.approx(0.5)


def test_quantiles_need_samples_enough_on_either_side() -> None:
    def known(count: int) -> set[int]:
        found = stats.latency([[1_000_000] * count]).quantiles
        assert found is not None
        assert list(found) == [str(percent) for percent in stats.PERCENTS]
        return {int(percent) for percent, value in found.items() if value is not None}

    assert known(1) == {0, 100}
    assert known(2) == {0, 50, 100}
    assert known(4) == {0, *range(25, 80, 5), 100}
    assert {5, 95} <= known(20)
    assert not {1, 99} & known(99)
    assert known(100) == set(stats.PERCENTS)


def test_quantiles_are_the_percentiles_and_end_at_the_extremes() -> None:
    found = stats.latency(windows(0))
    assert found.quantiles is not None
    assert (found.quantiles["0"], found.quantiles["50"], found.quantiles["99"]) == (found.min, found.p50, found.p99)
    values = [value for value in found.quantiles.values() if value is not None]
    assert values == sorted(values)


def test_throughput_counts_batch_rows() -> None:
    assert stats.latency([[2_000_000, 6_000_000]]).throughput == 250
    assert stats.latency([[2_000_000, 6_000_000]], batch=16).throughput == 4000


@given(st.lists(st.integers(1, 10**9), min_size=100, max_size=200))
@settings(max_examples=50, deadline=None)
def test_percentiles_are_ordered_and_within_the_samples(samples: list[int]) -> None:
    found = stats.latency([samples])
    assert found.p50 is not None
    assert found.p90 is not None
    assert found.p95 is not None
    assert found.p99 is not None
    assert found.min <= found.p50 <= found.p90 <= found.p95 <= found.p99 <= max(samples) / 1e6


def test_no_samples_is_an_error() -> None:
    with pytest.raises(ValueError, match="no samples"):
        stats.latency([[]])


def test_a_against_a_covers_one_about_as_often_as_it_says() -> None:
    covered = 0
    for seed in range(100):
        found = stats.speedup(windows(seed), windows(1000 + seed), vs="a", seed=seed)
        assert found.low is not None
        assert found.high is not None
        assert found.low <= found.median <= found.high
        covered += found.low <= 1 <= found.high
    assert covered >= 88, "a 95 % interval"


def test_a_slowdown_of_a_fifth_is_found() -> None:
    for seed in range(20):
        found = stats.speedup(windows(seed), windows(1000 + seed, scale=1.2), vs="a", seed=seed)
        assert found.high is not None
        assert found.high < 1
        assert found.median == pytest.approx(1 / 1.2, rel=0.1)


def test_drift_does_not_reach_the_speed_up() -> None:
    """The second half of the run is three times slower for both: unpaired medians would be useless."""
    slow = [[value * (3 if number >= 10 else 1) for value in window] for number, window in enumerate(windows(0))]
    found = stats.speedup(slow, [[value // 2 for value in window] for window in slow], vs="a", seed=0)
    assert found.median == pytest.approx(2, rel=1e-3)
    assert found.low == pytest.approx(2 / (1 + stats.RESOLUTION), rel=1e-3)
    assert found.high == pytest.approx(2 * (1 + stats.RESOLUTION), rel=1e-3)


def test_two_processes_that_differ_by_less_than_the_resolution_are_not_told_apart() -> None:
    same = [[1_000_000] * 30 for _ in range(20)]
    found = stats.speedup(same, [[1_010_000] * 30 for _ in range(20)], vs="a", seed=0)
    assert found.low is not None
    assert found.high is not None
    assert found.low < 1 < found.high


def test_the_interval_is_the_same_for_the_same_seed() -> None:
    assert stats.speedup(windows(0), windows(1), vs="a", seed=3) == stats.speedup(
        windows(0), windows(1), vs="a", seed=3
    )


def test_one_round_has_no_interval_and_unequal_rounds_no_pairs() -> None:
    found = stats.speedup([[2]], [[1]], vs="a", seed=0)
    assert (found.median, found.low, found.high) == (2, None, None)
    with pytest.raises(ValueError, match="2 windows cannot be paired with 1"):
        stats.speedup([[2], [2]], [[1]], vs="a", seed=0)


def test_stable_means_that_the_windows_agree() -> None:
    assert stats.stable([[100, 101]] * 5)
    assert not stats.stable([[100]] * 4), "too few windows to say so"
    assert not stats.stable([[100], [100], [130], [130], [130], [160]])
    assert stats.stable([[100]] * 19 + [[500]]), "one window that was disturbed is no trend"
