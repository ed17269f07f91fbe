"""``deploykit doctor`` on what nobody needs, the fused int8 kernels and a GPU: where absent, it is told, no problem."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from deploykit import kernels
from deploykit.kernels import CpuPath
from deploykit.trt.doctor import Facts, Load


def line(result: Result) -> str:
    assert result.exit_code == 0, result.output
    return next(" ".join(row.split()) for row in result.stdout.splitlines() if row.startswith("fused int8 kernels"))


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> None:
    """A library with two paths, of which this CPU has one."""
    monkeypatch.delenv(kernels.PATH_VARIABLE, raising=False)
    monkeypatch.setattr(
        kernels, "cpu_paths", lambda: (CpuPath("wide", runs_here=False), CpuPath("plain", runs_here=True))
    )


@pytest.mark.usefixtures("built")
def test_the_path_that_runs(folder: Path, run: Callable[..., Result]) -> None:
    assert line(run("doctor")) == "fused int8 kernels run here, by their path plain (not on this CPU: wide)"
    facts = json.loads(run("doctor", "--json", "-").stdout)
    assert facts["kernels"] == {
        "available": True,
        "reason": None,
        "path": "plain",
        "paths": {"wide": False, "plain": True},
    }


@pytest.mark.usefixtures("built")
def test_a_forced_path_that_does_not_run(
    folder: Path, run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(kernels.PATH_VARIABLE, "wide")
    assert "DEPLOYKIT_KERNELS_PATH is 'wide'" in line(run("doctor"))
    facts = json.loads(run("doctor", "--json", "-").stdout)
    assert (facts["kernels"]["available"], facts["kernels"]["path"], facts["problems"]) == (False, None, [])


def test_kernels_that_were_not_built(folder: Path, run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(kernels.LIBRARY_VARIABLE, raising=False)
    monkeypatch.setattr(kernels, "_LIBRARY", folder / "none.so")
    result = run("doctor")
    assert "fused int8 kernels are not built: run python -m deploykit.kernels.build" in line(result)
    assert "problem" not in result.stdout
    facts = json.loads(run("doctor", "--json", "-").stdout)
    assert facts["kernels"] == {"available": False, "reason": kernels.why_missing(), "path": None, "paths": {}}
    assert facts["problems"] == []


def facts(monkeypatch: pytest.MonkeyPatch, facts: Facts) -> None:
    monkeypatch.setattr("deploykit.trt.doctor.collect", lambda: facts)


def test_what_is_optional_and_absent_is_told_and_no_problem(
    folder: Path, run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    facts(monkeypatch, Facts(gpus=({"name": "NVIDIA H100", "driver": "580.1"},)))
    result = run("doctor")
    assert result.exit_code == 0
    assert "everything needed is here." in result.stdout
    shown = " ".join(result.stdout.split())
    assert "TensorRT not installed: run pip install 'deploykit[trt]'." in shown
    told = json.loads(run("doctor", "--json", "-").stdout)
    assert told["gpu"] == {"devices": [{"name": "NVIDIA H100", "driver": "580.1"}], "reason": None}
    assert told["tensorrt"][1] == {
        "what": "TensorRT",
        "state": "not installed",
        "step": "run pip install 'deploykit[trt]'",
        "wrong": False,
    }
    assert told["problems"] == []


def test_parts_that_contradict_each_other_are_a_problem(
    folder: Path, run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    packages = {"tensorrt-cu13": "11.4.0.106", "tensorrt-cu12": "11.4.0.106", "pycuda": "2026.1"}
    facts(monkeypatch, Facts(packages, tensorrt=Load("11.4.0.106"), pycuda=Load("2026.1", cuda=13)))
    result = run("doctor")
    assert result.exit_code == 1
    assert "problem: TensorRT: its packages for CUDA 12 and 13 are installed together" in result.stdout
    assert "everything needed is here" not in result.stdout
    assert len(json.loads(run("doctor", "--json", "-").stdout)["problems"]) == 1


def test_doctor_imports_no_gpu_library_of_its_own() -> None:
    code = (
        "import sys; from click.testing import CliRunner; from deploykit.cli import cli;"
        "CliRunner().invoke(cli, ['doctor']);"
        "print([name for name in ('tensorrt', 'pycuda', 'onnxruntime', 'torch') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
