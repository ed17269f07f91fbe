"""Arrivals by chance, the queue before one server, and the search for the highest rate that holds a bound."""

from __future__ import annotations

import time
from collections.abc import Collection

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


def test_the_time_of_service_is_told_apart_from_the_queue() -> None:
    """Two at once, each 10 ms of work, and one that finds nobody before it."""
    times = np.array([0, 0, 100_000_000], np.int64)
    assert load.service_ms(times, [10_000_000, 20_000_000, 40_000_000]) == pytest.approx((10 + 10 + 40) / 3)


class Server:
    """M/M/1: the 99th percentile of the time in the system is ln(100) / (service rate - arrival rate).

    ``slow`` has the tries, by number, whose requests take twice as long.
    """

    def __init__(self, service_ms: float, slow: Collection[int] = ()) -> None:
        self.service_ms, self.slow, self.rates = service_ms, slow, list[float]()

    def __call__(self, rate: float) -> load.Tried:
        service = self.service_ms * (2 if len(self.rates) in self.slow else 1)
        self.rates.append(rate)
        left = 1000 / service - rate
        return load.Tried(rate, np.log(100) / left * 1000, service) if left > 0 else load.Tried(rate, np.inf, None)

    def truth(self, bound_ms: float) -> float:
        return float(1000 / self.service_ms - np.log(100) / (bound_ms / 1000))


@pytest.mark.parametrize("service_ms", [1.0, 7.0])
@pytest.mark.parametrize("thought", [0.2, 0.45, 1.0, 3.0])
def test_the_highest_rate_is_where_the_percentile_meets_the_bound(service_ms: float, thought: float) -> None:
    """Whatever the ceiling was thought to be."""
    server, bound = Server(service_ms), 20 * service_ms
    found, tried = load.highest_rate(server, bound, thought * 1000 / service_ms)
    assert found is not None
    assert server.truth(bound) / (1 + load.CLOSE) <= found <= server.truth(bound)
    assert len(tried) < 12
    assert max(one.rate for one in tried if one.found_ms <= bound) == found
    assert min(one.rate for one in tried if one.found_ms > bound) <= found * (1 + load.CLOSE)


@pytest.mark.parametrize("slow", [(0,), (1,), (2,), (5,), (0, 1), (2, 3)])
def test_a_slow_moment_bounds_nothing(slow: tuple[int, ...]) -> None:
    """Neither one before the tries, which made the ceiling half of what it is, nor one of the tries."""
    server = Server(5.0, slow)
    found, tried = load.highest_rate(server, 100.0, 100.0)
    assert found is not None
    assert server.truth(100.0) / (1 + load.CLOSE) <= found <= server.truth(100.0)
    assert len(tried) < 20


def test_a_failure_is_tried_again_once_and_only_where_its_inferences_were_slow() -> None:
    server = Server(5.0)
    load.highest_rate(server, 100.0, 200.0)
    assert len(set(server.rates)) == len(server.rates)
    slowed = Server(5.0, range(3, 100))
    found, _ = load.highest_rate(slowed, 100.0, 200.0)
    assert found is not None
    assert found >= 100, "what held stays held"
    assert max(map(slowed.rates.count, slowed.rates)) == 2


def test_more_work_than_there_is_time_does_not_hold_however_wide_the_bound() -> None:
    """A short try's queue has no time to grow."""
    assert not load.Tried(101.0, 300.0, 10.0).holds(1000.0)
    assert load.Tried(99.0, 300.0, 10.0).holds(1000.0)
    found, _ = load.highest_rate(lambda rate: load.Tried(rate, 300.0, 10.0), 1000.0, 50.0)
    assert found is not None
    assert 100 / (1 + load.CLOSE) <= found < 100


def test_a_bound_that_nothing_holds() -> None:
    found, tried = load.highest_rate(lambda rate: load.Tried(rate, 50.0, 50.0), 1.0, 100.0)
    assert found is None
    assert all(one.found_ms == 50 for one in tried)
