"""The user's own metric and inputs: what is called how, and what is said where that does not work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from deploykit import given, loading
from deploykit.artifact import ModelRef
from deploykit.errors import BackendFailedError, ModelError, UsageError
from deploykit.types import TensorSpec, ValueRange

if TYPE_CHECKING:
    from deploykit.types import Array, Feeds

SPECS = (TensorSpec.parse("x:float32[batch,time,2]"), TensorSpec.parse("lengths:int64[batch]"))
LENGTHS = {"lengths": ValueRange(1, "time")}

FUNCTIONS = """
import numpy as np
import torch

def total(infer): return infer({"x": np.ones(3, np.float32)})["y"].sum()
def tensor(infer): return torch.tensor(2.5)
def labelled(infer, data): return data["labels"].sum()
def either(infer, data=None): return 1.0 if data is None else 2.0
def many(infer, *rest): return 3.0
def text(infer): return "good"
def several(infer): return torch.zeros(2)
def nan(infer): return float("nan")
def raises(infer): raise KeyError
def leaves(infer): raise SystemExit("bye")
def three(a, b, c): return 1
table = {}

def made(seed, **sizes):
    n, t = sizes["batch"], sizes["time"]
    return {"x": np.full((n, t, 2), seed, np.float32), "lengths": np.full(n, t), "more": np.zeros(1)}
def in_order(seed, batch, time): return torch.zeros(batch, time, 2), np.full(batch, time)
def recorded(): return {"x": np.zeros((5, 30, 2), np.float32), "lengths": np.full(5, 30), "labels": np.arange(5)}
def one(seed, **sizes): return np.zeros((1, 1, 2), np.float32)
def misnamed(seed, **sizes): return {"x": np.zeros(1), "lenghts": np.zeros(1)}
def doubles(seed, batch, time): return np.zeros((batch, time, 2)), np.full(batch, time)
def short(seed, batch, time): return np.zeros((batch, 4, 2), np.float32), np.full(batch, time)
def lists(seed, **sizes): return [[0.0]], [1]
def only_seed(seed): return None
def fails(seed, **sizes): raise ValueError("no disk")
def misshapen(): return np.zeros((5, 30, 3), np.float32), np.full(5, 30)
"""


@pytest.fixture
def file(tmp_path: Path) -> str:
    (tmp_path / "own.py").write_text(FUNCTIONS)
    return str(tmp_path / "own.py")


def double(feeds: Feeds) -> dict[str, Array]:
    return {"y": feeds["x"] * 2}


def data() -> Mapping[str, Array]:
    return {"labels": np.arange(4)}


@pytest.mark.parametrize(
    ("name", "there_is", "value"),
    [
        ("total", False, 6),
        ("total", True, 6),
        ("tensor", False, 2.5),
        ("labelled", True, 6),
        ("either", False, 1),
        ("either", True, 2),
        ("many", False, 3),
    ],
)
def test_a_metric_is_called_with_data_where_it_takes_some(file: str, name: str, there_is: bool, value: float) -> None:
    metric = given.metric(f"{file}:{name}", data if there_is else None, "give some")
    assert metric.evaluate(double) == value
    assert (metric.name, metric.higher_is_better) == (name, True)


def test_a_metric_may_be_better_when_lower(file: str) -> None:
    metric = given.metric(f"{file}:total:min", None, "")
    assert (metric.name, metric.higher_is_better) == ("total", False)


@pytest.mark.parametrize(
    ("named", "told"),
    [
        ("total", "cannot read --metric 'total': write FILE.py:FUNCTION"),
        ("{}:nothing", "has no function or class 'nothing': name one that returns a number"),
        ("{}:table", "has no function"),
        ("gone.py:total", r"--metric gone\.py:total: no file gone\.py"),
        ("{}:three", r"takes \(a, b, c\), and is called as \(infer\) or \(infer, data\)"),
        ("{}:labelled", "there are none: give some"),
    ],
)
def test_a_metric_that_cannot_be_called_is_a_usage_error(file: str, named: str, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        given.metric(named.format(file), None, "give some")


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("text", "returned a str: it must return one number"),
        ("several", "returned a Tensor: it must return one number"),
        ("nan", "returned nan: it must return a finite number"),
        ("raises", r"own\.py:raises failed with KeyError\."),
        ("leaves", "failed with SystemExit: bye"),
    ],
)
def test_a_metric_that_fails_says_how(file: str, name: str, told: str) -> None:
    with pytest.raises(ModelError, match=told):
        given.metric(f"{file}:{name}", None, "").evaluate(double)


def test_a_backend_that_fails_in_a_metric_is_not_the_metrics_fault(file: str) -> None:
    def infer(feeds: Feeds) -> dict[str, Array]:
        raise BackendFailedError("out of memory.")

    with pytest.raises(BackendFailedError, match=r"^out of memory\.$"):
        given.metric(f"{file}:total", None, "").evaluate(infer)


@pytest.mark.parametrize(
    ("text", "expected"), [("own.py:made", True), ("package.own:made", True), ("data.npz", False), (":x", False)]
)
def test_a_function_is_told_from_a_file(text: str, expected: bool) -> None:
    assert given.is_function(text) is expected


def test_a_function_makes_inputs_by_seed_and_sizes(file: str) -> None:
    made = given.source(f"{file}:made", SPECS, {})
    feeds = made.sample(7, batch=2, time=3)
    assert {name: value.shape for name, value in feeds.items()} == {"x": (2, 3, 2), "lengths": (2,)}
    assert (feeds["x"] == 7).all()
    assert made.arrays is None
    assert given.source(f"{file}:in_order", SPECS, {}).sample(0, batch=2, time=3)["lengths"].tolist() == [3, 3]


def test_a_function_without_parameters_gives_a_recording(file: str) -> None:
    made = given.source(f"{file}:recorded", SPECS, LENGTHS)
    feeds = made.sample(0, batch=2, time=8)
    assert feeds["x"].shape == (2, 8, 2)
    assert feeds["lengths"].tolist() == [8, 8]
    assert made.arrays is not None
    assert made.arrays["labels"].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("one", r"returned 1 array, and the model takes x:float32\[batch,time,2\], lengths"),
        ("misnamed", r"returned x, lenghts, and the model takes lengths:int64\[batch\]"),
        ("doubles", r"returned x:float64\[2,3,2\], and was asked for x:float32\[2,3,2\]"),
        ("short", r"returned x:float32\[2,4,2\], and was asked for x:float32\[2,3,2\]"),
        ("lists", "returned a list as x: return NumPy arrays"),
        ("only_seed", r"takes \(seed\), and is called as \(seed, batch=2, time=3\): let it take \(seed, \*\*sizes\)"),
        ("misshapen", r"own\.py:misshapen has x:float32\[5,30,3\]"),
        ("nothing", "has no function or class 'nothing': name one that returns inputs"),
    ],
)
def test_inputs_that_do_not_fit_are_usage_errors(file: str, name: str, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        given.source(f"{file}:{name}", SPECS, {}).sample(0, batch=2, time=3)


def test_a_function_of_inputs_that_fails_says_how(file: str) -> None:
    with pytest.raises(ModelError, match=r"own\.py:fails failed with ValueError: no disk\."):
        given.source(f"{file}:fails", SPECS, {}).sample(0, batch=2, time=3)


LENGTHY = """
import numpy as np
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from deploykit.types import ModelSpec, TensorSpec

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.GRU(2, 4, batch_first=True)

    def forward(self, x, lengths):
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        return pad_packed_sequence(self.rnn(packed)[0], batch_first=True)[0]

