"""TensorSpec, DimRange and ModelSpec."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from deploykit.errors import UsageError
from deploykit.types import DTYPES, DimRange, ModelSpec, TensorSpec

names = st.from_regex(r"[a-z_][a-z0-9_]{0,8}", fullmatch=True)


@given(names, st.sampled_from(DTYPES), st.lists(st.one_of(st.integers(1, 10**6), names), max_size=5))
def test_a_spec_reads_what_it_prints(name: str, dtype: str, dims: list[int | str]) -> None:
    spec = TensorSpec(name, dtype, tuple(dims))
    assert TensorSpec.parse(str(spec)) == spec


def test_the_dtype_is_float32_when_left_out() -> None:
    assert TensorSpec.parse(" x [batch, time, 40] ") == TensorSpec("x", "float32", ("batch", "time", 40))


@pytest.mark.parametrize(
    "text",
    ["x", "x:float32", "[batch]", "x:[batch", "x:float32[0]", "x:float32[a-b]", "x:double[3]", "x[-1]", "x[batch,,8]"],
)
def test_a_malformed_spec_is_a_usage_error_that_quotes_it(text: str) -> None:
    with pytest.raises(UsageError) as error:
        TensorSpec.parse(text)
    assert text in str(error.value)


def test_shape_takes_the_sizes_by_name() -> None:
    assert TensorSpec.parse("x[batch,time,4]").shape({"batch": 2, "time": 5}) == (2, 5, 4)


def test_a_dim_range_is_read_and_must_not_be_empty() -> None:
    assert DimRange.parse("time=1:4096") == ("time", DimRange(1, 4096))
    assert [DimRange(3, 9).clamp(size) for size in (1, 5, 20)] == [3, 5, 9]
    for text in ("time", "time=5", "time=9:3", "time=0:3", "=1:2"):
        with pytest.raises(UsageError):
            DimRange.parse(text)


def test_noise_is_seeded_and_has_the_declared_shapes_and_dtypes() -> None:
    inputs = (
        TensorSpec.parse("x[batch,time,4]"),
        TensorSpec.parse("ids:int64[batch]"),
        TensorSpec.parse("on:bool[batch]"),
    )
    spec = ModelSpec(nn.Identity(), inputs)
    first, again, other = (spec.feeds(seed, batch=3, time=5) for seed in (1, 1, 2))
    assert [first[name].shape for name in ("x", "ids", "on")] == [(3, 5, 4), (3,), (3,)]
    assert [str(first[name].dtype) for name in ("x", "ids", "on")] == ["float32", "int64", "bool"]
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not np.array_equal(first["x"], other["x"])
    assert spec.dynamic == ("batch", "time")
