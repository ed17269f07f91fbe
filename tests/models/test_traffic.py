from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from deploykit.errors import UsageError
from models import _traffic
from models._traffic import Layout, Series, TrafficForecaster
from models._traffic_baselines import baselines, regression
from models._traffic_training import TrafficTask
from models._training import Recipe, infer_with, train
from models.family.gru import Encoder

from .data import TRAFFIC, data
from .synthetic import MINUTES, traffic


@pytest.fixture
def csv(tmp_path: Path) -> Path:
    return traffic(tmp_path / "traffic.csv")


@pytest.fixture
def series(csv: Path) -> Series:
    return _traffic.read(csv, minutes=MINUTES)


def forecaster(layout: Layout, hidden: int = 8) -> TrafficForecaster:
    torch.manual_seed(0)
    return TrafficForecaster(Encoder(layout.input_size, hidden), layout).eval()


def test_the_target_comes_first_and_all_other_columns_after_it(csv: Path, series: Series) -> None:
    assert series.names == ("flow", "speed", "occupancy")
    assert series.values.dtype == np.float32
    first = csv.read_text().splitlines()[1].split(",")
    np.testing.assert_allclose(series.values[0], [float(first[1]), float(first[0]), float(first[2])], rtol=1e-6)
    assert series.per_day == 24


def test_columns_are_chosen_by_name_and_the_others_may_hold_anything(tmp_path: Path) -> None:
    path = tmp_path / "own.csv"
    path.write_text("\ufefftime,cars,speed\n08:00,3,1.5\n08:05,4,\n", encoding="utf-8")
    chosen = _traffic.read(path, "cars", ("cars",))
    assert (chosen.names, chosen.values.tolist()) == (("cars",), [[3.0], [4.0]])


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("flow,speed\n1,2\n3,\n", r"line 3, column 'speed' is empty"),
        ("flow,speed\n1,fast\n", r"line 2, column 'speed' is 'fast'"),
        ("flow,speed\n1,2\n\nnan,2\n", r"line 4, column 'flow' is 'nan'"),
        ("flow,speed\n1,2\n1,2,3\n", r"line 3 has 3 cells"),
        ("count,speed\n1,2\n", r"no column 'flow': choose among count, speed"),
        ("flow,flow\n1,2\n", r"a name of its own"),
        ("", r"a name of its own|no column"),
        (b"flow\n\xff\xfe\n", r"in UTF-8"),
    ],
)
def test_what_is_no_number_is_told_by_line_and_column(tmp_path: Path, content: str | bytes, told: str) -> None:
    path = tmp_path / "bad.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UsageError, match=told):
        _traffic.read(path)


def test_a_file_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot read .*none\.csv"):
        _traffic.read(tmp_path / "none.csv")


def test_too_short_a_series_is_refused(series: Series) -> None:
    with pytest.raises(UsageError, match="5 rows, too few to learn from 8 steps"):
        _traffic.spans(replace(series, values=series.values[:5]), 8)


def test_splits_follow_one_another_and_the_test_is_last(series: Series) -> None:
    spans = _traffic.spans(series, 8)
    assert [*spans["train"], *spans["validation"], *spans["test"]] == list(range(8, 480))
    assert [len(span) for span in spans.values()] == [328, 72, 72]


def test_a_window_ends_before_its_target_and_raw_units_stay(series: Series) -> None:
    layout = _traffic.layout(series, 8)
    x, target = _traffic.windows(series, layout, "validation")
    row = _traffic.spans(series, 8)["validation"][0]
    assert x.shape == (72, 8, 5)
    np.testing.assert_array_equal(x[0, :, :3], series.values[row - 8 : row])
    assert target[0] == series.values[row, 0]
    np.testing.assert_array_equal(x[1:, -1, 0], target[:-1])


def test_the_time_of_day_is_an_input_where_wanted(series: Series) -> None:
    daily, plain = (_traffic.inputs(series, daily=wanted) for wanted in (True, False))
    assert (daily.shape[1], plain.shape[1]) == (5, 3)
    np.testing.assert_allclose(daily[6, 3:], [1, 0], atol=1e-6)  # a quarter of a day
    np.testing.assert_allclose(daily[:24, 3:], daily[24:48, 3:], atol=1e-5)


def test_normalization_knows_nothing_of_what_comes_after_training(series: Series) -> None:
    changed = series.values.copy()
    changed[_traffic.spans(series, 8)["train"].stop :] *= 100
    assert _traffic.layout(replace(series, values=changed), 8) == _traffic.layout(series, 8)
    column = _traffic.layout(series, 8).columns[0]
    seen = series.values[: _traffic.spans(series, 8)["train"].stop, 0]
    assert (column.mean, column.scale) == pytest.approx((float(seen.mean()), float(seen.std())), rel=1e-4)


def test_a_column_that_never_changes_does_no_harm(series: Series) -> None:
    values = np.concatenate((series.values, np.full((len(series.values), 1), 7, np.float32)), 1)
    layout = _traffic.layout(replace(series, names=(*series.names, "lanes"), values=values), 8)
    assert (layout.columns[3].scale, layout.columns[3].like) == (1.0, 0.0)


def test_vehicles_in_vehicles_out(series: Series) -> None:
    """The same network for a series counted in other units answers in those."""
    tenfold = replace(series, values=series.values * 10)
    one, other = (forecaster(_traffic.layout(given, 8)) for given in (series, tenfold))
    x, _ = _traffic.windows(series, _traffic.layout(series, 8), "test")
    scaled = x.copy()
    scaled[..., :3] *= 10
    with torch.no_grad():
        torch.testing.assert_close(10 * one(torch.from_numpy(x)), other(torch.from_numpy(scaled)), rtol=1e-4, atol=0.01)


