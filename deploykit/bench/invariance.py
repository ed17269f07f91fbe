"""Two things that an answer must not depend on: the row's neighbours in the batch, and the steps that follow.

Quantizers that take one activation scale from a whole batch or sequence break both, unseen by any test that compares
equal batches. So a row is run alone and beside neighbours ten times larger, and a sequence is run alone and with steps
ten times larger appended (appended rather than cut, so that inputs such as lengths stay true).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from deploykit.bench.accuracy import Axes, Outputs, not_finite
from deploykit.bench.shapes import Shape, limits, sizes
from deploykit.bench.worker import Description
from deploykit.types import BATCH, TIME, TensorSpec

if TYPE_CHECKING:
    from deploykit.types import Array

    Sample = Callable[[int, Mapping[str, int]], dict[str, Array]]

LOUDER = 10
ROWS = 4
STEPS = 32


@dataclass(frozen=True)
class Probe:
    """Two sets of feeds, and what part of their outputs should be the same: the first row, or the first steps."""

    plain: Mapping[str, Array]
    changed: Mapping[str, Array]
    axes: Axes
    first_row: bool

    def deviation(self, plain: Outputs, changed: Outputs) -> tuple[float, float] | None:
        """Largest difference in that part, and the largest magnitude in it; None where no output has one.

        Either is infinite where a value is not finite.
        """
        largest, peak = 0.0, 0.0
        for name, axis in self.axes.items():
            a, b = (self._part(outputs[name], axis) for outputs in (plain, changed))
            a, b = _common(a, b)
            if not_finite(a) or not_finite(b):
                return float("inf"), float("inf")
            largest = max(largest, float(np.abs(b - a).max(initial=0.0)))
            peak = max(peak, float(np.abs(a).max(initial=0.0)))
        return (largest, peak) if self.axes else None

    def _part(self, value: Array, axis: int) -> Array:
        return np.asarray(value.take([0], axis=axis) if self.first_row else value, np.float64)


def noise(peak: float) -> float:
    """What float32 sums in another order may differ by, for values up to ``peak``."""
    return 1e-5 + 1e-4 * peak


def batch_probe(description: Description, shape: Shape, sample: Sample, axes: Axes, seed: int) -> Probe | None:
    """A row alone (or, where one row is not allowed, beside plain neighbours) and beside louder ones."""
    bounds = limits(description, BATCH)
    rows = bounds.clamp(ROWS)
    if BATCH not in description.dynamic or rows < 2 or not axes:
        return None
    wanted = sizes(_short(description, shape), description, batch=rows)
    feeds, others = sample(seed, wanted), sample(seed + 1, wanted)
    plain, changed = {}, {}
    for spec in description.inputs:
        own, other = feeds[spec.name], louder(others[spec.name])
        axis = _axis(spec, BATCH)
        first = own if axis is None else own.take([0], axis=axis)
        rest = None if axis is None else other.take(range(1, rows), axis=axis)
        changed[spec.name] = own if rest is None else np.concatenate([first, rest], axis=axis or 0)
        plain[spec.name] = first if bounds.low == 1 else own
    return Probe(plain, changed, axes, first_row=True)


def prefix_probe(description: Description, shape: Shape, sample: Sample, axes: Axes, seed: int) -> Probe | None:
    """A sequence alone, and with as many louder steps after it."""
    bounds = limits(description, TIME)
    steps = _short(description, shape).time
    if TIME not in description.dynamic or steps is None or not axes:
        return None
    if 2 * steps > bounds.high:
        steps = bounds.high // 2
    if steps < bounds.low or steps < 1:
        return None
    wanted = sizes(shape, description, time=steps)
    feeds, others = sample(seed, wanted), sample(seed + 1, wanted)
    changed = {}
    for spec in description.inputs:
        axis = _axis(spec, TIME)
        own = feeds[spec.name]
        changed[spec.name] = own if axis is None else np.concatenate([own, louder(others[spec.name])], axis=axis)
    return Probe(feeds, changed, axes, first_row=False)


def louder(value: Array) -> Array:
    """Ten times ``value`` where it is a float; integers are indices or lengths, and stay."""
    if not np.issubdtype(value.dtype, np.floating):
        return value
    return np.asarray(value * np.asarray(LOUDER, value.dtype), value.dtype)


def _short(description: Description, shape: Shape) -> Shape:
    time = None if shape.time is None else limits(description, TIME).clamp(min(shape.time, STEPS))
    return Shape(shape.batch, time)


def _axis(spec: TensorSpec, dim: str) -> int | None:
    return spec.dims.index(dim) if dim in spec.dims else None


def _common(a: Array, b: Array) -> Sequence[Array]:
    """The leading part that both have: padding and steps may make one of them longer."""
    cut = tuple(slice(min(x, y)) for x, y in zip(a.shape, b.shape, strict=True))
    return a[cut], b[cut]
