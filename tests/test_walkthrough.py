"""The README's own example, done as it is written there."""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
SECTION = README.split("## Your own model")[1].split("\n## ")[0]


def block(language: str, number: int) -> str:
    return str(re.findall(rf"```{language}\n(.*?)```", SECTION, re.S)[number])


@pytest.fixture
def project(folder: Path) -> Path:
    """The README's net.py, and weights for it."""
    import torch

    from deploykit import loading
    from deploykit.artifact import ModelRef

    (folder / "net.py").write_text(block("python", 0))
    module = loading.load(ModelRef("net.py:tagger", inputs=("x[batch,time,40]",))).module
    from safetensors.torch import save_file

    save_file(
        {name: torch.clone(tensor) for name, tensor in module.state_dict().items()}, folder / "tagger.safetensors"
    )
    return folder


@pytest.mark.slow
def test_the_commands_for_ones_own_model_work_as_written(project: Path, run: Callable[..., Result]) -> None:
    lines = block("bash", 0).strip().splitlines()
    assert [line.split()[1] for line in lines] == ["export", "quantize", "bench"]
    for line in lines[:2]:
        result = run(*shlex.split(line)[1:])
        assert result.exit_code == 0, result.output
    validated = run("validate", "build/tagger.onnx", "build/tagger.int8.onnx", "--backend", "ort")
    assert validated.exit_code == 0, validated.output


def test_the_project_file_makes_the_arguments_needless(project: Path, run: Callable[..., Result]) -> None:
    (project / "deploykit.toml").write_text(block("toml", 0))
    assert tomllib.loads(block("toml", 0))["model"] == "net.py:tagger"
    lines = block("bash", 1).strip().splitlines()
    result = run(*shlex.split(lines[0])[1:])
    assert result.exit_code == 0, result.output
    assert "build/tagger.onnx" in result.stdout
