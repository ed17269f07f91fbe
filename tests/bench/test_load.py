"""Arrivals by chance, the queue before one server, and the search for the highest rate that holds a bound."""

from __future__ import annotations

import time

import numpy as np
import pytest

from deploykit.bench import load


def test_arrivals_are_exponential_with_the_rate_asked_for_and_repeat() -> None:
    times = load.arrivals(50.0, 20_000, seed=1)
    gaps = np.diff(times) / 1e9
    assert gaps.min() >= 0
    assert gaps.mean() == pytest.approx(1 / 50, rel=0.03)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.03)  # as that of an exponential distribution is
    np.testing.assert_array_equal(times, load.arrivals(50.0, 20_000, seed=1))
    assert (load.arrivals(50.0, 100, seed=2) != times[:100]).any()


def test_a_request_waits_for_those_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three requests at once, each 10 ms of work by a clock of our own."""
    now = [0]
    monkeypatch.setattr(time, "perf_counter_ns", lambda: now[0])
    served: list[int] = []

    def work(number: int) -> None:
        served.append(number)
        now[0] += 10_000_000

    assert load.serve(work, np.zeros(3, np.int64)) == [10_000_000, 20_000_000, 30_000_000]
    assert served == [0, 1, 2]


def test_an_idle_server_waits_for_the_next_arrival(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0]
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        now[0] += int(seconds * 1e9)

    def clock() -> int:
        now[0] += 1000  # looking at it takes a microsecond
        return now[0]

    monkeypatch.setattr(time, "perf_counter_ns", clock)
    monkeypatch.setattr(time, "sleep", sleep)
    (found,) = load.serve(lambda number: None, np.array([5_000_000]))  # type: ignore[misc]
    assert found < 10_000
    assert 0.0045 < sum(slept) < 0.005


def test_a_queue_that_runs_away_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    now, served = [0], [0]
    monkeypatch.setattr(time, "perf_counter_ns", lambda: now[0])

    def work(number: int) -> None:
        served[0] += 1
        now[0] += 500_000_000

    assert load.serve(work, np.zeros(100, np.int64)) is None
    assert served[0] == 5


@pytest.mark.parametrize("service_ms", [1.0, 7.0])
def test_the_highest_rate_is_where_the_percentile_meets_the_bound(service_ms: float) -> None:
    """M/M/1: the 99th percentile of the time in the system is ln(100) / (service rate - arrival rate)."""
    ceiling = 1000 / service_ms

    def p99(rate: float) -> float:
        return float(np.log(100) / (ceiling - rate)) * 1000 if rate < ceiling else float("inf")

    bound = 20 * service_ms
    found, tried = load.highest_rate(p99, bound, ceiling)
    truth = ceiling - np.log(100) / (bound / 1000)
    assert found is not None
    assert truth / (1 + load.CLOSE) <= found <= truth
    assert len(tried) < 12
    assert max(one.rate for one in tried if one.found_ms <= bound) == found


def test_a_bound_that_nothing_holds() -> None:
    found, tried = load.highest_rate(lambda rate: 50.0, 1.0, 100.0)
    assert found is None
    assert all(one.found_ms == 50 for one in tried)
