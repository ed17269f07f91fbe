"""The server scenario: what is sent at which rate, and what is said of it. No clock but the fakes' own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

import jsonschema
import numpy as np
import pytest

from deploykit.bench import Settings, bench, load, said, schema, server, stages, to_json
from deploykit.bench.scenario import Bound, Scenario
from tests.bench.fakes import subject
from tests.bench.samples import LATENCY, SERVER


class Queue:
    """A server that needs exactly ``service_ms`` for each request, in time that nobody waits for."""

    def __init__(self, service_ms: float) -> None:
        self._service = service_ms * 1e6
        self.sent: list[tuple[float, int, int]] = []

    def __call__(self, rate: float, count: int, seed: int) -> Sequence[int] | None:
        self.sent.append((rate, count, seed))
        free, found = 0.0, []
        for arrival in load.arrivals(rate, count, seed).tolist():
            free = max(free, arrival) + self._service
            found.append(int(free - arrival))
            if found[-1] > load.HOPELESS_S * 1e9:
                return None
        return found


def test_the_highest_rate_that_holds_is_found() -> None:
    queue = Queue(5.0)
    found = server.search(queue, Bound("p99", 20.0), 200.0, seed=1)
    assert found.rate is not None
    assert 60 < found.rate < 180
    assert found.found_ms is not None
    assert found.found_ms <= 20
    assert found.found_ms == found.p99
    assert found.percentile == "p99"
    assert found.capped is False
    assert [one.rate for one in found.tries] == [rate for rate, _, _ in queue.sent]
    assert all(count >= load.LEAST_REQUESTS for _, count, _ in queue.sent)
    assert len({seed for _, _, seed in queue.sent}) == len(queue.sent), "one unlucky draw must not decide"
    assert found.requests in [count for _, count, _ in queue.sent]
    assert [one.service_ms for one in found.tries if one.found_ms is not None] == pytest.approx(
        [5.0] * sum(one.found_ms is not None for one in found.tries)
    )
    assert max(one.rate for one in found.tries if one.held) == found.rate
    assert any(one.held is False for one in found.tries), "a rate above it was tried"


def test_a_machine_that_was_slow_before_the_search_does_not_bound_the_rate() -> None:
    """The mean latency allowed 51 requests/s, and was that of a slow moment."""
    slow, fair = (server.search(Queue(5.0), Bound("p99", 60.0), ceiling, seed=1) for ceiling in (51.0, 200.0))
    assert slow.rate is not None
    assert fair.rate is not None
    assert slow.rate > 150
    assert slow.rate == pytest.approx(fair.rate, rel=0.1)  # each has draws of its own


def test_a_wide_bound_is_not_held_by_more_work_than_there_is_time() -> None:
    found = server.search(Queue(5.0), Bound("p99", 1500.0), 200.0, seed=1)
    assert found.rate is not None
    assert found.rate < 200
    assert any(one.held is False and one.found_ms is not None and one.found_ms < 1500 for one in found.tries)


def test_a_bound_below_the_service_time_is_held_by_nothing() -> None:
    found = server.search(Queue(0.5), Bound("p50", 0.1), 2000.0, seed=1)
    assert (found.rate, found.found_ms, found.p50, found.requests) == (None, None, None, 0)
    assert said.server(found, "1×1") == (
        "at 1×1, no rate down to 31.2 requests/s holds p50 within 0.1 ms: 6 rates tried."
    )
    assert said.server(found, "1×1", replace(LATENCY, p50=0.05)).endswith("6 rates tried.")
    slow = said.server(found, "1×1", replace(LATENCY, p50=0.5))
    assert slow.endswith("6 rates tried; 0.5 ms is its p50 without any queue.")


def test_the_search_ends_with_its_time_and_says_so() -> None:
    queue = Queue(400.0)
    found = server.search(queue, Bound("p99", 500.0), 2.5, seed=1)
    assert found.capped is True
    assert sum(count / rate for rate, count, _ in queue.sent) <= server.CAP_SECONDS
    told = said.server(found, "1×1")
    assert "the search ended for its time: a lower rate may hold" in told
    higher = replace(SERVER, capped=True)
    assert said.server(higher, "1×1").endswith(
        "3 rates tried, and the search ended for its time: a higher rate may hold."
    )


def test_percentiles_at_a_rate() -> None:
    queue = Queue(2.0)
    found = server.at_rate(queue, 50.0, seed=1)
    assert queue.sent == [(50.0, 500, 1)]
    assert found.p50 is not None
    assert found.p50 == pytest.approx(2.0, rel=0.2)
    assert found.p95 is not None
    assert found.p99 is not None
    assert found.mean is not None
    assert found.p50 < found.mean < found.p95 < found.p99
    assert (found.percentile, found.requests, found.tries, found.capped) == (None, 500, (), False)
    assert said.server(found, "1×1").startswith("at 1×1, p50 2 ms, p90 ")


def test_a_rate_that_is_too_high_runs_away() -> None:
    found = server.at_rate(Queue(100.0), 100.0, seed=1)
    assert (found.p50, found.p99) == (None, None)
    assert said.server(found, "1×1") == "at 1×1, 100 requests/s are too many: its queue ran away."
    assert said.served(found) is None
    assert said.served(replace(found, p50=2.0)) == 100


def test_one_request_has_no_median_and_did_not_run_away() -> None:
    found = server.at_rate(Queue(2.0), 0.01, seed=1)
    assert (found.requests, found.p50, found.mean) == (1, None, 2.0)
    assert said.served(found) == 0.01
    assert said.server(found, "1×1").startswith("at 1×1, mean 2 ms at 0.01 requests/s, over 1 request, as no more")


def test_a_rate_so_low_that_few_arrive() -> None:
    found = server.at_rate(Queue(2.0), 0.5, seed=1)
    assert (found.requests, found.capped, found.p99) == (30, True, None)
    assert said.server(found, "1×1").endswith(
        "over 30 requests, as no more arrive within the time that a try may last."
    )


@pytest.mark.parametrize(("rate", "count"), [(1.0, 200), (1000.0, 2000), (1e6, 50_000)])
def test_a_try_has_requests_enough_and_not_too_many(rate: float, count: int) -> None:
    assert server.requests_at(rate, server.TRY_SECONDS) == count


def test_it_runs_in_the_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "WARM_SECONDS", 0.0)
    monkeypatch.setattr(server, "RATE_SECONDS", 0.01)
    settings = Settings(latency=True, times=(3,), seconds=0.01, rounds=2, timeout_s=60)
    report = bench(
        [subject("PLAIN")], subject("REFERENCE"), replace(settings, scenario=Scenario("server", rate=2000.0))
    )
    for row in report.rows:
        assert row.server is not None
        assert row.server.requests == 200
    assert (report.settings["scenario"], report.settings["rate"]) == ("server", 2000.0)
    jsonschema.Draft202012Validator(schema()).validate(json.loads(to_json(report)))


def test_the_percentiles_are_those_of_numpy() -> None:
    found = server._server(1.0, list(range(1_000_000, 201_000_000, 1_000_000)), 200)
    assert found.p90 == pytest.approx(np.quantile(np.arange(1, 201), 0.9))
