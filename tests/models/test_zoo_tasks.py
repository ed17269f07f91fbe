"""The zoo's models whose data are not in the repository: their weights, and deploykit's commands on them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from deploykit import loading, registry
from deploykit.artifact import ModelRef
from models import _tasks
from models._facts import read_facts
from models._training import infer_with

from .data import NAMES, TRAFFIC, data

DATA = {"names-gru": NAMES, "traffic-gru": TRAFFIC}
Run = Callable[..., Result]


@pytest.fixture(params=DATA)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_the_weights_tell_how_they_were_made_and_of_no_place(name: str) -> None:
    path = registry.zoo_weights(name)
    facts = read_facts(path)
    assert facts["command"] == f"python -m models.train {name} --threads 1 --data {DATA[name]}"
    assert facts["seed"] == "0"
    spec = loading.load(ModelRef(name))
    assert int(facts["parameters"]) == sum(parameter.numel() for parameter in spec.module.parameters())
    assert path.stat().st_size < 4 * int(facts["parameters"]) + 8000
    assert "/" not in facts["command"]


def test_the_models_beat_every_baseline(name: str) -> None:
    told = read_facts(registry.zoo_weights(name))
    facts = {key: float(value) for key, value in told.items() if key not in {"python", "torch"} and value[:1].isdigit()}
    if name == "traffic-gru":
        others = ("persistence", "same_time_yesterday", "same_time_last_week", "linear_regression")
        assert facts["value"] < min(facts[other] for other in others)
        assert facts["value"] < 0.85 * facts["persistence"]
    else:
        assert facts["value"] > max(facts[other] for other in ("majority", "naive_bayes", "witten_bell"))
        assert facts["macro_accuracy"] > facts["majority_macro"]


@pytest.mark.slow
def test_the_models_do_on_the_data_what_their_metadata_says(name: str) -> None:
    facts = read_facts(registry.zoo_weights(name))
    zoo = _tasks.zoo_module(name)
    task = _tasks.open_task(zoo, name, zoo.TRAINING, 0, data=data(DATA[name]))
    spec = loading.load(ModelRef(name))
    value = task.metric.evaluate(infer_with(spec.module, [one.name for one in spec.outputs]))
    assert value == pytest.approx(float(facts["value"]), rel=2e-3)
    assert task.facts(task.metric).keys() <= facts.keys()


@pytest.mark.slow
def test_export_int8_and_validation_need_no_data(run: Run, folder: Path, name: str) -> None:
    for command in (
        ("export", name, "-o", "m.onnx"),
        ("quantize", "--int8", "m.onnx", "-o", "q.onnx"),
        ("validate", "m.onnx", "q.onnx", "--backend", "ort"),
    ):
        result = run(*command)
        assert result.exit_code == 0, (command, result.stderr)
    assert (folder / "q.onnx").stat().st_size < 0.5 * (folder / "m.onnx").stat().st_size


@pytest.mark.slow
def test_traffic_streams_and_names_say_why_they_cannot(run: Run, folder: Path) -> None:
    assert run("export", "traffic-gru", "--streaming", "-o", "s.onnx").exit_code == 0
    refused = run("export", "names-gru", "--streaming", "-o", "n.onnx")
    assert refused.exit_code == 1
    assert "cannot stream" in refused.stderr
