"""The project file."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploykit import config
from deploykit.artifact import ModelRef
from deploykit.errors import UsageError

FULL = """
model = "net.py:gru"
weights = "net.safetensors"
input = ["x:float32[batch,time,8]"]
dim = ["time=1:50"]
build-dir = "out"

[bench]
batch = [1, 16]
"""


def test_without_a_file_the_default_model_is_meant(folder: Path) -> None:
    assert config.find(Path()) == config.Config()
    assert config.find(Path()).model == ModelRef("charlm-gru")


def test_everything_in_deploykit_toml_is_read(folder: Path) -> None:
    (folder / "deploykit.toml").write_text(FULL)
    found = config.find(Path())
    assert found.model == ModelRef("net.py:gru", "net.safetensors", ("x:float32[batch,time,8]",), ("time=1:50",))
    assert found.build_dir == Path("out")
    assert found.commands == {"bench": {"batch": [1, 16]}}


def test_files_are_meant_from_where_the_project_file_lies(folder: Path) -> None:
    (folder / "inner").mkdir()
    (folder / "inner" / "deploykit.toml").write_text(FULL)
    found = config.read(Path("inner/deploykit.toml"))
    assert found.model.ref == "inner/net.py:gru"
    assert found.model.weights == "inner/net.safetensors"
    assert found.build_dir == Path("inner/out")


def test_pyproject_toml_serves_too_and_deploykit_toml_comes_first(folder: Path) -> None:
    (folder / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    assert config.find(Path()) == config.Config()
    (folder / "pyproject.toml").write_text("[tool.deploykit]\nmodel = 'charlm-lstm'\n")
    assert config.find(Path()).model.ref == "charlm-lstm"
    (folder / "deploykit.toml").write_text("model = 'charlm-rnn'\n")
    assert config.find(Path()).model.ref == "charlm-rnn"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("modle = 'x'", "did you mean 'model'?"),
        ("input = 'x[batch]'", "Expected `array`"),
        ("model = 3", "Expected `str`"),
        ("model = ", "cannot read"),
        ("[bench]\nbatch = 1\n[bench]", "cannot read"),
    ],
)
def test_a_mistake_is_told_with_its_file(folder: Path, text: str, told: str) -> None:
    (folder / "deploykit.toml").write_text(text)
    with pytest.raises(UsageError) as error:
        config.find(Path())
    assert told in str(error.value)
    assert "deploykit.toml" in str(error.value)


@pytest.mark.parametrize("text", ["tool = 3", "[tool]\ndeploykit = 3"])
def test_an_odd_pyproject_is_no_crash(folder: Path, text: str) -> None:
    (folder / "pyproject.toml").write_text(text)
    if "deploykit" in text:
        with pytest.raises(UsageError, match="must be a table"):
            config.find(Path())
    else:
        assert config.find(Path()) == config.Config()


def test_a_key_that_no_command_has_is_told(folder: Path) -> None:
    (folder / "deploykit.toml").write_text("[bench]\nbatsh = [1]\n")
    with pytest.raises(UsageError, match="did you mean 'batch'"):
        config.check_commands(config.find(Path()), {"bench": ["batch", "time"]})
    (folder / "deploykit.toml").write_text("[bnech]\nbatch = [1]\n")
    with pytest.raises(UsageError, match="did you mean 'bench'"):
        config.check_commands(config.find(Path()), {"bench": ["batch", "time"]})
