"""What both tasks that need data have in common: the command, its facts, resuming, and weights of other sizes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors import safe_open
from safetensors.torch import save_file

from deploykit import loading, registry, weights
from deploykit.artifact import ModelRef
from deploykit.errors import UsageError, WeightsError
from models import _tasks
from models._run import Result as Trained
from models._training import Recipe, Step, train
from models.train import main

from .synthetic import names, traffic

Train = Callable[..., Result]
NAMES = ("names-gru", "traffic-gru")
TINY = ("--steps", "4", "--threads", "1", "--batch", "8", "--time", "6")


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def given(tmp_path: Path, name: str) -> Path:
    return traffic(tmp_path / "data.csv") if name == "traffic-gru" else names(tmp_path / "data")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Train]:
    threads = torch.get_num_threads()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    yield lambda *args: CliRunner().invoke(main, [str(arg) for arg in args])
    torch.set_num_threads(threads)


def facts(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata())


def fit(name: str, given: Path, folder: Path, stop_at: int | None = None, **changes: Any) -> Trained:
    """Train a little; ``stop_at`` interrupts before that step."""
    recipe = Recipe(**{"steps": 12, "batch": 8, "time": 6, "lr": 1e-2, "validations": 4, **changes.pop("recipe", {})})
    torch.manual_seed(3)
    job = _tasks.job(_tasks.zoo_module(name), name, recipe, seed=3, data=given)
    task = job.task if stop_at is None else Interrupted(job.task, stop_at)
    return train(job.module, task, recipe, folder=folder, fingerprint=job.fingerprint, **changes)


class Interrupted:
    """Another task, until its ``stop_at``th batch is asked for."""

    def __init__(self, task: Any, stop_at: int) -> None:
        self._task, self._stop_at = task, stop_at

    def steps(self) -> Iterator[Step[Any]]:
        for number, step in enumerate(self._task.steps()):
            if number == self._stop_at:
                raise KeyboardInterrupt
            yield step

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)


def test_the_command_writes_weights_that_fit_and_tell_how_they_were_made(
    run: Train, tmp_path: Path, name: str, given: Path
) -> None:
    path = tmp_path / "w.safetensors"
    result = run(name, "--data", given, *TINY, "-o", path)
    assert result.exit_code == 0, result.output
    told = facts(path)
    assert told["command"] == f"python -m models.train {name} {' '.join(TINY)} --data {given.name}"
    assert (told["model"], told["seed"], told["steps"]) == (name, "0", "4")
    assert told["metric"] == ("mae" if name == "traffic-gru" else "accuracy")
    wanted = {
        "traffic-gru": {"persistence", "same_time_yesterday", "linear_regression", "train_windows", "test_windows"},
        "names-gru": {"majority", "ngram", "ngram_macro", "macro_accuracy", "best_possible", "shared", "test_names"},
    }
    assert wanted[name] | {"value", "baseline", "validation_value", "layout", "parameters"} <= told.keys()
    assert f"baseline {float(told['baseline']):.4f}" in result.output
    spec = registry.zoo_model(name, path)
    weights.fit(spec.module, weights.read_state(path), path)


def test_weights_hold_no_data_and_no_paths(run: Train, tmp_path: Path, name: str, given: Path) -> None:
    path = tmp_path / "w.safetensors"
    assert run(name, "--data", given, *TINY, "-o", path).exit_code == 0
    content = path.read_bytes()
    parameters = sum(tensor.nbytes for tensor in weights.read_state(path).values())
    assert len(content) - parameters < 4000
    assert str(tmp_path).encode() not in content
    text = given if given.is_file() else given / "Aish.txt"
    assert not [line for line in text.read_bytes().split()[1:] if line in content]


def test_the_weights_of_other_data_are_taken_by_the_commands(
    run: Train, tmp_path: Path, name: str, given: Path
) -> None:
    """Two columns and no time of day, or two languages: other sizes than the zoo's own weights."""
    path = tmp_path / "w.safetensors"
    options = ("--columns", "speed", "--no-daily", "--minutes", "60") if name == "traffic-gru" else ("--balance", "0.5")
    assert run(name, "--data", given, *TINY, *options, "-o", path).exit_code == 0
    spec = loading.load(ModelRef(name, weights=str(path)))
    shape = spec.inputs[0].dims if name == "traffic-gru" else spec.outputs[0].dims
    assert shape[-1] == 2
    feeds = spec.feeds(0, batch=3, time=5)
    made = spec.run([torch.from_numpy(feed) for feed in feeds.values()])
    assert made.shape == spec.outputs[0].shape({"batch": 3})


