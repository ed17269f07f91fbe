"""Real inputs from a user's function, and arguments that are nested, named or constant."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from deploykit import examples
from deploykit.errors import UsageError
from deploykit.types import TensorSpec, ValueRange


class Takes(nn.Module):
    """Answers with what it was called with."""

    def forward(self, x: Tensor, state: Any, *more: Any, scale: Any = None) -> Any:
        return x, state, more, scale


def test_positional_arguments_are_named_after_forwards_parameters() -> None:
    x, h, c = torch.ones(2, 3), torch.zeros(2, 4), torch.zeros(2, 5)
    found = examples.example((x, (h, {"cell": c}), None, 7), Takes(), "ex.py:f")
    assert [str(tensor) for tensor in found.inputs] == [
        "x:float32[2,3]",
        "state_0:float32[2,4]",
        "state_1_cell:float32[2,5]",
    ]
    answer = found.call(Takes(), [x + 1, h + 2, c + 3])
    assert torch.equal(answer[0], x + 1)
    assert torch.equal(answer[1][0], h + 2)
    assert torch.equal(answer[1][1]["cell"], c + 3)
    assert answer[2] == (None, 7)


def test_a_dict_gives_arguments_by_name() -> None:
    x = np.ones((2, 3), np.float32)
    found = examples.example({"scale": x, "x": x, "state": None}, Takes(), "ex.py:f")
    assert [tensor.name for tensor in found.inputs] == ["scale", "x"]
    answer = found.call(Takes(), [torch.zeros(1), torch.ones(1)])
    assert answer[0].item() == 1
    assert answer[3].item() == 0
    assert answer[1] is None


def test_one_tensor_alone_is_the_only_argument() -> None:
    assert [tensor.name for tensor in examples.example(torch.ones(2), Takes(), "f").inputs] == ["x"]


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ((None, 3), "returned no tensors"),
        ((torch.ones(2), object()), "a object as state"),
        ((torch.ones(2, dtype=torch.complex64),), "x as complex64"),
        ({"x": (torch.ones(1),), "x_0": torch.ones(1)}, "have one name"),
    ],
)
def test_an_example_that_cannot_be_used_says_why(value: Any, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        examples.example(value, Takes(), "ex.py:f")


def test_dims_are_named() -> None:
    inputs = (TensorSpec("x", "float32", (2, 30, 4)), TensorSpec("n", "int64", (2,)))
    named = examples.with_axes(inputs, ("x=batch,time,_", "n=batch"))
    assert [str(tensor) for tensor in named] == ["x:float32[batch,time,4]", "n:int64[batch]"]
    for text in ("y=batch", "x=batch", "x", "x=batch,time,4"):
        with pytest.raises(UsageError, match="--dims"):
            examples.with_axes(inputs, (text,))


def test_a_sample_is_cut_from_the_example_and_lengths_stay_within() -> None:
    x = np.arange(60, dtype=np.float32).reshape(2, 30)
    values = {"x": x, "lengths": np.array([30, 11])}
    inputs = (TensorSpec("x", "float32", ("batch", "time")), TensorSpec("lengths", "int64", ("batch",)))
    sample = examples.sample("ex.py:f", inputs, values, {"lengths": ValueRange(1, "time")})
    feeds = sample(0, batch=3, time=5)
    assert feeds["x"].shape == (3, 5)
    assert (np.diff(feeds["x"], axis=1) == 1).all()
    assert feeds["lengths"].tolist() == [5, 5, 5]
    assert sample(0, batch=3, time=20)["lengths"].min() == 11


def test_names_with_dots_are_nested_and_parameters_are_handed_over_by_name() -> None:
    inputs = [TensorSpec(name, "float32", ("batch",)) for name in ("state.0", "state.1", "scale", "x")]
    call = examples.call_by_name(inputs, Takes())
    assert call is not None
    x, state, more, scale = call(Takes(), [torch.tensor(value) for value in range(4)])
    assert (x, state, more, scale) == (3, (0, 1), (), 2)
    assert examples.call_by_name([TensorSpec("a", "float32", ()), TensorSpec("b", "float32", ())], Takes()) is None
    nested = examples.call_by_name([TensorSpec("a", "float32", ()), TensorSpec("b.text", "float32", ())], Takes())
    assert nested is not None
    assert nested(Takes(), [torch.tensor(1), torch.tensor(2)])[1] == {"text": 2}
