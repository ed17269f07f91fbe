from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import Result

from deploykit.bench.report import save
from tests.bench.samples import ENVIRONMENT, ORT, QUANTIZED, faster, report


@pytest.fixture
def two(folder: Path) -> Path:
    save(report(faster(ORT, 2.0, 1.9, 2.1), QUANTIZED), folder / "a.json")
    slower = replace(faster(ORT, 1.0, 0.9, 1.1), passed=False, fault="answer", reason="its SNR is low.")
    save(report(slower, environment={**ENVIRONMENT, "cpu": "Another"}), folder / "b.json")
    return folder


def test_two_reports_side_by_side(two: Path, run: Callable[..., Result]) -> None:
    result = run("compare", "a.json", "b.json")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    environment = next(number for number, line in enumerate(lines) if line.startswith("cpu"))
    row = next(number for number, line in enumerate(lines) if line.startswith("ort fp32"))
    assert environment < row
    assert lines[environment].split("  ")[-1].strip() == "Another"
    assert all(told in lines[row] for told in ("2 (1.9–2.1)", "1 (0.9–1.1)", "apart"))
    assert "only before: ort int8 1×100" in result.stdout
    assert "verdict changed: ort fp32 1×100, passed → failed: its SNR is low." in result.stdout
    assert result.stderr == ""


def test_the_commands_stand_apart_and_are_no_setting(folder: Path, run: Callable[..., Result]) -> None:
    for name in "ab":
        save(
            report(ORT, settings={"seed": 0, "command": f"deploykit bench --json {name}.json"}), folder / f"{name}.json"
        )
    result = run("compare", "a.json", "b.json", "--json", "c.json")
    assert result.stdout.splitlines()[:4] == [
        "before: a.json (net, passed)",
        "        deploykit bench --json a.json",
        "after:  b.json (net, passed)",
        "        deploykit bench --json b.json",
    ]
    assert "settings: the same in both" in result.stdout
    data = json.loads((folder / "c.json").read_text())
    assert data["settings"] == []
    assert data["commands"] == ["deploykit bench --json a.json", "deploykit bench --json b.json"]


def test_a_limit_makes_it_a_gate(two: Path, run: Callable[..., Result]) -> None:
    result = run("compare", "a.json", "b.json", "--max-slowdown", "1.5", "--json", "-")
    assert result.exit_code == 3
    data = json.loads(result.stdout)
    assert [(gate["row"], gate["passed"]) for gate in data["gates"]] == [
        ("ort fp32 1×100", False),
        ("ort int8 1×100", False),
    ]
    assert "gate failed: max-slowdown (ort fp32 1×100" in result.stderr
    assert run("compare", "a.json", "a.json", "--max-slowdown", "1.5").exit_code == 0


def test_other_models_are_told(two: Path, run: Callable[..., Result]) -> None:
    save(report(ORT, model="other"), two / "c.json")
    result = run("compare", "a.json", "c.json")
    assert result.exit_code == 0
    assert "warning: one is of the model net and the other of other" in result.stdout


def test_other_scenarios_are_told_before_all_else_and_no_gate(two: Path, run: Callable[..., Result]) -> None:
    save(report(ORT, settings={"scenario": "server"}), two / "s.json")
    result = run("compare", "a.json", "s.json")
    assert result.exit_code == 0
    lines = [line for line in result.stdout.splitlines() if line]
    assert lines[2].startswith("warning: one was timed in the scenario single-stream and the other in server")
    assert next(line for line in lines if line.startswith("ort fp32 1×100")).split()[-3:-1] == ["–", "–"]
    result = run("compare", "a.json", "s.json", "--max-slowdown", "1.5")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "a.json was timed in the scenario single-stream and s.json in server" in result.stderr


@pytest.mark.parametrize(
    ("args", "code", "told"),
    [
        (["a.json", "none.json"], 1, "none.json is no bench report"),
        (["a.json", "b.json", "--max-slowdown", "x"], 2, "no number above 0"),
        (["a.json"], 2, "Missing argument"),
    ],
)
def test_bad_input(two: Path, run: Callable[..., Result], args: list[str], code: int, told: str) -> None:
    result = run("compare", *args)
    assert result.exit_code == code
    assert told in result.stderr
    assert result.stdout == ""
