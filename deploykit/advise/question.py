"""What is asked: the sizes of the model's work, and the limits that it has to keep."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from deploykit.errors import UsageError

Device = Literal["cpu", "gpu"]

#: What is asked of where nothing is said. The study's and the costs' own models have about as many.
STEPS, FEATURES, OUTPUTS = 50, 16, 1
#: The statistic that is shown and compared where no limit names one.
STAT = "p99"


@dataclass(frozen=True)
class Question:
    """``steps`` of ``features`` numbers each, ``batch`` rows at once, to ``outputs`` numbers, on ``threads`` threads.

    ``latency``: the most milliseconds that each statistic may be; ``size_bytes``: the most that the file may have.
    ``tasks``: whose results count for quality, all of them where none is named. ``architectures``: the only ones to
    weigh; all where none is named. ``precisions`` and ``backends`` likewise.
    """

    steps: int = STEPS
    batch: int = 1
    features: int = FEATURES
    outputs: int = OUTPUTS
    threads: int = 1
    device: Device = "cpu"
    latency: Mapping[str, float] = field(default_factory=dict)
    size_bytes: int | None = None
    tasks: tuple[str, ...] = ()
    architectures: tuple[str, ...] = ()
    backends: tuple[str, ...] = ()
    precisions: tuple[str, ...] = ()
    causal: bool = False

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "features", "outputs", "threads"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} {getattr(self, name)} is below 1.")

    @property
    def stat(self) -> str:
        """The latency's statistic that candidates are compared by: the first that is limited, or p99."""
        return next(iter(self.latency), STAT)
