"""Requests that arrive by chance: the server scenario of MLPerf Inference (Reddi et al., ISCA 2020), in one process.

Arrivals are a Poisson process: the gaps between them are exponential with the mean 1 / rate. One server answers them in
turn, and a request's latency runs from its arrival to its answer, so that it holds the time in the queue.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
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


#: A try whose inferences took this many times longer than those of the quickest try that held met a slow moment.
SLOWED = 1.10


@dataclass(frozen=True)
class Tried:
    """A rate in requests a second, and the latency percentile in milliseconds that it had; inf for one given up.

    ``service_ms`` is the mean of the inferences themselves, without any queue; None for one given up.
    """

    rate: float
    found_ms: float
    service_ms: float | None

    def holds(self, bound_ms: float) -> bool:
        """Whether the percentile is within the bound, and the work of a second is done within less than one.

        A try is short: without the second, a queue that grows for as long as it lasts could be within a wide bound.
        """
        return self.found_ms <= bound_ms and self.service_ms is not None and self.rate < 1000 / self.service_ms


def arrivals(rate: float, count: int, seed: int) -> NDArray[np.int64]:
    """Nanoseconds from the start at which ``count`` requests arrive, ``rate`` of them a second on average."""
    import numpy as np

    gaps = np.random.default_rng(seed).exponential(1e9 / rate, count)
    return np.cumsum(gaps).astype(np.int64)


def serve(
    infer: Callable[[int], object], times: NDArray[np.int64], answered: Callable[[], None] | None = None
) -> list[int] | None:
    """Nanoseconds from each request's arrival to its answer; None where the queue ran away.

    ``infer`` is given the number of the request. Waiting for the next one is by sleep, and by the clock in the end, as
    a sleep ends late. ``answered`` is called when a request's time has been taken.
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
        if answered is not None:
            answered()
        if found[-1] > HOPELESS_S * 1e9:
            return None
    return found


def service_ms(times: NDArray[np.int64], found: Sequence[int]) -> float:
    """The mean milliseconds that a request was worked on, out of when each arrived and how long it took in all.

    A request is begun when it has arrived and the one before it is answered.
    """
    import numpy as np

    answered = times + np.asarray(found, np.int64)
    begun = np.maximum(times, np.concatenate((times[:1], answered[:-1])))
    return float((answered - begun).mean()) / 1e6


def highest_rate(
    measure: Callable[[float], Tried], bound_ms: float, ceiling: float
) -> tuple[float | None, list[Tried]]:
    """The highest rate whose latency percentile stays within ``bound_ms``, and all that was tried on the way.

    ``ceiling`` is what one server is thought to do without a pause. Half of it is tried first, and halved until a rate
    holds; None where not even a hundredth of the ceiling does. Then rates rise until one fails, whatever the ceiling
    was: what the tries' own inferences allow says how far to go, as the machine may have been slower before. The gap
    between what holds and what does not is halved until it is ``CLOSE``.
    """
    search = _Search(measure, bound_ms)
    rate = ceiling / 2
    while not search.holds(rate):
        rate /= 2
        if rate < ceiling / 100:
            return None, search.tried
    while (following := search.following()) is not None:
        search.holds(following)
    return search.low, search.tried


class _Search:
    """What is known so far: the highest rate that held, those above it that did not, and the quickest inferences."""

    def __init__(self, measure: Callable[[float], Tried], bound_ms: float) -> None:
        self._measure, self._bound_ms = measure, bound_ms
        self.tried: list[Tried] = []
        self.low = 0.0
        self._capacity = 0.0
        self._failed: dict[float, Tried] = {}
        self._twice: set[float] = set()

    def holds(self, rate: float) -> bool:
        found = self._measure(rate)
        self.tried.append(found)
        if found.holds(self._bound_ms):
            self.low = max(self.low, rate)
            self._capacity = max(self._capacity, 1000 / found.service_ms if found.service_ms else 0.0)
            self._failed.pop(rate, None)
            return True
        if rate in self._failed:
            self._twice.add(rate)
        self._failed[rate] = found
        return False

    def following(self) -> float | None:
        """The rate to try next; None where the search has come to its end."""
        high = min(self._failed, default=math.inf)
        if high / self.low > 1 + CLOSE:
            return max(math.sqrt(self.low * min(high, self._capacity)), self.low * math.sqrt(1 + CLOSE))
        return high if high not in self._twice and self._slowed(self._failed[high]) else None

    def _slowed(self, failed: Tried) -> bool:
        """Whether it may have failed for a slow moment of the machine: it is tried again then, once."""
        if failed.service_ms is None:
            return failed.rate * SLOWED < self._capacity
        return failed.service_ms * self._capacity > 1000 * SLOWED
