from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from deploykit.advise.evidence import read
from deploykit.errors import UsageError
from models._study import results
from models._study.evidence import condensed
from models.study import main
from tests.models.studies import TWO, runs

STUDY = replace(
    TWO,
    settings={**TWO.settings, "windows": [6]},
    records=(*TWO.records, *runs("gru", (21.0, 22.0), "window", "6", 6)),
)


def test_a_study_is_condensed_to_its_runs() -> None:
    found = condensed([STUDY], "2026-01-01")
    rows = {(row.kind, row.architecture): row for row in found.qualities}
    assert rows["budget", "gru"].metrics == {0: 20.0, 1: 20.5, 2: 21.0}
    assert rows["budget", "gru"].int8[0] == pytest.approx(20.1)
    assert rows["window", "gru"].metrics == {0: 21.0, 1: 22.0}
    assert rows["budget", "rnn-tanh"].train_ratio == pytest.approx(0.55)
    assert [task.name for task in found.tasks] == ["traffic"]
    assert not found.costs


def test_made_up_data_is_no_evidence() -> None:
    with pytest.raises(UsageError, match="made-up data"):
        condensed([replace(STUDY, settings={**STUDY.settings, "synthetic": True})], "")
    with pytest.raises(UsageError, match="no study"):
        condensed([], "")


def test_the_commands_write_what_advise_reads(tmp_path: Path) -> None:
    results.save(STUDY, tmp_path / "traffic/results.json")
    output = tmp_path / "quality.json"
    done = CliRunner().invoke(main, ["evidence", str(tmp_path / "traffic"), "-o", str(output)])
    assert done.exit_code == 0, done.output
    assert len(read(output).qualities) == 4
    output = tmp_path / "costs.json"
    args = ["--architectures", "gru", "--hidden", "8", "--steps", "3", "--backend", "ort", "--seconds", "0.02"]
    done = CliRunner().invoke(main, ["costs", *args, "-o", str(output)])
    assert done.exit_code == 0, done.output
    found = read(output)
    assert {(one.architecture, one.hidden, one.steps) for one in found.costs} == {("gru", 8, 3)}
    assert found.machine["cores"]


def test_a_list_that_is_none_is_refused(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["costs", "--hidden", "8,x", "-o", str(tmp_path / "costs.json")])
    assert done.exit_code == 2
    assert "--hidden '8,x' is no list" in done.output
