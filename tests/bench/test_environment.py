from __future__ import annotations

import getpass
import json
import platform
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest

from deploykit import kernels
from deploykit.bench import bench, schema
from deploykit.bench._view import facts_of
from deploykit.bench.compare import compare
from deploykit.bench.environment import environment, gpu_state
from deploykit.bench.settings import Settings
from tests.bench.fakes import subject
from tests.bench.samples import ORT, report


def test_it_says_what_a_latency_depends_on() -> None:
    found = environment(2, ["kept", "kept"])
    definitions = {"$defs": schema()["$defs"], "$ref": "#/$defs/environment"}
    jsonschema.Draft202012Validator(definitions).validate(found)
    assert set(found) == set(schema()["$defs"]["environment"]["properties"])
    assert found["threads"] == 2
    assert found["denormals"] == ["kept"]
    assert found["libraries"]["numpy"]


def test_it_tells_no_host_no_user_and_no_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = json.dumps(environment(1, []))
    words = set(text.replace('"', " ").replace(",", " ").replace(":", " ").split())
    assert str(tmp_path) not in text
    assert str(Path.home()) not in text
    assert platform.node() not in words
    assert getpass.getuser() not in words


def test_the_fused_kernels_are_told_by_the_path_they_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "used_path", lambda: "avx2")
    assert environment(1, [])["kernels"] == "avx2"
    monkeypatch.undo()
    monkeypatch.setenv(kernels.LIBRARY_VARIABLE, str(tmp_path / "none.so"))
    assert environment(1, [])["kernels"] is None


def test_git_is_the_commit_and_whether_it_is_what_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert environment(1, [])["git"] is None
    identity = ("-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "commit.gpgsign=false")
    for words in (("init", "-q"), ("add", "f"), (*identity, "commit", "-qm", "m")):
        (tmp_path / "f").write_text("one")
        subprocess.run(("git", *words), check=True)
    found = environment(1, [])["git"]
    assert len(found["commit"]) == 40
    assert found["dirty"] is False
    (tmp_path / "f").write_text("two")
    assert environment(1, [])["git"]["dirty"] is True


# Answers as nvidia-smi does: one line for each GPU, the fields that were asked for in their order.
_NVIDIA_SMI = """#!{python}
import sys
known = {known!r}
option, form = sys.argv[1:]
assert form == "--format=csv,noheader,nounits", form
name, _, fields = option.partition("=")
assert name == "--query-gpu", name
for gpu in known:
    print(", ".join(gpu[field] for field in fields.split(",")))
sys.exit({code})
"""
_H100 = {
    "name": "NVIDIA H100 80GB HBM3",
    "driver_version": "550.54.15",
    "memory.total": "81559",
    "clocks.max.sm": "1980",
    "clocks.max.mem": "2619",
    "power.limit": "700.00",
    "persistence_mode": "Enabled",
    "pstate": "P0",
    "clocks.sm": "1755",
    "clocks.mem": "2619",
    "power.draw": "412.07",
    "temperature.gpu": "51",
}
_OLD = {**_H100, "name": "Tesla K80", "power.draw": "[N/A]", "clocks.max.mem": "[Not Supported]", "pstate": "[N/A]"}


def nvidia_smi(folder: Path, *gpus: dict[str, str], code: int = 0) -> None:
    path = folder / "nvidia-smi"
    path.write_text(_NVIDIA_SMI.format(python=sys.executable, known=gpus, code=code))
    path.chmod(0o755)


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def test_gpus_are_told_by_nvidia_smi_and_satisfy_the_schema(path: Path) -> None:
    nvidia_smi(path, _H100, _OLD)
    found = environment(1, [], gpu_state())
    jsonschema.Draft202012Validator({"$defs": schema()["$defs"], "$ref": "#/$defs/environment"}).validate(found)
    assert found["gpus"][0] == {
        **{"name": "NVIDIA H100 80GB HBM3", "driver": "550.54.15", "memory_mib": 81559.0, "max_clock_mhz": 1980.0},
        **{"max_memory_clock_mhz": 2619.0, "power_limit_w": 700.0, "persistence": "Enabled"},
    }
    assert found["gpu_state"][0] == {
        **{"state": "P0", "clock_mhz": 1755.0, "memory_clock_mhz": 2619.0, "power_w": 412.07, "temperature_c": 51.0}
    }
    assert found["gpus"][1]["max_memory_clock_mhz"] is None
    assert found["gpu_state"][1]["power_w"] is found["gpu_state"][1]["state"] is None
    told = dict(facts_of(found))
    assert told["GPUs"].startswith("name NVIDIA H100 80GB HBM3, driver 550.54.15, memory_mib 81559, ")
    assert "power_w –" in told["GPUs after timing"]


@pytest.mark.parametrize("code", [None, 9])
def test_without_a_gpu_or_a_driver_that_answers_there_is_none(path: Path, code: int | None) -> None:
    if code is not None:
        nvidia_smi(path, _H100, code=code)
    assert (environment(1, [])["gpus"], gpu_state()) == (None, None)


def test_a_run_records_what_the_gpu_did_when_its_timing_had_ended(path: Path) -> None:
    nvidia_smi(path, _H100)
    quick = Settings(batches=(1,), times=(4,), seconds=0.02, rounds=2)
    timed, untimed = (
        bench([], subject("REFERENCE"), replace(quick, latency=latency)).environment for latency in (True, False)
    )
    assert [gpu["power_w"] for gpu in timed["gpu_state"]] == [412.07]
    assert untimed["gpu_state"] is None
    assert timed["gpus"] == untimed["gpus"]


def test_another_driver_is_a_change_and_another_temperature_is_none(path: Path) -> None:
    nvidia_smi(path, _H100)
    before = environment(1, [], gpu_state())
    nvidia_smi(path, {**_H100, "driver_version": "560.1", "temperature.gpu": "80"})
    after = environment(1, [], gpu_state())
    changes = compare(report(ORT, environment=before), report(ORT, environment=after)).environment
    assert [(change.name, change.before, change.after) for change in changes] == [
        ("gpus.0.driver", "550.54.15", "560.1")
    ]