def test_a_spec_needs_no_weights_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    spec = registry.zoo_model(name, tmp_path / "none.safetensors")
    feeds = spec.feeds(0, batch=2, time=3)
    assert [list(feed.shape) for feed in feeds.values()] == [
        list(one.shape({"batch": 2, "time": 3})) for one in spec.inputs
    ]
    assert spec.metric is None


def test_weights_of_another_task_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "w.safetensors"
    save_file({"a": torch.zeros(1)}, path, {"layout": '{"other": 1}'})
    with pytest.raises(WeightsError, match="weights of another task"):
        registry.zoo_model(name, path)


def test_an_interrupted_run_resumed_ends_in_the_same_bits(tmp_path: Path, name: str, given: Path) -> None:
    whole = fit(name, given, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        fit(name, given, tmp_path / "cut", stop_at=8)  # two steps after a checkpoint
    resumed = fit(name, given, tmp_path / "cut", resume=True)
    assert (resumed.step, resumed.validation) == (whole.step, whole.validation)
    assert all(torch.equal(value, resumed.weights[key]) for key, value in whole.weights.items())
    logs = [
        [json.loads(line) for line in (tmp_path / one / "log.jsonl").read_text().splitlines()]
        for one in ("whole", "cut")
    ]
    assert [(line["step"], line["loss"]) for line in logs[0]] == [(line["step"], line["loss"]) for line in logs[1]]


def test_other_data_are_not_resumed(tmp_path: Path, name: str, given: Path) -> None:
    fit(name, given, tmp_path / "run")
    file = given if given.is_file() else given / "Aish.txt"
    lines = file.read_text(encoding="utf-8").splitlines()
    file.write_text("\n".join(lines[:-12]) + "\n", encoding="utf-8")
    with pytest.raises(WeightsError, match="other data"):
        fit(name, given, tmp_path / "run", resume=True)


def test_a_seed_decides_all(tmp_path: Path, name: str, given: Path) -> None:
    one, other = (fit(name, given, tmp_path / folder) for folder in ("one", "other"))
    assert all(torch.equal(value, other.weights[key]) for key, value in one.weights.items())


def test_patience_ends_a_run_that_gets_no_better_and_a_resumed_one_too(tmp_path: Path, name: str, given: Path) -> None:
    seen: list[Mapping[str, float]] = []
    still = {"steps": 40, "lr": 1e-30, "validations": 10, "patience": 2}
    result = fit(name, given, tmp_path, recipe=still, report=seen.append)
    assert [len(seen), result.step] == [12, 4]  # the first validation, and two that equal it
    fit(name, given, tmp_path, recipe=still, report=seen.append, resume=True)
    assert len(seen) == 12


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (("traffic-gru",), "traffic-gru is trained on data that are not in the zoo: give --data, a CSV file"),
        (("names-gru",), "give --data, a folder of files LANGUAGE.txt"),
        (("names-gru", "--data", "nowhere"), "two or more files LANGUAGE.txt"),
        (("traffic-gru", "--data", "nowhere.csv"), "cannot read nowhere.csv"),
        (("charlm-rnn", "--data", "."), "charlm-rnn brings its own text"),
        (("charlm-rnn", "--target", "flow"), "charlm-rnn does not know --target"),
        (("traffic-gru", "--data", ".", "--balance", "1"), "traffic-gru does not know --balance"),
        (("traffic-gru", "--data", ".", "--batching", "stream"), "--batching may be shuffled"),
        (("names-gru", "--data", ".", "--checkpoint-chunks", "2"), "leave out --checkpoint-chunks"),
    ],
)
def test_what_does_not_fit_is_one_sentence(run: Train, args: tuple[str, ...], sentence: str) -> None:
    result = run(*args, "-o", "w.safetensors")
    assert (result.exit_code, "Traceback" in result.output) == (2, False)
    assert sentence in result.output
    assert not list(Path().iterdir())


def test_a_zoo_file_without_a_recipe_says_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    zoo = _tasks.zoo_module("charlm-rnn")
    monkeypatch.delattr(zoo, "TASK")
    with pytest.raises(UsageError, match="give its file a TRAINING and a TASK"):
        _tasks.zoo_module("charlm-rnn")
