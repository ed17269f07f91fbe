from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors import safe_open

from deploykit import registry, weights
from models import _charlm
from models.train import main

Train = Callable[..., Result]
TINY = ("--steps", "2", "--threads", "1", "--batch", "2", "--time", "8")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Train]:
    """The command in an empty folder, judged on little text; torch's threads are put back afterwards."""
    threads = torch.get_num_threads()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(_charlm, "WINDOWS", 2)
    monkeypatch.setattr(_charlm, "VALIDATION_WINDOWS", 2)
    monkeypatch.setattr(_charlm, "WINDOW", 16)
    yield lambda *args: CliRunner().invoke(main, [str(arg) for arg in args])
    torch.set_num_threads(threads)


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("options", [(), ("--batching", "bucketed"), ("--amp",), ("--checkpoint-chunks", "2")])
def test_two_steps_write_weights_that_fit(run: Train, tmp_path: Path, options: tuple[str, ...]) -> None:
    result = run("charlm-rnn", *TINY, "-o", "out/w.safetensors", "--run", "log", *options)
    assert result.exit_code == 0, result.output
    assert files(tmp_path) == ["log/checkpoint.pt", "log/log.jsonl", "out/w.safetensors"]
    spec = registry.zoo_model("charlm-rnn")
    path = tmp_path / "out/w.safetensors"
    weights.fit(spec.module, weights.read_state(path), path)
    with safe_open(path, framework="pt") as file:
        facts = file.metadata()
    assert facts["command"] == " ".join(["python -m models.train charlm-rnn", *TINY, *options])
    assert (facts["steps"], facts["seed"]) == ("2", "0")
    assert 0 < float(facts["value"]) < 12
    assert [json.loads(line)["step"] for line in (tmp_path / "log/log.jsonl").read_text().splitlines()] == [1, 2]


def test_the_same_seed_gives_the_same_weights_and_another_does_not(run: Train, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert run("charlm-rnn", *TINY, "-o", f"{name}.safetensors", "--seed", seed).exit_code == 0
    states = [weights.read_state(tmp_path / f"{name}.safetensors") for name in "abc"]
    assert all(bool((states[0][key] == states[1][key]).all()) for key in states[0])
    assert not all(bool((states[0][key] == states[2][key]).all()) for key in states[0])


def test_a_finished_run_can_be_resumed(run: Train, tmp_path: Path) -> None:
    assert run("charlm-rnn", *TINY, "-o", "a.safetensors").exit_code == 0
    assert run("charlm-rnn", *TINY, "-o", "b.safetensors", "--resume").exit_code == 0
    one, other = (weights.read_state(tmp_path / f"{name}.safetensors") for name in "ab")
    assert all(bool((one[key] == other[key]).all()) for key in one)


@pytest.mark.parametrize(
    ("args", "code", "sentence"),
    [
        (("charlm-gur",), 2, "did you mean 'charlm-gru'?"),
        (("charlm-gru-attention", "--checkpoint-chunks", "2"), 2, "leave out --checkpoint-chunks"),
        (("charlm-rnn", "--resume"), 1, "no checkpoint"),
        (("charlm-rnn", "-o", "file/w.safetensors"), 1, "choose another"),
        (("charlm-rnn", "--lr", "1e30"), 1, "lower --lr"),
        (("charlm-rnn", "--steps", "0"), 2, "--steps"),
    ],
)
def test_a_failure_is_one_sentence_and_leaves_no_weights(
    run: Train, tmp_path: Path, args: tuple[str, ...], code: int, sentence: str
) -> None:
    (tmp_path / "file").write_text("")
    before = registry.zoo_weights(args[0])
    there = before.read_bytes() if before.is_file() else None
    result = run(*args, *(() if "--steps" in args else ("--steps", "8", "--batch", "2", "--time", "8")))
    assert result.exit_code == code
    assert sentence in result.output
    assert "Traceback" not in result.output
    assert not [name for name in files(tmp_path) if name.endswith((".safetensors", ".part"))]
    assert (before.read_bytes() if before.is_file() else None) == there


def test_help_tells_of_every_option_when_it_pays_and_imports_no_torch() -> None:
    script = (
        "import sys; from models.train import main; main(['--help'], standalone_mode=False); "
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--checkpoint-chunks" in done.stdout
    for option in main.params:
        if option.name != "name":
            assert "pay" in getattr(option, "help", "").lower(), option.name
