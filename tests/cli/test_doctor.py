"""``deploykit doctor`` on the fused int8 kernels, which nobody needs: their absence is told, and no problem."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from deploykit import kernels
from deploykit.kernels import CpuPath


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
