"""deploykit advise, as a user meets it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from deploykit.advise import evidence
from tests.advise.samples import EVIDENCE

Run = Callable[..., Result]


def test_it_says_what_to_take_why_and_what_is_thin(run: Run) -> None:
    result = run("advise", "--steps", "60", "--latency", "p99=1s", "--size", "10MB")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("take ")
    for part in ("candidates keep", "best of each architecture", "Pareto front", "thin evidence", "next: build it"):
        assert part in result.stdout


def test_the_json_holds_every_candidate_and_stands_alone(run: Run) -> None:
    result = run("advise", "--latency", "p99=1s", "--json", "-")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["schema_version"] == 1
    assert found["recommended"] in found["candidates"]
    assert any(one["pareto"] for one in found["candidates"])
    assert {"traffic", "names", "charlm"} == {task["name"] for task in found["tasks"]}
    assert found["thin"]


def test_where_nothing_fits_the_exit_code_is_3(run: Run) -> None:
    result = run("advise", "--latency", "p50=1us", "--size", "1kB")
    assert result.exit_code == 3
    assert "nothing keeps the limits; the nearest" in result.stderr


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (("--latency", "2ms"), "cannot read --latency '2ms'"),
        (("--latency", "p98=2ms"), "p98"),
        (("--size", "much"), "cannot read --size 'much'"),
        (("--task", "nmaes"), "did you mean 'names'?"),
        (("--architectures", "grru"), "did you mean 'gru'?"),
        (("--device", "gpu"), "nothing was measured on a gpu yet: add --measure"),
    ],
)
def test_what_cannot_be_meant_is_a_usage_error(run: Run, args: tuple[str, ...], told: str) -> None:
    result = run("advise", *args)
    assert result.exit_code == 2
    assert told in result.stderr


def test_more_evidence_is_weighed_with_the_rest(run: Run, tmp_path: Path) -> None:
    evidence.save(EVIDENCE, tmp_path / "more.json")
    result = run("advise", "--task", "flow", "--evidence", str(tmp_path / "more.json"), "--json", "-")
    assert result.exit_code == 0, result.output
    assert [task["name"] for task in json.loads(result.stdout)["tasks"]] == ["flow"]
    (tmp_path / "bad.json").write_text("{")
    result = run("advise", "--evidence", str(tmp_path / "bad.json"))
    assert result.exit_code == 1
    assert "bad.json holds no measurements" in result.stderr


def test_data_chooses_the_task_and_is_trained_on_only_where_measured(run: Run, tmp_path: Path) -> None:
    (tmp_path / "flow.csv").write_text("flow\n1\n2\n")
    result = run("advise", "--data", str(tmp_path / "flow.csv"))
    assert result.exit_code == 0, result.output
    assert "nothing was trained on" in result.stdout
    assert "Tasks: traffic" in result.stdout
    result = run("advise", "--data", str(tmp_path / "flow.csv"), "--task", "names")
    assert result.exit_code == 2
    assert "leave out --task names" in result.stderr
