"""Traffic forecasting as a task for the training loop: shuffled windows, absolute error."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from deploykit.types import Metric

from . import _traffic
from ._facts import write_layout
from ._run import State
from ._traffic_baselines import baselines
from ._training import Step, infer_with

if TYPE_CHECKING:
    from deploykit.types import Array


@dataclass(frozen=True)
class Batch:
    """``x`` float32 [batch, time, inputs] and ``target`` float32 [batch], raw units."""

    x: Tensor
    target: Tensor


@dataclass(frozen=True)
class TrafficTask:
    """Windows of a series, shuffled anew in every epoch; the mean absolute error chooses and judges."""

    series: _traffic.Series
    layout: _traffic.Layout
    batch: int
    seed: int

    #: What ``open`` reads, for whoever has to ask for it.
    DATA: ClassVar[str] = "a CSV file of a detector: a line of column names, then a row of numbers every five minutes"
    #: The options that ``open`` takes besides.
    OPTIONS: ClassVar[frozenset[str]] = frozenset({"target", "columns", "minutes", "daily"})
    BATCHING: ClassVar[tuple[str, ...]] = ("shuffled",)
    OUTPUTS: ClassVar[tuple[str, ...]] = ("y",)

    @classmethod
    def open(
        cls,
        data: Path,
        *,
        batch: int,
        time: int,
        seed: int,
        batching: str = "shuffled",
        target: str = _traffic.TARGET,
        columns: Sequence[str] = (),
        minutes: float = _traffic.MINUTES,
        daily: bool = True,
    ) -> TrafficTask:
        """The task of the series in a CSV file, ``time`` steps a window.

        Raises:
            UsageError: the file cannot be read, has a bad cell, or is too short.
        """
        series = _traffic.read(data, target, columns, minutes)
        return cls(series, _traffic.layout(series, time, daily=daily), batch, seed)

    @classmethod
    def reopen(cls, data: Path, layout: _traffic.Layout, *, seed: int) -> TrafficTask:
        """The task of a file as weights of that ``layout`` take it: their columns, their units, their window.

        Raises:
            UsageError: as ``open``.
        """
        names = [column.name for column in layout.columns]
        return cls(_traffic.read(data, names[0], names, layout.minutes), layout, batch=64, seed=seed)

    @property
    def metric(self) -> Metric:
        """Mean absolute error on the test span, in the target's own unit."""
        return Metric("mae", higher_is_better=False, evaluate=lambda infer: _traffic.mae(infer, self.held_out()))

    @property
    def fingerprint(self) -> str:
        """What the training data are, in few characters: a run is only resumed with the same."""
        return hashlib.sha256(write_layout(self.layout)["layout"].encode() + self.series.values.tobytes()).hexdigest()

    def held_out(self) -> dict[str, Array]:
        """The test span as metrics take it: windows ``x`` [n, time, inputs] and ``target`` [n], raw units."""
        x, target = self._windows["test"]
        return {"x": x, "target": target}

    def steps(self) -> Iterator[Step[Batch]]:
        generator = np.random.default_rng(self.seed)
        x, target = map(torch.from_numpy, self._windows["train"])
        size = min(self.batch, len(x))
        while True:
            order = generator.permutation(len(x))
            for start in range(0, len(x) - size + 1, size):
                chosen = torch.from_numpy(order[start : start + size])
                yield Step(Batch(x[chosen], target[chosen]), fresh=True)

    def loss(self, module: nn.Module, batch: Batch, state: State) -> tuple[Tensor, int, State]:
        """Mean absolute error in units of the target's spread, so that rates and clipping do not depend on its unit."""
        error = (module(batch.x)[:, 0] - batch.target).abs().mean()
        return error / self.layout.columns[0].scale, len(batch.target), None

    def validate(self, module: nn.Module) -> float:
        x, target = self._windows["validation"]
        return _traffic.mae(infer_with(module, self.OUTPUTS), {"x": x, "target": target})

    def facts(self, metric: Metric) -> dict[str, str]:
        sizes = {f"{split}_windows": str(len(target)) for split, (_, target) in self._windows.items()}
        measured = baselines(self.series, self.layout, "test")
        return {
            "baseline": f"{min(measured.values()):.6f}",  # the strongest of them
            **{name: f"{value:.6f}" for name, value in measured.items()},
            **sizes,
            **write_layout(self.layout),
        }

    def judge(self, module: nn.Module) -> dict[str, float]:
        """Nothing besides the metric."""
        return {}

    @cached_property
    def _windows(self) -> dict[_traffic.Split, tuple[Array, Array]]:
        splits: tuple[_traffic.Split, ...] = ("train", "validation", "test")
        return {split: _traffic.windows(self.series, self.layout, split) for split in splits}