def test_a_network_that_says_nothing_is_persistence(series: Series) -> None:
    layout = _traffic.layout(series, 8)
    module = forecaster(layout)
    torch.nn.init.zeros_(module.head.weight)
    torch.nn.init.zeros_(module.head.bias)
    x, target = _traffic.windows(series, layout, "test")
    value = _traffic.mae(infer_with(module, ("y",)), {"x": x, "target": target})
    assert value == pytest.approx(baselines(series, layout, "test")["persistence"], rel=1e-5)


def test_baselines_by_hand() -> None:
    values = np.arange(100, dtype=np.float32)[:, None] ** 2
    series = Series(("flow",), values, minutes=24 * 60 / 8)
    layout = _traffic.layout(series, 4, daily=False)
    found = baselines(series, layout, "test")
    rows = range(85, 100)
    assert found["persistence"] == pytest.approx(np.mean([2 * row - 1 for row in rows]))
    assert found["same_time_yesterday"] == pytest.approx(np.mean([row**2 - (row - 8) ** 2 for row in rows]))
    assert found["same_time_last_week"] == pytest.approx(np.mean([row**2 - (row - 56) ** 2 for row in rows]))


def test_a_season_needs_its_past() -> None:
    series = Series(("flow",), np.arange(60, dtype=np.float32)[:, None], minutes=24 * 60 / 48)
    assert set(baselines(series, _traffic.layout(series, 4), "validation")) == {"persistence", "linear_regression"}
    assert "same_time_yesterday" in baselines(series, _traffic.layout(series, 4), "test")


def test_the_regression_finds_a_linear_law() -> None:
    wave = 100 + 10 * np.cos(np.arange(300) * 0.7)  # each value is a fixed combination of the last three
    series = Series(("flow",), wave.astype(np.float32)[:, None])
    layout = _traffic.layout(series, 4, daily=False)
    truth = wave[np.array(_traffic.spans(series, 4)["test"])]
    assert np.abs(regression(series, layout, "test") - truth).max() < 0.2
    assert baselines(series, layout, "test")["persistence"] > 3


def test_made_up_days_stay_within_what_was_seen(series: Series) -> None:
    layout = _traffic.layout(series, 8)
    sample = _traffic.sampler(layout)
    x = sample(3, batch=4, time=48)["x"]
    assert x.shape == (4, 48, 5)
    assert x.dtype == np.float32
    for place, column in enumerate(layout.columns):
        assert column.low - 1e-3 <= x[..., place].min() < x[..., place].max() <= column.high + 1e-3
    np.testing.assert_allclose((x[..., 3:] ** 2).sum(-1), 1, rtol=1e-5)
    assert np.corrcoef(x[..., 0].ravel(), x[..., 1].ravel())[0, 1] < -0.3  # speed falls where flow rises
    np.testing.assert_array_equal(x, sample(3, batch=4, time=48)["x"])
    assert not np.array_equal(x, sample(4, batch=4, time=48)["x"])


def test_an_epoch_has_every_window_once(series: Series) -> None:
    task = TrafficTask(series, _traffic.layout(series, 8), batch=41, seed=0)
    steps = task.steps()
    one = torch.cat([next(steps).batch.target for _ in range(8)])
    _, target = _traffic.windows(series, task.layout, "train")
    assert sorted(one.tolist()) == sorted(target.tolist())
    assert torch.equal(one[:41], next(task.steps()).batch.target)
    assert not torch.equal(one[:41], next(steps).batch.target)


def test_training_beats_persistence_and_the_metric_is_the_test_span(series: Series, tmp_path: Path) -> None:
    task = TrafficTask(series, _traffic.layout(series, 8), batch=32, seed=0)
    torch.manual_seed(0)
    module = TrafficForecaster(Encoder(5, 8), task.layout)
    recipe = Recipe(steps=120, batch=32, time=8, lr=2e-2)
    module.load_state_dict(train(module, task, recipe, folder=tmp_path).weights)
    value = task.metric.evaluate(infer_with(module.eval(), ("y",)))
    facts = task.facts(task.metric)
    assert value < 0.6 * float(facts["persistence"])
    measured = baselines(series, task.layout, "test")
    assert float(facts["baseline"]) == pytest.approx(min(measured.values()))
    assert float(facts["linear_regression"]) == pytest.approx(measured["linear_regression"])
    assert facts["test_windows"] == "72"
    x, target = task.held_out()["x"], task.held_out()["target"]
    with torch.no_grad():
        by_hand = (module(torch.from_numpy(x))[:, 0] - torch.from_numpy(target)).abs().mean().item()
    assert value == pytest.approx(by_hand, rel=1e-4)


def test_the_true_series_has_the_persistence_that_is_known() -> None:
    series = _traffic.read(data(TRAFFIC))
    assert series.values.shape == (5096, 3)
    assert np.abs(np.diff(series.values[:, 0])).mean() == pytest.approx(32.0, abs=0.05)
    found = baselines(series, _traffic.layout(series, 24), "test")
    assert found.keys() == {"persistence", "same_time_yesterday", "same_time_last_week", "linear_regression"}
    assert found["linear_regression"] < found["persistence"] < found["same_time_last_week"]
