"""What the scenarios ask of a run, and what they refuse."""

from __future__ import annotations

import json
from dataclasses import replace

import jsonschema
import pytest
from rich.console import Console

from deploykit.bench import Settings, bench, schema, stages, to_json
from deploykit.bench.report import render
from deploykit.bench.scenario import Bound, Scenario
from deploykit.errors import UnknownNameError, UsageError
from tests.bench.fakes import subject

STREAM = subject("STREAM")
QUICK = Settings(seconds=0.01, rounds=2, timeout_s=60, drift=0)


@pytest.fixture(autouse=True)
def _no_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "WARM_SECONDS", 0.0)


def test_a_stream_is_one_step_at_a_time_unless_a_chunk_is_asked_for() -> None:
    settings = replace(QUICK, scenario=Scenario("streaming"))
    report = bench([subject("STREAM", "int8")], STREAM, settings)
    assert [(row.batch, row.time) for row in report.rows] == [(1, 1), (1, 1)]
    assert report.settings["scenario"] == "streaming"
    assert all(row.latency_ms is not None for row in report.rows)
    jsonschema.Draft202012Validator(schema()).validate(json.loads(to_json(report)))
    chunks = bench([subject("STREAM", "int8")], STREAM, replace(settings, times=(7,)))
    assert chunks.rows[0].time == 7


def test_a_stream_needs_states() -> None:
    with pytest.raises(UsageError, match="--streaming"):
        bench([subject("PLAIN")], subject("REFERENCE"), replace(QUICK, scenario=Scenario("streaming")))


def test_offline_takes_four_batches_and_names_the_best() -> None:
    report = bench([subject("STREAM", "int8")], STREAM, replace(QUICK, times=(3,), scenario=Scenario("offline")))
    assert [row.batch for row in report.rows] == [1, 4, 16, 64] * 2
    console = Console(record=True, width=200)
    render(report, console)
    shown = console.export_text()
    assert "rows/s" in shown
    assert "against tests.bench.fakes:STREAM, offline" in shown
    assert shown.count("its best batch is ") == 2


def test_the_server_needs_a_rate_or_a_bound_and_no_other_scenario_does() -> None:
    for wrong in ((None, None), (50.0, Bound("p99", 20.0))):
        with pytest.raises(UsageError, match="--rate 50"):
            Scenario("server", *wrong)
    with pytest.raises(UsageError, match="add --scenario server"):
        Scenario("offline", rate=50.0)
    for rate in (-1.0, float("inf"), float("nan")):
        with pytest.raises(UsageError, match=f"--rate {rate:g} cannot be"):
            Scenario("server", rate=rate)
    with pytest.raises(UnknownNameError, match="p98"):
        Bound("p98", 1.0)
    with pytest.raises(UnknownNameError, match="batch"):
        Scenario("batch")  # type: ignore[arg-type]
