from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from deploykit import given, registry, weights
from deploykit.errors import UsageError
from models import held_out, metrics
from models._facts import read_facts
from models._training import infer_with
from models.train import main as train

from .synthetic import names, traffic


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., Result]]:
    threads = torch.get_num_threads()
    monkeypatch.chdir(tmp_path)
    yield lambda *args: CliRunner().invoke(held_out.main, [str(arg) for arg in args])
    torch.set_num_threads(threads)


def trained(name: str, data: Path, *options: str) -> Path:
    path = data.parent / "w.safetensors"
    args = [name, "--data", str(data), "-o", str(path), "--steps", "4", "--threads", "1", "--time", "6", *options]
    result = CliRunner().invoke(train, args)
    assert result.exit_code == 0, result.output
    return path


@pytest.mark.parametrize("name", ["names-gru", "traffic-gru"])
def test_the_file_and_the_metric_give_the_number_of_the_training(
    run: Callable[..., Result], tmp_path: Path, name: str
) -> None:
    """The split and the columns are those of the weights: another seed, another target, no time of day."""
    data = traffic(tmp_path / "d.csv") if name == "traffic-gru" else names(tmp_path / "d")
    options = {"traffic-gru": ("--target", "speed", "--no-daily"), "names-gru": ("--seed", "5")}
    path = trained(name, data, *options[name])
    result = run(name, "--data", data, "--weights", path, "-o", "t.npz")
    assert result.exit_code == 0, result.output
    spec = registry.zoo_model(name, path)
    weights.fit(spec.module, weights.read_state(path), path)
    called = {"traffic-gru": "deploykit.models.metrics:mae:min", "names-gru": "deploykit.models.metrics:accuracy"}[name]
    assert called in result.stderr
    judged = given.applied(spec, str(tmp_path / "t.npz"), called)
    assert judged.metric is not None
    assert judged.metric.higher_is_better is (name == "names-gru")
    value = judged.metric.evaluate(infer_with(spec.module, [one.name for one in spec.outputs]))
    assert value == pytest.approx(float(read_facts(path)["value"]), abs=1e-5)


def test_what_cannot_be_written_is_one_sentence(run: Callable[..., Result], tmp_path: Path) -> None:
    data = names(tmp_path / "d")
    path = trained("names-gru", data)
    other = names(tmp_path / "other")
    (other / "Aish.txt").rename(other / "Else.txt")
    for args, told in (
        (("charlm-gru", "--data", data), "its own text and metric"),
        (("names-gru", "--data", data, "--weights", "none.safetensors"), "does not say what it was trained on"),
        (("names-gru", "--data", other, "--weights", path), "has the languages Else, Onish"),
        (("names-gru", "--data", data, "--weights", path, "-o", data / "Aish.txt/t.npz"), "cannot write"),
    ):
        result = run(*args)
        assert result.exit_code in {1, 2}
        assert told in result.output
        assert "Traceback" not in result.output


def test_metrics_say_what_data_they_need() -> None:
    with pytest.raises(UsageError, match=r"'target'.*models\.held_out"):
        metrics.mae(lambda _: {}, {"x": np.zeros((1, 1, 1))})
    with pytest.raises(UsageError, match="'label'"):
        metrics.macro_accuracy(lambda _: {}, {"text": np.zeros((1, 1)), "lengths": np.ones(1)})
