"""Shape profiles: what the command line says, what follows from it, and what the model does not take."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deploykit.errors import UsageError
from deploykit.trt.profiles import OTHER, SIZES, derive, fits, told
from deploykit.types import DimRange, TensorSpec

X = TensorSpec("x", "float32", ("batch", "time", 40))
STATE = TensorSpec("h_in", "float32", (2, "batch", 64))


def one(text: str, inputs: tuple[TensorSpec, ...] = (X,), dims: dict[str, DimRange] | None = None) -> dict[str, object]:
    (profile,) = derive((text,), inputs, dims or {})
    return dict(profile)


def test_three_shapes_of_an_input() -> None:
    assert one("x=1x1x40:1x100x40:16x400x40") == {"x": ((1, 1, 40), (1, 100, 40), (16, 400, 40))}


def test_one_shape_stands_for_all_three() -> None:
    assert one("x=4x100x40") == {"x": ((4, 100, 40),) * 3}


def test_other_inputs_follow_by_the_names_of_their_dims() -> None:
    found = one("x=1x1x40:2x100x40:16x400x40", (X, STATE))
    assert found["h_in"] == ((2, 1, 64), (2, 2, 64), (2, 16, 64))


def test_sizes_of_dims_alone_and_blanks() -> None:
    assert one(" batch = 1:4:8 , time=10:20:30") == {"x": ((1, 10, 40), (4, 20, 40), (8, 30, 40))}
    assert one("time=50")["x"] == ((1, 50, 40), (1, 50, 40), (SIZES["batch"][2], 50, 40))


def test_an_input_named_like_a_dim_is_the_input() -> None:
    spec = TensorSpec("time", "float32", ("batch", "time"))
    assert one("time=1x2:3x4:5x6", (spec,)) == {"time": ((1, 2), (3, 4), (5, 6))}


def test_without_a_word_it_follows_from_the_model() -> None:
    (profile,) = derive((), (X, STATE), {})
    low, tuned, high = zip(SIZES["batch"], SIZES["time"], strict=True)
    assert profile["x"] == ((*low, 40), (*tuned, 40), (*high, 40))
    (profile,) = derive((), (X,), {"time": DimRange(8, 50)})
    assert profile["x"] == ((1, 8, 40), (1, 50, 40), (SIZES["batch"][2], 50, 40))
    (profile,) = derive((), (X,), {"time": DimRange(5000)})
    assert profile["x"] == ((1, 5000, 40), (1, 5000, 40), (SIZES["batch"][2], 5000, 40))
    (profile,) = derive((), (TensorSpec("a", "float32", ("tokens",)),), {})
    assert profile["a"] == ((OTHER[0],), (OTHER[1],), (OTHER[2],))


def test_inputs_of_fixed_shape_and_scalars_are_in_it() -> None:
    fixed, scalar = TensorSpec("a", "float32", (3, 4)), TensorSpec("b", "int64", ())
    (profile,) = derive((), (fixed, scalar), {})
    assert profile == {"a": ((3, 4),) * 3, "b": ((),) * 3}
    assert derive((told(profile),), (fixed, scalar), {}) == (profile,)


def test_every_text_is_a_profile() -> None:
    first, second = derive(("time=1", "time=2:100:400"), (X,), {})
    assert first["x"][2][1] == 1
    assert second["x"][2][1] == 400


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x", "write it like"),
        ("y=1x1x40", "no input and no dynamic dim 'y'"),
        ("tine=1:2:3", "did you mean time?"),
        ("x=1x1x40:2x2x40", "has 2 shapes"),
        ("x=1x40", "2 dims"),
        ("x=1x1x40:1x40:1x1x40", "different numbers of dims"),
        ("x=1x1x41", "40 is fixed"),
        ("x=0x1x40", "positive sizes"),
        (f"time={'9' * 5000}", "positive sizes"),
        ("x=1xax40", "cannot read '1xax40'"),
        ("x=2x1x40:1x1x40:4x1x40", "must grow"),
        ("x=1x1x40,x=2x2x40", "twice"),
        ("x=1x1x40,batch=2", "two different sizes"),
        ("batch=1x2", "is one dim"),
        ("time=1:2000:3000", "exported for 1 to 1000"),
    ],
)
def test_what_cannot_be_meant_is_one_sentence(text: str, words: str) -> None:
    with pytest.raises(UsageError) as error:
        one(text, dims={"time": DimRange(1, 1000)})
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_a_dim_of_two_inputs_has_one_size() -> None:
    with pytest.raises(UsageError, match="batch two different sizes"):
        one("x=1x1x40:2x2x40:4x4x40,h_in=2x1x64:2x2x64:2x8x64", (X, STATE))
    # One that a single input could not contradict itself in.
    square = TensorSpec("s", "float32", ("n", "n"))
    with pytest.raises(UsageError, match="two different sizes"):
        one("s=2x3", (square,))


def test_what_lies_within() -> None:
    profile = one("x=1x1x40:1x100x40:16x400x40")
    assert fits(profile, {"x": (16, 1, 40)})  # type: ignore[arg-type]
    assert not fits(profile, {"x": (17, 1, 40)})  # type: ignore[arg-type]
    assert not fits(profile, {"x": (1, 40)})  # type: ignore[arg-type]
    assert not fits(profile, {"y": (1, 1, 40)})  # type: ignore[arg-type]


SIZE = st.integers(1, 5000)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(SIZE, min_size=3, max_size=3).map(sorted), st.lists(SIZE, min_size=3, max_size=3).map(sorted))
def test_a_profile_is_read_again_as_it_is_told(batch: list[int], time: list[int]) -> None:
    asked = f"batch={':'.join(map(str, batch))},time={':'.join(map(str, time))}"
    (profile,) = derive((asked,), (X, STATE), {})
    assert derive((told(profile),), (X, STATE), {}) == (profile,)
    for shapes in zip(*profile.values(), strict=True):
        assert fits(profile, dict(zip(profile, shapes, strict=True)))
