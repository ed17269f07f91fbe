from __future__ import annotations

import pytest

from deploykit.bench import shapes
from deploykit.bench.shapes import Shape
from deploykit.bench.worker import Description
from deploykit.errors import UsageError
from deploykit.types import DimRange, TensorSpec


def description(*inputs: str, **dims: DimRange) -> Description:
    return Description(tuple(map(TensorSpec.parse, inputs)), (), dims, None, None)


FREE = description("x:float32[batch,time,4]")


def test_every_pair_of_the_sizes_asked_for_once() -> None:
    found = shapes.requested(FREE, (1, 16, 1), (1, 100))
    assert found == (Shape(1, 1), Shape(1, 100), Shape(16, 1), Shape(16, 100))


def test_checks_are_at_three_sizes_one_of_a_step_and_one_beyond_a_hundred() -> None:
    found = shapes.checked(FREE, shapes.requested(FREE, None, None))
    assert found[0] == Shape(1, 100)
    assert len(found) == 4
    assert min(shape.time or 0 for shape in found) == 1
    assert max(shape.time or 0 for shape in found) > 100


def test_extra_checks_stay_in_range() -> None:
    narrow = description("x:float32[batch,time,4]", time=DimRange(5, 60), batch=DimRange(2, 2))
    assert shapes.checked(narrow, [Shape(2, 60)]) == (Shape(2, 60), Shape(2, 5), Shape(2, 7))


def test_a_model_without_dynamic_dims_has_one_shape() -> None:
    static = description("x:float32[1,50,4]")
    assert shapes.requested(static, None, None) == (Shape(None, None),)
    assert shapes.checked(static, (Shape(None, None),)) == (Shape(None, None),)
    assert str(Shape(None, None)) == "its fixed sizes"
    with pytest.raises(UsageError, match="no dynamic dim 'time': leave --time out"):
        shapes.requested(static, None, (100,))


def test_other_dims_get_their_default_moved_into_range() -> None:
    model = description("x:float32[batch,time,4]", "y:float32[batch,beams,words]", beams=DimRange(1, 8))
    assert shapes.sizes(Shape(2, 5), model) == {"batch": 2, "time": 5, "beams": 8, "words": 16}
    assert shapes.sizes(Shape(2, 5), model, time=9)["time"] == 9


def test_another_size_is_near_and_in_range() -> None:
    bounded = description("x:float32[batch,time,4]", time=DimRange(8, 8), batch=DimRange(3, 4))
    assert shapes.other_size(FREE, "time", 100) == 50
    assert shapes.other_size(FREE, "batch", 1) == 2
    assert shapes.other_size(bounded, "batch", 3) == 4
    assert shapes.other_size(bounded, "batch", 4) == 3
    assert shapes.other_size(bounded, "time", 8) is None
    assert shapes.other_size(FREE, "beams", 3) is None


@pytest.mark.parametrize(("batches", "times"), [((0,), None), (None, (0,)), ((), None), (None, (2**31,))])
def test_impossible_sizes_are_usage_errors(batches: tuple[int, ...] | None, times: tuple[int, ...] | None) -> None:
    with pytest.raises(UsageError):
        shapes.requested(FREE, batches, times)
