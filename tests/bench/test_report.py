from __future__ import annotations

import dataclasses
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, get_type_hints

import jsonschema
import pytest
from rich.console import Console

from deploykit.bench import report as reports
from deploykit.bench import schema
from deploykit.bench.report import (
    Accuracy,
    DeviceTime,
    Invariance,
    Latency,
    MetricResult,
    OutputError,
    Report,
    Row,
    Speedup,
    Tolerance,
    verdict,
)
from deploykit.coverage import CoverageRow
from deploykit.errors import ArtifactError
from tests.bench.samples import ENVIRONMENT, GONE, ROW, SEEN
from tests.bench.samples import alone as report


def printed(found: Report, width: int = 100, terminal: bool = False) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=terminal, color_system=None)
    reports.render(found, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_json_begins_with_its_version_and_comes_back_the_same(tmp_path: Path) -> None:
    found = report(ROW, GONE)
    reports.save(found, tmp_path / "r.json")
    assert next(iter(json.loads((tmp_path / "r.json").read_text()))) == "schema_version"
    assert reports.read(tmp_path / "r.json") == found


def test_what_is_not_finite_becomes_null() -> None:
    bad = replace(ROW, invariance=Invariance(float("inf"), float("nan"), causal=True))
    row = json.loads(reports.to_json(report(bad)), parse_constant=pytest.fail)["rows"][0]
    assert row["invariance"] == {"batch": None, "prefix": None, "causal": True}


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"schema_version": 1}', "\x00"])
def test_what_is_no_report_is_an_artifact_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(ArtifactError, match=r"r\.json is no bench report"):
        reports.read(tmp_path / "r.json")


def test_a_report_of_another_version_is_told(tmp_path: Path) -> None:
    reports.save(replace(report(ROW), schema_version=9), tmp_path / "r.json")
    with pytest.raises(ArtifactError, match="schema version 9"):
        reports.read(tmp_path / "r.json")


def test_the_schema_is_a_schema_and_documents_every_field() -> None:
    jsonschema.Draft202012Validator.check_schema(schema())
    definitions: dict[str, Any] = schema()["$defs"]
    assert set(get_type_hints(Report)) == set(schema()["properties"])
    for kind, name in (
        (Row, "row"),
        (Latency, "latency"),
        (DeviceTime, "device"),
        (Speedup, "speedup"),
        (Tolerance, "tolerance"),
        (reports.Check, "check"),
        (Invariance, "invariance"),
        (MetricResult, "metric"),
        (reports.GateResult, "gate"),
        (reports.ArtifactCoverage, "coverage"),
        (reports.Server, "server"),
        (CoverageRow, "node"),
    ):
        assert {field.name for field in dataclasses.fields(kind)} == set(definitions[name]["properties"])
    error, accuracy = definitions["error"]["properties"], definitions["accuracy"]["properties"]
    assert {field.name for field in dataclasses.fields(Accuracy)} == set(error) | set(accuracy)
    extra = accuracy["outputs"]["additionalProperties"]["properties"]
    assert {field.name for field in dataclasses.fields(OutputError)} == set(error) | set(extra)


@pytest.mark.parametrize(
    "change",
    [{"status": "fine"}, {"passed": "yes"}, {"latency_ms": {"p50": 1}}, {"batch": 1.5}, {"speedup": {"vs": "torch"}}],
)
def test_the_schema_refuses_what_is_wrong(change: dict[str, Any]) -> None:
    data = json.loads(reports.to_json(replace(report(ROW), environment=ENVIRONMENT)))
    jsonschema.Draft202012Validator(schema()).validate(data)
    data["rows"][0].update(change)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(schema()).validate(data)


def test_unavailable_rows_do_not_fail_a_run_and_failed_ones_do() -> None:
    assert verdict((ROW, GONE))
    assert not verdict((ROW, replace(ROW, passed=False)))


def test_the_table_is_readable_at_100_columns() -> None:
    text = printed(report(replace(ROW, backend="torch", precision="float32"), ROW, GONE))
    assert "…" not in text, "nothing is cut"
    assert max(map(len, text.splitlines())) <= 100
    line = next(line for line in text.splitlines() if "ort int8" in line)
    for value in ("16×1000", "1.23", "12.3", "12.3 (11.2–13.5)", "1.0e-03", "41.2", "1.837 +0.29%", "12.3 MB", "pass"):
        assert value in line
    assert "trt: TensorRT is not installed." in text
    assert text.rstrip().endswith("passed")


@pytest.mark.parametrize("width", [60, 80])
def test_a_narrow_terminal_loses_whole_columns_and_never_the_verdict(width: int) -> None:
    text = printed(report(replace(ROW, backend="torch", precision="float32"), ROW, GONE), width, terminal=True)
    table = text.split("trt: TensorRT")[0]
    assert "…" not in table
    assert max(map(len, table.splitlines())) <= 80
    assert "p99 ms" not in table
    assert all(value in table for value in ("1.23", "12.3 (11.2–13.5)", "1.837 +0.29%", "pass"))


def test_in_a_file_nothing_is_left_out_or_broken() -> None:
    text = printed(report(ROW, replace(GONE, reason="word " * 40)), width=80)
    assert "p99 ms" in text
    assert any(len(line) > 180 for line in text.splitlines())


def test_a_tail_of_few_samples_is_said_to_be_p95() -> None:
    few = replace(ROW, latency_ms=replace(SEEN, p99=None))
    none = replace(ROW, latency_ms=replace(SEEN, p99=None, p95=None), time=10)
    text = printed(report(few, none))
    assert "tail ms" in text
    assert "p95 1.4" in text


def test_unstable_and_outside_are_said() -> None:
    shaky = replace(
        ROW, latency_ms=replace(SEEN, stable=False), passed=False, reason="its SNR is low.", warnings=("slower.",)
    )
    text = printed(report(shaky))
    assert "outside ~" in text
    assert "ort int8: its SNR is low." in text
    assert "ort int8: slower." in text
    assert "ort int8: unstable at 16×1000" in text
    assert text.rstrip().endswith("failed")


def test_two_artifacts_of_one_precision_are_told_apart() -> None:
    text = printed(report(ROW, replace(ROW, artifact="build/other.onnx")))
    assert "ort int8 #1: build/model.int8.onnx" in text
    assert "ort int8 #2: build/other.onnx" in text
