"""Requests that arrive by chance: the server scenario of MLPerf Inference (Reddi et al., ISCA 2020), in one process.

Arrivals are a Poisson process: the gaps between them are exponential with the mean 1 / rate. One server answers them in
turn, and a request's latency runs from its arrival to its answer, so that it holds the time in the queue.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: Requests that a rate is judged by, at least: p99 wants a hundred, and tells something from some hundreds on.
LEAST_REQUESTS = 200
#: The search for the highest rate ends when what holds and what does not are this close.
CLOSE = 0.05
#: A queue longer than this many seconds of work is not going to be emptied: the rate is too high, and waiting is idle.
HOPELESS_S = 2.0


@dataclass(frozen=True)
class Tried:
    """A rate in requests a second, and the latency percentile in milliseconds that it had; inf for one given up."""

    rate: float
    found_ms: float


def arrivals(rate: float, count: int, seed: int) -> NDArray[np.int64]:
    """Nanoseconds from the start at which ``count`` requests arrive, ``rate`` of them a second on average."""
    import numpy as np

    gaps = np.random.default_rng(seed).exponential(1e9 / rate, count)
    return np.cumsum(gaps).astype(np.int64)


def serve(infer: Callable[[int], object], times: NDArray[np.int64]) -> list[int] | None:
    """Nanoseconds from each request's arrival to its answer; None where the queue ran away.

    ``infer`` is given the number of the request. Waiting for the next one is by sleep, and by the clock in the end, as
    a sleep ends late.
    """
    clock = time.perf_counter_ns
    found: list[int] = []
    start = clock()
    for number, arrival in enumerate(times.tolist()):
        due = start + arrival
        while (left := due - clock()) > 0:
            if left > 200_000:
                time.sleep((left - 150_000) / 1e9)
        infer(number)
        found.append(clock() - due)
        if found[-1] > HOPELESS_S * 1e9:
            return None
    return found


def highest_rate(
    measure: Callable[[float], float], bound_ms: float, ceiling: float
) -> tuple[float | None, list[Tried]]:
    """The highest rate whose latency percentile stays within ``bound_ms``, and all that was tried on the way.

    ``measure(rate)`` returns the percentile in milliseconds. ``ceiling`` is what one server could do without a pause;
    rates are halved from there until one holds, and then the gap is closed by bisection. None where even a hundredth of
    the ceiling does not hold.
    """
    tried: list[Tried] = []

    def holds(rate: float) -> bool:
        tried.append(Tried(rate, measure(rate)))
        return tried[-1].found_ms <= bound_ms

    high, low = ceiling, ceiling / 2
    while not holds(low):
        high, low = low, low / 2
        if low < ceiling / 100:
            return None, tried
    while high / low > 1 + CLOSE:
        middle = math.sqrt(high * low)
        if holds(middle):
            low = middle
        else:
            high = middle
    return low, tried
