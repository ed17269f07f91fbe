"""What a run learns of the model, and what a user gives in place of the model's own: inputs and a metric."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from deploykit.bench import Settings, bench
from deploykit.errors import BackendFailedError, UsageError
from tests.bench.fakes import subject

ACCURACY = Settings(latency=False, times=(20,), timeout_s=60)
REFERENCE = subject("REFERENCE")

FUNCTIONS = """
import numpy as np

def loss(infer):
    x = np.random.default_rng(0).standard_normal((2, 20, 4)).astype(np.float32)
    y = infer({"x": x})["y"]
    return float("nan") if (y == np.round(y)).all() else float(np.square(y).mean())

def labelled(infer, data):
    return (infer({"x": data["x"]})["y"].argmax(-1) == data["labels"]).mean()

def fails(infer): return infer({"x": np.zeros((1, 2, 4), np.float32)})["logits"]

def zeros(seed, batch, time):
    return np.zeros((batch, time, 4), np.float32)

def recorded():
    x = np.random.default_rng(0).standard_normal((3, 30, 4)).astype(np.float32)
    return {"x": x, "labels": np.zeros((3, 30), np.int64)}

def doubles(seed, **sizes): return np.zeros((sizes["batch"], sizes["time"], 4))
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "own.py"
    path.write_text(FUNCTIONS)
    return path


def test_the_users_metric_takes_the_models_place_and_its_nan_fails_a_subject(file: Path) -> None:
    settings = replace(ACCURACY, metric=f"{file}:loss:min")
    reference, coarse, ruined = bench([subject("COARSE", "int8"), subject("RUINED", "int8")], REFERENCE, settings).rows
    assert reference.metric is not None
    assert coarse.metric is not None
    assert (coarse.metric.name, coarse.metric.higher_is_better) == ("loss", False)
    assert coarse.metric.reference == reference.metric.value == reference.metric.reference
    assert coarse.metric.value != coarse.metric.reference
    assert (ruined.status, ruined.metric) == ("failed", None)
    assert ruined.reason == f"computing loss: the metric {file}:loss returned nan: it must return a finite number."


def test_a_metric_gets_the_arrays_of_the_data_uncut(file: Path, tmp_path: Path) -> None:
    x = np.random.default_rng(1).standard_normal((3, 30, 4)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=x, labels=np.zeros((3, 30), np.int64))
    settings = replace(ACCURACY, data=tmp_path / "data.npz", metric=f"{file}:labelled")
    (row,) = bench([], REFERENCE, settings).rows
    assert row.metric is not None
    assert row.metric.value is not None
    assert 0.1 < row.metric.value < 0.5
    (row,) = bench([], REFERENCE, replace(settings, data=Path(f"{file}:recorded"))).rows
    assert row.metric is not None
    assert row.metric.value is not None
    assert 0.1 < row.metric.value < 0.5


def test_a_function_gives_the_inputs(file: Path) -> None:
    report = bench([subject("DRIFTING", "int8")], REFERENCE, replace(ACCURACY, data=Path(f"{file}:zeros")))
    accuracy = report.rows[1].accuracy
    assert accuracy is not None
    assert accuracy.outputs["y"].cosine is None, "zeros in give zeros out: there is no signal"
    assert report.settings["data"] == "own.py:zeros"


@pytest.mark.parametrize(
    ("data", "metric", "told"),
    [
        (None, "labelled", "there are none: give them with --data"),
        ("zeros", "labelled", "with a function that takes no parameters"),
        ("doubles", "loss", r"returned x:float64\[1,20,4\], and was asked for x:float32"),
        ("nothing", "loss", "name one that returns inputs"),
        (None, "nothing", "name one that returns a number"),
    ],
)
def test_functions_that_cannot_be_used_are_usage_errors(file: Path, data: str | None, metric: str, told: str) -> None:
    settings = replace(ACCURACY, data=None if data is None else Path(f"{file}:{data}"), metric=f"{file}:{metric}")
    with pytest.raises(UsageError, match=told):
        bench([], REFERENCE, settings)


def test_a_users_metric_that_fails_on_the_reference_is_an_error(file: Path) -> None:
    with pytest.raises(BackendFailedError, match=r"computing fails: the metric .*fails failed with KeyError: 'logits'"):
        bench([], REFERENCE, replace(ACCURACY, metric=f"{file}:fails"))