def sample(seed, batch, time):
    return {"x": np.zeros((batch, time, 2), np.float32), "lengths": np.full(batch, time)}

def net():
    inputs = TensorSpec.parse("x:float32[batch,time,2]"), TensorSpec.parse("lengths:int64[batch]")
    return ModelSpec(Net(), inputs, sample=sample)
"""


def test_lengths_are_known_of_a_model_with_a_sample_of_its_own(tmp_path: Path, file: str) -> None:
    (tmp_path / "lengthy.py").write_text(LENGTHY)
    spec = loading.load(ModelRef(f"{tmp_path / 'lengthy.py'}:net"))
    assert spec.ranges == {}
    assert given.applied(spec, "data.npz", None).ranges == LENGTHS
    assert given.applied(spec, f"{file}:recorded", None).feeds(0, batch=2, time=4)["lengths"].tolist() == [4, 4]


def test_a_metric_of_a_streaming_model_need_not_give_states(net: ModelRef, file: str) -> None:
    code = "import numpy as np\ndef total(infer): return infer({'x': np.ones((3, 5, 8), np.float32)})['y'][0]\n"
    Path(file).write_text(code)
    seen: list[dict[str, Array]] = []

    def infer(feeds: Feeds) -> dict[str, Array]:
        seen.append(dict(feeds))
        return {"y": np.ones(1)}

    metric = given.applied(loading.load(replace(net, streaming=True)), None, f"{file}:total").metric
    assert metric is not None
    assert metric.evaluate(infer) == 1
    assert seen[0]["h_in"].shape == (3, 1, 16)
    assert not seen[0]["h_in"].any()
