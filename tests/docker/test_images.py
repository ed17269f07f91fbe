"""The images, as far as they can be tested without a container engine: what they pin, who runs in them, and when an
engine is built. The linters and Compose are asked where they are installed; where not, the skip says so."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.docker.steps import CONTEXT, ignored

yaml = pytest.importorskip("yaml", reason="NOT TESTED for want of pyyaml: pip install -e '.[test]'")
dockerfile_parse = pytest.importorskip("dockerfile_parse", reason="NOT TESTED for want of dockerfile-parse: the images")

FOLDER = CONTEXT / "docker"
FILES = sorted(FOLDER.glob("*.Dockerfile"))
COMPOSE = FOLDER / "compose.yaml"
ENTRYPOINT = FOLDER / "entrypoint.sh"
every_file = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


def steps(path: Path) -> list[tuple[str, str]]:
    parsed = dockerfile_parse.DockerfileParser(fileobj=path.open("rb")).structure
    return [(step["instruction"], step["value"]) for step in parsed if step["instruction"] != "COMMENT"]


def of(path: Path, word: str) -> list[str]:
    return [value for instruction, value in steps(path) if instruction == word]


def found(name: str) -> str | None:
    """A program on the path, or beside this Python."""
    return shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))


def tool(name: str) -> str:
    path = found(name)
    if path is None:
        pytest.skip(f"NOT TESTED for want of {name}")
    return path


def test_there_is_an_image_for_the_cpu_and_one_for_tensorrt() -> None:
    assert [path.stem for path in FILES] == ["cpu", "trt"]


@every_file
def test_every_base_is_pinned_by_its_tag(path: Path) -> None:
    for base in of(path, "FROM"):
        assert re.fullmatch(r"[\w./-]+:\d+\.\d+[\w.-]+( AS \w+)?", base), base


@every_file
def test_every_pip_install_is_pinned_by_the_constraints(path: Path) -> None:
    commands = [command for value in of(path, "RUN") for command in re.split(r"&&|;", value) if "pip " in command]
    assert len(commands) >= 3
    for command in commands:
        assert re.search(r"pip (install|wheel) -c docker/constraints\.txt ", command), command


@every_file
def test_a_user_that_is_not_root_runs_it(path: Path) -> None:
    assert of(path, "USER")[-1] == "1000"
    words = [word for word, _ in steps(path)]
    last = words.index("USER")
    assert set(words[last + 1 :]) <= {"WORKDIR", "ENTRYPOINT", "CMD"}


@every_file
def test_no_engine_is_built_with_the_image(path: Path) -> None:
    assert not [value for value in of(path, "RUN") if re.search(r"deploykit[ -](build|ship|bench|entrypoint)", value)]


@every_file
def test_the_last_stage_has_no_compiler(path: Path) -> None:
    begin = [word for word, _ in steps(path)].index("FROM", 1)
    assert not [
        value for word, value in steps(path)[begin:] if word == "RUN" and re.search(r"g\+\+|build-essential|pip", value)
    ]


def test_the_constraints_pin_all_that_the_package_asks_for() -> None:
    lines = (FOLDER / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {line.partition("==")[0].lower() for line in lines if "==" in line}
    shared = {
        line.partition("==")[0] for line in (CONTEXT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    }
    assert "-c ../constraints.txt" in lines
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines if line and line[0] not in "#-")
    project = (CONTEXT / "pyproject.toml").read_text(encoding="utf-8")
    for block in ("\ndependencies = [", "\ntrt = ["):
        asked = re.findall(r'"([\w-]+)[>=<\[]', project.split(block)[1].split("]\n")[0])
        assert asked
        assert {name for name in asked if name not in pinned | shared} == set()


@pytest.mark.parametrize(
    ("name", "out"),
    [
        ("deploykit/cli/ship.py", False),
        ("models/weights/charlm_gru.safetensors", False),
        ("deploykit/kernels/src/plain.cpp", False),
        ("deploykit/kernels/libdeploykit_kernels.so", True),
        ("deploykit/__pycache__/types.cpython-311.pyc", True),
        ("docker/entrypoint.sh", False),
        ("docker/constraints.txt", False),
        ("docker/cpu.Dockerfile", True),
        ("tests/conftest.py", True),
        (".git/config", True),
        ("build/charlm-gru.onnx", True),
        ("setup.py", False),
    ],
)
def test_the_context_is_what_the_images_are_made_of(name: str, out: bool) -> None:
    rules = [line for line in (CONTEXT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert ignored(name, rules) is out


@every_file
def test_what_is_copied_is_there_and_in_the_context(path: Path) -> None:
    rules = [line for line in (CONTEXT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    for value in of(path, "COPY"):
        *sources, _ = (word for word in value.split() if not word.startswith("--"))
        for source in sources if "--from" not in value else ():
            assert (CONTEXT / source).exists(), source
            assert source == "." or not ignored(source, rules), source


def test_compose_gives_tensorrt_a_gpu_and_both_the_same_build() -> None:
    services = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))["services"]
    assert {name: service["build"]["dockerfile"] for name, service in services.items()} == {
        "cpu": "docker/cpu.Dockerfile",
        "trt": "docker/trt.Dockerfile",
    }
    assert services["trt"]["deploy"]["resources"]["reservations"]["devices"] == [
        {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
    ]
    assert "deploy" not in services["cpu"]
    for service in services.values():
        assert service["volumes"] == ["build:/work/build"]
        assert service["cap_drop"] == ["ALL"]


def test_compose_accepts_its_file() -> None:
    docker = found("docker")
    command = [docker, "compose"] if docker else []
    if not command or subprocess.run([*command, "version"], capture_output=True, check=False).returncode:
        command = [tool("docker-compose")]
    done = subprocess.run(
        [*command, "-f", str(COMPOSE), "config", "--format", "json"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)["services"]
    assert told["trt"]["environment"]["DEPLOYKIT_PRECISION"] == "fp16"
    assert Path(told["cpu"]["build"]["context"]) == CONTEXT


@every_file
def test_hadolint(path: Path) -> None:
    done = subprocess.run([tool("hadolint"), str(path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_shellcheck() -> None:
    done = subprocess.run([tool("shellcheck"), str(ENTRYPOINT)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.fixture
def entry(tmp_path: Path) -> Callable[..., list[str]]:
    """Runs the entrypoint with a `deploykit` that only says how it was called; the calls, in their order."""
    command = tmp_path / "bin" / "deploykit"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\necho "$*" >> {tmp_path}/calls\n[ "$1" != "$FAILS" ]\n', encoding="utf-8")
    command.chmod(0o755)

    def run(*arguments: str, code: int = 0, **environment: str) -> list[str]:
        (tmp_path / "calls").unlink(missing_ok=True)
        full: dict[str, Any] = {"PATH": f"{command.parent}:{os.environ['PATH']}", "FAILS": "none", **environment}
        done = subprocess.run([str(ENTRYPOINT), *arguments], env=full, cwd=tmp_path, check=False)
        assert done.returncode == code
        return (tmp_path / "calls").read_text(encoding="utf-8").splitlines()

    return run


def test_the_entrypoint_builds_before_it_times(entry: Callable[..., list[str]], tmp_path: Path) -> None:
    assert entry("bench", "--backend", "trt") == ["export", "build --precision fp16", "bench --backend trt"]
    (tmp_path / "build").mkdir()
    (tmp_path / "build" / "net.onnx").touch()
    assert entry("validate") == ["build --precision fp16", "validate"]
    chosen = {"DEPLOYKIT_ARTIFACT": "my net.onnx", "DEPLOYKIT_PRECISION": "int8", "DEPLOYKIT_SHAPES": "x=1x1:1x9:4x9"}
    assert entry("bench", **chosen) == ["build my net.onnx --precision int8 --shapes x=1x1:1x9:4x9", "bench"]


def test_the_entrypoint_runs_any_other_command_as_it_is(entry: Callable[..., list[str]]) -> None:
    assert entry("doctor", "--json", "-") == ["doctor --json -"]
    assert entry() == [""]


def test_an_engine_that_cannot_be_built_ends_it(entry: Callable[..., list[str]]) -> None:
    assert entry("bench", FAILS="build", code=1) == ["export", "build --precision fp16"]
