"""The scenarios of bench and the drift, as a user meets them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from deploykit.artifact import ModelRef
from deploykit.bench.scenario import SCENARIOS
from deploykit.cli import _scenario
from deploykit.errors import UsageError


@pytest.fixture
def project(net: ModelRef, folder: Path) -> Path:
    (folder / "deploykit.toml").write_text('model = "net.py:gru"\ninput = ["x:float32[batch,time,8]"]\n')
    return folder


def test_help_knows_every_scenario() -> None:
    assert _scenario.NAMES == SCENARIOS


@pytest.mark.parametrize(("text", "ms"), [("p99=20ms", 20.0), ("p50=250us", 0.25), (" p90 = 1.5 s ", 1500.0)])
def test_a_bound_is_read_with_its_unit(text: str, ms: float) -> None:
    found = _scenario._bound(text)
    assert found.percentile == text.strip()[:3]
    assert found.ms == pytest.approx(ms)


@pytest.mark.parametrize("text", ["p99", "p99=20", "20ms", "p99=0ms", "p99=-1ms", "p99=1e-ms"])
def test_a_bound_that_cannot_be_read(text: str) -> None:
    with pytest.raises(UsageError, match="cannot read --bound"):
        _scenario._bound(text)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--scenario", "server"), "--rate 50"),
        (("--rate", "50"), "add --scenario server"),
        (("--min-rate", "50"), "add --scenario server --bound p99=20ms."),
        (("--scenario", "server", "--rate", "9", "--min-rate", "9"), "--bound p99=20ms, and leave out --rate."),
        (("--scenario", "server", "--bound", "p99=9ms", "--min-rate", "0"), "--min-rate '0' is no number above 0"),
        (("--scenario", "server", "--bound", "p99=9ms", "--min-rate", "orr:1"), "did you mean 'ort'"),
        (("--scenario", "server", "--bound", "p98=1ms"), "percentile in --bound"),
    ],
)
def test_options_that_do_not_go_together(
    project: Path, run: Callable[..., Result], options: tuple[str, ...], told: str
) -> None:
    result = run("bench", *options)
    assert result.exit_code == 2
    assert told in result.stderr


def test_a_stream_needs_an_export_that_streams(project: Path, run: Callable[..., Result]) -> None:
    result = run("bench", "--backend", "ort", "--scenario", "streaming")
    assert result.exit_code == 2
    assert "--streaming" in result.stderr


def test_drift_of_a_model_without_states_is_told(project: Path, run: Callable[..., Result]) -> None:
    result = run("validate", "--backend", "ort", "--drift", "150", "--time", "5")
    assert result.exit_code == 2, result.output
    assert "--drift streams a model with carried states, and this one has none" in result.stderr
    assert run("validate", "--backend", "ort", "--drift", "0", "--time", "5").exit_code == 0


def test_validate_streams_and_reports_the_drift(project: Path, run: Callable[..., Result]) -> None:
    result = run("validate", "--streaming", "--backend", "ort", "--drift", "150", "--time", "5", "--json", "r.json")
    assert result.exit_code == 0, result.stderr
    assert "over 150 streamed steps" in result.stdout
    rows = json.loads((project / "r.json").read_text())["rows"]
    assert rows[0]["drift"] is None
    assert rows[1]["drift"]["steps"] == 150


def test_ship_streams_as_many_steps_as_it_is_told(project: Path, run: Callable[..., Result]) -> None:
    result = run("ship", "--streaming", "--drift", "60", "--time", "2")
    assert result.exit_code in (0, 3), result.output  # a small int8 model may be outside
    rows = json.loads((project / "build" / "report.json").read_text())["rows"]
    assert {row["drift"]["steps"] for row in rows if row["drift"] is not None} == {60}
    assert '<h2 id="drift">' in (project / "build" / "report.html").read_text(encoding="utf-8")
