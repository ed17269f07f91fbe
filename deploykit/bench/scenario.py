"""What is timed, after the scenarios of MLPerf Inference (Reddi et al., ISCA 2020), and one for streams."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

from deploykit.errors import UnknownNameError, UsageError

Name = Literal["single-stream", "offline", "server", "streaming"]
SCENARIOS: tuple[Name, ...] = ("single-stream", "offline", "server", "streaming")
#: Percentiles that a bound may be put on.
PERCENTILES = {"p50": 0.50, "p90": 0.90, "p95": 0.95, "p99": 0.99}
#: Steps that a model with carried states is streamed over, unless said otherwise.
DRIFT_STEPS = 10_000
#: Batches that offline looks for its best among.
OFFLINE_BATCHES = (1, 4, 16, 64)


class Defaults(TypedDict, total=False):
    """Sizes of a scenario that are not ``shapes``' own."""

    default_batches: tuple[int, ...]
    default_time: int


@dataclass(frozen=True)
class Bound:
    """A latency percentile that shall be held, in milliseconds."""

    percentile: str
    ms: float

    def __post_init__(self) -> None:
        if self.percentile not in PERCENTILES:
            raise UnknownNameError("percentile in --bound", self.percentile, PERCENTILES)

    def __str__(self) -> str:
        return f"{self.percentile}={self.ms:g}ms"


@dataclass(frozen=True)
class Scenario:
    """``rate`` (requests a second) and ``bound`` are the server's: one of them is given, the other is looked for."""

    name: Name = "single-stream"
    rate: float | None = None
    bound: Bound | None = None

    def __post_init__(self) -> None:
        if self.name not in SCENARIOS:
            raise UnknownNameError("scenario", self.name, SCENARIOS)
        if self.name != "server" and (self.rate is not None or self.bound is not None):
            raise UsageError("--rate and --bound belong to requests that arrive by chance: add --scenario server.")
        if self.name == "server" and (self.rate is None) == (self.bound is None):
            raise UsageError(
                "--scenario server needs either --rate 50, to measure percentiles at that many requests a second, or "
                "--bound p99=20ms, to find the highest rate that holds it."
            )
        if self.rate is not None and not 0 < self.rate < math.inf:
            raise UsageError(f"--rate {self.rate:g} cannot be: name a number of requests a second above 0.")

    @property
    def defaults(self) -> Defaults:
        """The sizes that are taken where none are asked for."""
        if self.name == "offline":
            return {"default_batches": OFFLINE_BATCHES}
        return {"default_time": 1} if self.name == "streaming" else {}

    def require(self, carried: Mapping[str, str]) -> None:
        """Refuse a stream of a model that carries no state.

        Raises:
            UsageError: there is nothing to carry.
        """
        if self.name == "streaming" and not carried:
            raise UsageError(
                "--scenario streaming needs a model whose states are inputs and outputs (h_in and h_out): export it "
                "with --streaming, and bench that artifact or add --streaming here too."
            )

    def told(self) -> dict[str, Any]:
        """What the report's settings say of it."""
        rate = {} if self.rate is None else {"rate": self.rate}
        return {"scenario": self.name, **rate, **({} if self.bound is None else {"bound": str(self.bound)})}
