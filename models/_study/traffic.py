"""The traffic study: a detector's next flow from its last steps."""

from __future__ import annotations

import csv
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from deploykit.errors import UsageError
from deploykit.files import atomic_path
from deploykit.types import DimRange, ModelSpec, TensorSpec

from .. import _traffic
from .._traffic_baselines import baselines
from .._traffic_training import TrafficTask
from .tasks import Shape, StudyTask

if TYPE_CHECKING:
    from .._training import Task

#: A week of rows, five minutes apart, for trying the study without data.
MADE_UP_ROWS, MADE_UP_SEED = 2016, 8


class Study(StudyTask):
    """The mean absolute error over the latest 15 % of the series, the same rows for every window."""

    name, metric, unit, higher_is_better, causal = "traffic", "mae", "vehicles per step", False, False

    def __init__(self, data: Path | None = None) -> None:
        if data is None:
            raise UsageError("the traffic study needs a detector's CSV file: name it with --data, or try --quick.")
        self._series = _traffic.read(data)

    def module(self, architecture: str, shape: Shape) -> nn.Module:
        layout = self._task(1, 1, 0).layout
        return _traffic.TrafficForecaster(shape.encoder(architecture, layout.input_size), layout)

    def spec(self, module: nn.Module, window: int) -> ModelSpec:
        task = self._task(1, window, 0)
        return ModelSpec(
            module=module,
            inputs=(TensorSpec("x", "float32", ("batch", "time", task.layout.input_size)),),
            outputs=(TensorSpec("y", "float32", ("batch", 1)),),
            sample=_traffic.sampler(task.layout),
            name="traffic",
            dims={"time": DimRange(1, 1024)},
            metric=task.metric,
        )

    def training(self, batch: int, window: int, seed: int, *, bucketed: bool = True, chunks: int = 1) -> Task[Any]:
        return self._task(batch, window, seed)

    def baselines(self, window: int) -> dict[str, float]:
        return {
            name.replace("_", " "): value
            for name, value in baselines(self._series, self._task(1, window, 0).layout, "test").items()
        }

    def facts(self) -> dict[str, str | int]:
        digest = hashlib.sha256(self._series.values.tobytes()).hexdigest()
        return {"columns": ", ".join(self._series.names), "rows": len(self._series.values), "sha256": digest}

    def _task(self, batch: int, window: int, seed: int) -> TrafficTask:
        return TrafficTask(self._series, _traffic.layout(self._series, window), batch, seed)


def make_up(path: Path) -> None:
    """Write a made-up detector's CSV file, always the same: two peaks a day, and noise that fades over an hour.

    Raises:
        OutputError: the file cannot be written.
    """
    generator = np.random.default_rng(MADE_UP_SEED)
    hour = np.arange(MADE_UP_ROWS) / 12 % 24
    noise = np.zeros(MADE_UP_ROWS)
    for row in range(1, MADE_UP_ROWS):
        noise[row] = 0.9 * noise[row - 1] + 12 * generator.standard_normal()
    peaks = 330 * np.exp(-(((hour - 8) / 2.5) ** 2)) + 360 * np.exp(-(((hour - 17) / 3) ** 2))
    flow = np.maximum(0, 70 + peaks + noise + 15 * generator.standard_normal(MADE_UP_ROWS)).round()
    speed = np.clip(68 - (flow / 110) ** 2 + generator.standard_normal(MADE_UP_ROWS), 15, 80)
    occupancy = flow / (speed * 130)
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["flow", "occupancy", "speed"])
        for step in zip(flow, occupancy, speed, strict=True):
            writer.writerow([f"{step[0]:.0f}", f"{step[1]:.4f}", f"{step[2]:.1f}"])
