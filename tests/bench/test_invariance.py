from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from deploykit.bench.invariance import Probe, batch_probe, prefix_probe
from deploykit.bench.shapes import Shape
from deploykit.bench.worker import Description
from deploykit.types import DimRange, TensorSpec

if TYPE_CHECKING:
    from deploykit.types import Array

INPUTS = tuple(map(TensorSpec.parse, ("x:float32[batch,time]", "lengths:int64[batch]", "scale:float32[3]")))
AXES = {"y": 1}


def sample(seed: int, sizes: Mapping[str, int]) -> dict[str, Array]:
    """Ones for the first seed, twos for the second, and so on."""
    batch, time = sizes["batch"], sizes["time"]
    x = np.full((batch, time), seed + 1, np.float32)
    return {"x": x, "lengths": np.full(batch, time), "scale": np.ones(3, np.float32)}


def describe(**dims: DimRange) -> Description:
    return Description(INPUTS, (), dims, None, None)


def test_a_row_alone_and_beside_neighbours_ten_times_larger() -> None:
    probe = batch_probe(describe(), Shape(1, 5), sample, AXES, seed=0)
    assert probe is not None
    assert probe.plain["x"].tolist() == [[1.0] * 5]
    assert probe.changed["x"].tolist() == [[1.0] * 5] + [[20.0] * 5] * 3
    assert probe.changed["lengths"].tolist() == [5] * 4, "an integer is no magnitude"
    assert probe.changed["scale"].tolist() == [1.0] * 3, "what has no batch is no neighbour's"


def test_where_a_row_cannot_be_alone_it_has_plain_neighbours() -> None:
    probe = batch_probe(describe(batch=DimRange(2, 3)), Shape(2, 5), sample, AXES, seed=0)
    assert probe is not None
    assert probe.plain["x"].tolist() == [[1.0] * 5] * 3
    assert batch_probe(describe(batch=DimRange(1, 1)), Shape(1, 5), sample, AXES, seed=0) is None


def test_a_sequence_alone_and_with_steps_ten_times_larger_after_it() -> None:
    probe = prefix_probe(describe(), Shape(1, 3), sample, AXES, seed=0)
    assert probe is not None
    assert probe.plain["x"].tolist() == [[1.0] * 3]
    assert probe.changed["x"].tolist() == [[1.0] * 3 + [20.0] * 3]
    assert probe.changed["lengths"].tolist() == [3], "still the true length of the part that is compared"


def test_the_prefix_fits_into_the_models_range() -> None:
    probe = prefix_probe(describe(time=DimRange(1, 10)), Shape(1, 8), sample, AXES, seed=0)
    assert probe is not None
    assert probe.changed["x"].shape == (1, 10)
    assert prefix_probe(describe(time=DimRange(6, 10)), Shape(1, 8), sample, AXES, seed=0) is None
    assert prefix_probe(describe(), Shape(1, 8), sample, {}, seed=0) is None


def test_only_the_first_row_or_the_first_steps_count() -> None:
    y = np.arange(6, dtype=np.float32).reshape(2, 3)
    other = y.copy()
    other[1] += 5
    assert Probe({}, {}, {"y": 0}, first_row=True).deviation({"y": y}, {"y": other}) == (0, 2)
    assert Probe({}, {}, {"y": 1}, first_row=False).deviation({"y": y[:, :2]}, {"y": other}) == (5, 4)
    other[0, 0] = np.nan
    assert Probe({}, {}, {"y": 0}, first_row=True).deviation({"y": y}, {"y": other}) == (np.inf, np.inf)
