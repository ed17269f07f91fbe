"""Traffic forecasting: a detector's past steps to its next one. CSV files, splits by time, windows, module, spec.

Nothing of the data is in the repository. What a module must know of the series that it was trained on (its columns,
their means and scales) is its ``Layout``, which its weights file carries as metadata.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec
import numpy as np
import torch
from torch import Tensor

from deploykit.errors import UsageError
from deploykit.types import DimRange, ModelSpec, TensorSpec

from ._facts import read_layout
from ._heads import Forecaster

if TYPE_CHECKING:
    from deploykit.types import Array, Feeds, Infer, Sampler

    from .family import Recurrent

Split = Literal["train", "validation", "test"]

TARGET = "flow"
MINUTES = 5.0  # between two rows
SHARES = (0.70, 0.15)  # of training and validation; the test has the rest, which is the latest
DAY = ("day_sin", "day_cos")  # the time of day as a point on a circle, so that midnight has no jump
LONGEST = 4096  # steps that the exported model is promised for
EVALUATION_BATCH = 512


@dataclass(frozen=True)
class Series:
    """``values`` float32 [rows, columns], one row every ``minutes``; the target is the first column."""

    names: tuple[str, ...]
    values: Array
    minutes: float = MINUTES

    @property
    def per_day(self) -> int:
        """Rows of 24 hours."""
        return max(1, round(24 * 60 / self.minutes))


class Column(msgspec.Struct, frozen=True):
    """What is kept of an input column, all of the training span: enough to normalize it, and to make up others like it.

    ``like`` is its correlation with the target.
    """

    name: str
    mean: float
    scale: float
    low: float
    high: float
    like: float


class Layout(msgspec.Struct, frozen=True):
    """What a module takes: ``columns``, target first, then the time of day where ``daily``."""

    columns: tuple[Column, ...]
    daily: bool
    minutes: float
    window: int

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names along the last axis of ``x``, in order."""
        return (*(column.name for column in self.columns), *(DAY if self.daily else ()))

    @property
    def input_size(self) -> int:
        return len(self.inputs)


# What a freeway's detector counts in five minutes, in round numbers: for a module that has met no data.
USUAL = Layout(
    (
        Column(TARGET, 250.0, 140.0, 0.0, 650.0, 1.0),
        Column("occupancy", 0.04, 0.04, 0.0, 0.3, 0.8),
        Column("speed", 65.0, 8.0, 20.0, 75.0, -0.5),
    ),
    daily=True,
    minutes=MINUTES,
    window=24,
)


def read(path: Path, target: str = TARGET, columns: Sequence[str] = (), minutes: float = MINUTES) -> Series:
    """The CSV file at ``path``, whose first line names the columns; ``columns`` are the inputs, all of them by default.

    Raises:
        UsageError: the file cannot be read, lacks a column, or has a cell that is no finite number.
    """
    if not minutes > 0:
        raise UsageError(f"rows cannot be {minutes:g} minutes apart: give a positive --minutes.")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = csv.reader(file)
            header = [name.strip() for name in next(lines, [])]
            names = _chosen(header, target, columns, path)
            places = [header.index(name) for name in names]
            rows = [_numbers(row, header, places, path, lines.line_num) for row in lines if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"cannot read {path} as a CSV file in UTF-8: {error}.") from error
    return Series(names, np.array(rows, dtype=np.float32).reshape(len(rows), len(names)), minutes)


def layout(series: Series, window: int, *, daily: bool = True) -> Layout:
    """What a module of ``window`` steps takes of this series, fitted on the training span alone."""
    seen = series.values[: spans(series, window)["train"].stop].astype(np.float64)
    return Layout(tuple(_column(series, seen, place) for place in range(seen.shape[1])), daily, series.minutes, window)


def spans(series: Series, window: int) -> dict[Split, range]:
    """The rows that each split forecasts, in order of time. The steps before a row may lie in the split before.

    Raises:
        UsageError: there are too few rows for one forecast in each split.
    """
    rows = len(series.values)
    ends = [round(rows * SHARES[0]), round(rows * sum(SHARES)), rows]
    if ends[0] <= window or not ends[0] < ends[1] < ends[2]:
        raise UsageError(
            f"the series has {rows} rows, too few to learn from {window} steps in its first {SHARES[0]:.0%} and "
            "test on its last: give a longer file, or a smaller --time."
        )
    return {"train": range(window, ends[0]), "validation": range(ends[0], ends[1]), "test": range(ends[1], ends[2])}


def inputs(series: Series, *, daily: bool) -> Array:
    """The rows as modules take them: float32 [rows, inputs], the time of day at the end. Row 0 counts as midnight."""
    return np.concatenate((series.values, _day(np.arange(len(series.values)), series.per_day)), 1)[
        :, : None if daily else series.values.shape[1]
    ]


def windows(series: Series, given: Layout, split: Split) -> tuple[Array, Array]:
    """Steps float32 [n, window, inputs] of a split, and the target in the step after each, float32 [n]; raw units."""
    rows = np.array(spans(series, given.window)[split])
    places = rows[:, None] + np.arange(-given.window, 0)
    return inputs(series, daily=given.daily)[places], series.values[rows, 0]


