"""The server scenario of each seat: percentiles at a rate, or the highest rate that holds a bound.

How long a try takes is known before it is made, as requests / rate: the search plans by that, and needs no clock.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from deploykit.bench import load
from deploykit.bench.report import Server, Try
from deploykit.bench.scenario import PERCENTILES, Bound
from deploykit.bench.seat import Seat
from deploykit.bench.settings import Settings
from deploykit.bench.shapes import Shape
from deploykit.bench.stats import device_time, percentile
from deploykit.bench.worker import Timed

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Seconds of requests that a try lasts, where those are more than ``load.LEAST_REQUESTS``, and those at a given rate.
TRY_SECONDS, RATE_SECONDS = 2.0, 10.0
#: All tries of one row together, and the one try at a given rate, may last so many seconds.
CAP_SECONDS = 60.0
#: At very high rates more requests than this say nothing new.
MOST_REQUESTS = 50_000
_SEED = 4_000_000

#: Sends so many requests at a rate, with a seed; nanoseconds from arrival to answer, None where the queue ran away.
Send = Callable[[float, int, int], Sequence[int] | None]


class _OutOfTimeError(Exception):
    pass


def measure_server(seats: Sequence[Seat], shape: Shape, settings: Settings, tick: Callable[[str], None]) -> None:
    """Every live seat at one shape, one after the other; its windows have been timed already."""
    for seat in seats:
        if not seat.live:
            continue
        tick(f"server: {seat.subject.backend} {seat.artifact.precision} at {shape}")
        with seat.attempt():
            seat.server[shape] = _measured(seat, shape, settings)


def _measured(seat: Seat, shape: Shape, settings: Settings) -> Server:
    device: dict[float, list[float]] = {}

    def send(rate: float, count: int, seed: int) -> list[int] | None:
        timed: Timed | None = seat.connected.call("requests", str(shape), rate, count, seed)
        # Of two tries at one rate it is the second that counts, here as in the search.
        device[rate] = [] if timed is None else timed.device_ms
        return None if timed is None else timed.samples

    scenario, seed = settings.scenario, settings.seed + _SEED
    if scenario.bound is not None:
        samples = [sample for window in seat.windows[shape] for sample in window]
        found = search(send, scenario.bound, 1e9 / float(np.mean(samples)), seed)
    else:
        assert scenario.rate is not None  # one of the two is there
        found = at_rate(send, scenario.rate, seed)
    return found if found.rate is None else replace(found, device_ms=device_time(device[found.rate]))


def requests_at(rate: float, seconds: float) -> int:
    """How many requests a try has: ``seconds`` of them, and not too few to know a percentile from."""
    return min(MOST_REQUESTS, max(load.LEAST_REQUESTS, math.ceil(rate * seconds)))


def at_rate(send: Send, rate: float, seed: int) -> Server:
    """Percentiles at a rate; fewer than ``LEAST_REQUESTS`` where those would not arrive within ``CAP_SECONDS``."""
    count = min(requests_at(rate, RATE_SECONDS), max(1, int(rate * CAP_SECONDS)))
    return _server(rate, send(rate, count, seed), count, capped=count < load.LEAST_REQUESTS)


def search(send: Send, bound: Bound, ceiling: float, seed: int) -> Server:
    """The highest rate whose percentile is within the bound; ``ceiling`` is what the backend is thought to manage."""
    tries: list[Try] = []
    held: dict[float, tuple[Sequence[int], int]] = {}
    spent = 0.0

    def measure(rate: float) -> load.Tried:
        nonlocal spent
        count = requests_at(rate, TRY_SECONDS)
        if spent + count / rate > CAP_SECONDS:
            raise _OutOfTimeError
        spent += count / rate
        own = seed + len(tries)  # of this try: one unlucky draw must not decide
        found = send(rate, count, own)
        tried = _tried(rate, found, load.arrivals(rate, count, own), bound)
        holds = tried.holds(bound.ms)
        tries.append(Try(rate, _finite(tried.found_ms), tried.service_ms, holds))
        if holds and found is not None:
            held[rate] = (found, count)
        return tried

    try:
        load.highest_rate(measure, bound.ms, ceiling)
        capped = False
    except _OutOfTimeError:
        capped = True
    if not held:
        return Server(None, bound.percentile, bound.ms, None, None, None, None, 0, tuple(tries), capped)
    best = max(held)
    return _server(best, *held[best], bound=bound, tries=tuple(tries), capped=capped)


def _tried(rate: float, found: Sequence[int] | None, times: NDArray[np.int64], bound: Bound) -> load.Tried:
    if found is None:
        return load.Tried(rate, math.inf, None)
    value = _milliseconds(found, PERCENTILES[bound.percentile])
    return load.Tried(rate, math.inf if value is None else value, load.service_ms(times, found))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _server(
    rate: float,
    found: Sequence[int] | None,
    count: int,
    *,
    bound: Bound | None = None,
    tries: tuple[Try, ...] = (),
    capped: bool = False,
) -> Server:
    at = {name: None if found is None else _milliseconds(found, share) for name, share in PERCENTILES.items()}
    return Server(
        rate=rate,
        percentile=None if bound is None else bound.percentile,
        bound_ms=None if bound is None else bound.ms,
        found_ms=None if bound is None else at[bound.percentile],
        p50=at["p50"],
        p90=at["p90"],
        p99=at["p99"],
        requests=count,
        tries=tries,
        capped=capped,
        p95=at["p95"],
        mean=None if found is None else float(np.mean(found)) / 1e6,
    )


def _milliseconds(found: Sequence[int], share: float) -> float | None:
    return percentile(np.asarray(found, np.float64) / 1e6, share)
