"""Forecasts that a recurrent model has to beat: the last value, the same time a day or week ago, and a regression."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from . import _traffic

if TYPE_CHECKING:
    from deploykit.types import Array

    from ._traffic import Layout, Series, Split

RIDGE = 1e-3  # so small that it only settles what the data leave open


def baselines(series: Series, given: Layout, split: Split) -> dict[str, float]:
    """Mean absolute error of each baseline on the rows that ``split`` forecasts, the same rows for all.

    A season is left out where the series is too short to look back so far from every one of them.
    """
    rows = np.array(_traffic.spans(series, given.window)[split])
    found = {"persistence": _error(series, rows, _ago(series, rows, 1))}
    for name, days in (("same_time_yesterday", 1), ("same_time_last_week", 7)):
        if rows[0] >= days * series.per_day:
            found[name] = _error(series, rows, _ago(series, rows, days * series.per_day))
    return {**found, "linear_regression": _error(series, rows, regression(series, given, split))}


def regression(series: Series, given: Layout, split: Split) -> Array:
    """Forecasts of a linear regression on all that the model sees: every input of every step of the window.

    Least squares on the normalized training windows, of the change since the last value, with a trace of ridge.
    """
    x, change = _design(series, given, "train")
    gram = x.T @ x + RIDGE * len(x) * np.eye(x.shape[1])
    weights = np.linalg.solve(gram, x.T @ change)
    asked, _ = _design(series, given, split)
    last = series.values[np.array(_traffic.spans(series, given.window)[split]) - 1, 0]
    forecast: Array = last + asked @ weights * given.columns[0].scale
    return forecast


def _design(series: Series, given: Layout, split: Split) -> tuple[Array, Array]:
    x, target = _traffic.windows(series, given, split)
    steps = x.astype(np.float64)
    last = steps[:, -1, 0].copy()
    for place, column in enumerate(given.columns):
        steps[:, :, place] = (steps[:, :, place] - column.mean) / column.scale
    flat = np.concatenate((steps.reshape(len(steps), -1), np.ones((len(steps), 1))), axis=1)
    return flat, (target - last) / given.columns[0].scale


def _ago(series: Series, rows: Array, steps: int) -> Array:
    past: Array = series.values[rows - steps, 0]
    return past


def _error(series: Series, rows: Array, forecast: Array) -> float:
    return float(np.abs(series.values[rows, 0].astype(np.float64) - forecast).mean())