class TrafficForecaster(Forecaster):
    """``x`` [batch, time, inputs] to ``y`` [batch, 1]: the target's next value. Raw units on both sides.

    The network sees normalized steps and answers with the change since the last one, so that it begins as persistence.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, encoder: Recurrent, given: Layout) -> None:
        super().__init__(encoder, outputs=1)
        day = [0.0] * (given.input_size - len(given.columns))
        self.register_buffer("mean", torch.tensor([column.mean for column in given.columns] + day))
        self.register_buffer("scale", torch.tensor([column.scale for column in given.columns] + [1.0 for _ in day]))

    def forward(self, x: Tensor) -> Tensor:
        change = super().forward((x - self.mean) / self.scale)
        return x[:, -1, :1] + change * self.scale[:1]


def forecasts(infer: Infer, x: Array) -> Array:
    """The forecast of each window, float [n]: ``infer`` takes ``x`` and returns ``y``."""
    parts = [
        infer({"x": x[start : start + EVALUATION_BATCH]})["y"][:, 0] for start in range(0, len(x), EVALUATION_BATCH)
    ]
    return np.concatenate(parts)


def mae(infer: Infer, data: Feeds) -> float:
    """Mean absolute error over ``data``: windows ``x`` and the ``target`` after each, both in raw units."""
    return float(np.abs(forecasts(infer, data["x"]).astype(np.float64) - data["target"]).mean())


def traffic_spec(name: str, build: Callable[[Layout], TrafficForecaster], weights: Path | None) -> ModelSpec:
    """The spec of a forecaster for the series that ``weights`` were trained on, with fresh weights."""
    given = read_layout(weights, Layout) or USUAL
    return ModelSpec(
        module=build(given).eval(),
        inputs=(TensorSpec("x", "float32", ("batch", "time", given.input_size)),),
        outputs=(TensorSpec("y", "float32", ("batch", 1)),),
        sample=sampler(given),
        name=name,
        dims={"time": DimRange(1, LONGEST)},
    )


def sampler(given: Layout) -> Sampler:
    """Made-up days by seed: ``{"x": float32 [batch, time, inputs]}``, within the ranges of the training span.

    The target rises in the morning and in the evening, with noise that fades slowly; other columns go with it as far as
    they did in training. Real traffic has more to it: this is for comparing backends, not for judging a model.
    """
    per_day = Series((), np.empty((0, 0)), given.minutes).per_day

    def sample(seed: int, *, batch: int, time: int) -> dict[str, Array]:
        generator = np.random.default_rng(seed)
        rows = generator.integers(0, per_day, (batch, 1)) + np.arange(time)
        demand = _demand(rows / per_day) + 0.3 * _fading(generator, rows.shape)
        columns = [_like(column, demand, 0.7 * _fading(generator, rows.shape)) for column in given.columns]
        day = np.moveaxis(_day(rows, per_day), -1, 0) if given.daily else ()
        return {"x": np.stack([*columns, *day], axis=-1).astype(np.float32)}

    return sample


def _demand(day: Array) -> Array:
    """A weekday's standardized demand: ``day`` counts days, its fraction is the time of day."""
    hour = day % 1 * 24
    peaks: Array = 2.2 * np.exp(-(((hour - 8) / 3) ** 2)) + 2.4 * np.exp(-(((hour - 17) / 4) ** 2)) - 1.2
    return peaks


def _fading(generator: np.random.Generator, shape: tuple[int, ...], keeps: float = 0.9) -> Array:
    """Noise of unit variance whose correlation fades by ``keeps`` a step: AR(1)."""
    noise = generator.standard_normal(shape)
    for step in range(1, shape[1]):
        noise[:, step] = keeps * noise[:, step - 1] + (1 - keeps**2) ** 0.5 * noise[:, step]
    return noise


def _like(column: Column, demand: Array, noise: Array) -> Array:
    own = column.like * demand + (1 - min(1.0, column.like**2)) ** 0.5 * noise
    held: Array = np.clip(column.mean + column.scale * own, column.low, column.high)
    return held


def _day(rows: Array, per_day: int) -> Array:
    angle = rows * (2 * np.pi / per_day)
    return np.stack((np.sin(angle), np.cos(angle)), axis=-1).astype(np.float32)


def _column(series: Series, seen: Array, place: int) -> Column:
    values, target = seen[:, place], seen[:, 0]
    scale, spread = float(values.std()), float(target.std())
    like = (
        float(((values - values.mean()) * (target - target.mean())).mean() / (scale * spread))
        if scale * spread
        else 0.0
    )
    # A column that never changed in training has no scale: it counts as it is.
    kept = (values.mean(), scale or 1.0, values.min(), values.max(), like)
    return Column(series.names[place], *map(float, kept))


def _chosen(header: list[str], target: str, columns: Sequence[str], path: Path) -> tuple[str, ...]:
    if len(set(header)) < len(header) or not all(header):
        raise UsageError(f"{path} needs a first line that gives each column a name of its own; it has {header}.")
    for name in (target, *columns):
        if name not in header:
            raise UsageError(
                f"{path} has no column {name!r}: choose among {', '.join(header)} with --target and --columns."
            )
    return (target, *(name for name in columns or header if name != target))


def _numbers(row: list[str], header: list[str], places: list[int], path: Path, line: int) -> list[float]:
    if len(row) != len(header):
        raise UsageError(f"{path}, line {line} has {len(row)} cells, where the first line names {len(header)} columns.")
    return [_number(row[place], f"{path}, line {line}, column {header[place]!r}") for place in places]


def _number(text: str, where: str) -> float:
    if not text.strip():
        raise UsageError(f"{where} is empty: fill it, or leave the column out with --columns.")
    try:
        number = float(text)
    except ValueError:
        number = np.nan
    if not np.isfinite(number):
        raise UsageError(f"{where} is {text!r}, no finite number: mend it, or leave the column out with --columns.")
    return number
