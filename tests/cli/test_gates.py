"""Gates, tolerances and the files for other programs, as a user meets them."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import click
import pytest
from click.testing import Result

from deploykit.artifact import ModelRef
from deploykit.bench.gates import Gates, MinRate, MinSpeedup, judge
from deploykit.bench.report import Report, save
from deploykit.bench.scenario import Scenario
from deploykit.cli import _bench, _gates
from deploykit.errors import UsageError
from tests.bench.samples import BROKEN, GONE, ORT, SERVER, report

WRONG = replace(ORT, passed=False, fault="answer", reason="its SNR is low.")


def asked(**options: object) -> _gates.Asked:
    return _gates.Asked(**options)  # type: ignore[arg-type]


@pytest.fixture
def project(net: ModelRef, folder: Path) -> Path:
    (folder / "deploykit.toml").write_text(
        'model = "net.py:gru"\ninput = ["x:float32[batch,time,8]"]\n[bench]\nbackend = ["ort"]\ntime = [20]\n'
    )
    return folder


@pytest.mark.parametrize(
    ("text", "limit", "backend"),
    [
        ("p99=5ms", 5.0, None),
        ("p99=250us", 0.25, None),
        ("p99=250µs", 0.25, None),
        ("ort:p99=1.5s", 1500.0, "ort"),
        ("package.module:BACKEND:p99 = 5 ms", 5.0, "package.module:BACKEND"),
    ],
)
def test_a_latency_is_read_with_its_unit(text: str, limit: float, backend: str | None) -> None:
    gate = asked(max_latency=(text,)).gates(Scenario()).max_latency[0]
    assert (gate.stat, gate.backend) == ("p99", backend)
    assert gate.limit_ms == pytest.approx(limit)


def test_a_speedup_may_be_for_one_backend() -> None:
    gates = asked(min_speedup=("1.5", "ort:2")).gates(Scenario()).min_speedup
    assert [(gate.limit, gate.backend) for gate in gates] == [(1.5, None), (2.0, "ort")]


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        ("max-latency", "p99=5", "with a unit"),
        ("max-latency", "p99", "with a unit"),
        ("max-latency", "p99=ms", "with a unit"),
        ("max-latency", "p98=5ms", "did you mean 'p9"),
        ("max-latency", "p99=-5ms", "no number above 0"),
        ("max-latency", "orr:p99=5ms", "did you mean 'ort'"),
        ("min-speedup", "fast", "no number above 0"),
        ("min-speedup", "nan", "no number above 0"),
        ("max-metric-drop", "2%", "no number of at least 0"),
        ("min-snr", "inf", "no number"),
        ("atol", "-1", "no number of at least 0"),
        ("tolerance", "logits", "write OUTPUT:SPEC"),
        ("tolerance", "logits:1e-3", "write OUTPUT:SPEC"),
        ("tolerance", "logits:atl=1", "did you mean 'atol'"),
        ("tolerance", "logits:atol=x", "atol in --tolerance 'x' is no number"),
        ("max-slowdown", "1.1", "add --baseline FILE.json"),
        ("baseline", "none.json", "none.json is no bench report"),
        ("baseline", "alone.json", "no baseline"),
        ("baseline", "offline.json", "offline.json was timed in the scenario offline and this run in single-stream"),
    ],
)
def test_what_cannot_be_read_is_one_sentence_before_anything_runs(
    folder: Path, run: Callable[..., Result], option: str, value: str, told: str
) -> None:
    save(report(), folder / "alone.json")
    save(report(ORT, settings={"scenario": "offline"}), folder / "offline.json")
    result = run("bench", f"--{option}={value}")
    assert result.exit_code == (1 if value == "none.json" else 2), result.output
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert told in result.stderr
    assert {path.name for path in folder.iterdir()} == {"alone.json", "offline.json"}


def test_the_parts_of_a_tolerance() -> None:
    overrides = asked(min_snr="-3", tolerance=("y:atol=1e-3,rtol=0", "h:snr=30", "h:atol=1")).overrides()
    assert overrides.every.min_snr_db == -3
    assert (overrides.outputs["y"].atol, overrides.outputs["y"].rtol) == (1e-3, 0.0)
    assert (overrides.outputs["h"].atol, overrides.outputs["h"].min_snr_db) == (1.0, 30.0)


GATED = judge(report(ORT), Gates(min_speedup=(MinSpeedup(9),)))


@pytest.mark.parametrize(
    ("found", "named", "code"),
    [
        (report(ORT, GONE), False, 0),
        (report(ORT, GONE), True, 1),
        (report(WRONG), False, 3),
        (GATED, False, 3),
        (report(BROKEN), False, 1),
        (report(BROKEN, replace(WRONG, batch=2)), False, 1),
        (report(replace(BROKEN, fault="answer")), False, 3),
        (judge(report(BROKEN), Gates(min_speedup=(MinSpeedup(9),))), False, 1),
        (judge(report(replace(ORT, server=SERVER)), Gates(min_rate=(MinRate(199),))), False, 0),
        (judge(report(replace(ORT, server=SERVER)), Gates(min_rate=(MinRate(300),))), False, 3),
    ],
)
def test_the_exit_code_says_what_came_of_it(found: Report, named: bool, code: int) -> None:
    assert exit_code(found, named) == code


def exit_code(found: Report, named: bool) -> int:
    with click.Context(click.Command("bench")):
        try:
            names = [row.backend for row in found.rows] if named else []
            _bench.finish(found, None, None, asked(), names)
        except click.exceptions.Exit as error:
            return error.exit_code
    return 0


def test_the_gate_that_failed_is_named_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    exit_code(GATED, False)
    told = capsys.readouterr()
    assert told.err == (
        "error: gate failed: min-speedup (ort fp32 1×100: it is 2 times as fast as torch, and 9 is needed).\n"
    )
    assert "gate failed: min-speedup, ort fp32 1×100" in told.out
    assert "gates: 0 of 1 passed" in told.out
    assert told.out.count("and 9 is needed") == 1


def test_a_rate_that_was_missed_is_named_everywhere(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    found = judge(report(replace(ORT, server=SERVER)), Gates(min_rate=(MinRate(300, "ort"),)))
    with click.Context(click.Command("bench")), pytest.raises(click.exceptions.Exit):
        _bench.finish(found, None, None, asked(junit=tmp_path / "j.xml", csv=tmp_path / "c.csv"))
    told = capsys.readouterr()
    assert "error: gate failed: min-rate (ort fp32 1×100: it holds p99 within 20 ms up to 200 requests/s" in told.err
    assert "gate failed: min-rate, ort fp32 1×100" in told.out
    (failure,) = ElementTree.parse(tmp_path / "j.xml").getroot().findall("testsuite/testcase[failure]")
    assert failure.get("name") == "min-rate at 1×100"
    assert "gate min-rate" in (tmp_path / "c.csv").read_text(encoding="utf-8")


def test_a_whole_run_with_gates_and_files_and_a_baseline(project: Path, run: Callable[..., Result]) -> None:
    first = run("bench", "--json", "one.json")
    assert first.exit_code == 0, first.output
    second = run(
        *("bench", "--max-latency", "p50=1s", "--max-latency", "torch:p50=1us", "--min-speedup", "ort:0.001"),
        *("--baseline", "one.json", "--max-slowdown", "50", "--max-metric-drop", "0.1"),
        *("--junit", "out/j.xml", "--csv", "c.csv", "--json", "two.json"),
    )
    assert second.exit_code == 3, second.output
    found = json.loads((project / "two.json").read_text())
    told = [(gate["name"], gate["row"], gate["passed"]) for gate in found["gates"]]
    assert told == [
        ("max-latency p50", "ort fp32 1×20", True),
        ("max-latency p50", "torch fp32 1×20", False),
        ("min-speedup", "ort fp32 1×20", True),
        ("max-metric-drop", "ort fp32 1×20", False),
        ("max-slowdown", "ort fp32 1×20", True),
    ]
    assert [row["fault"] for row in found["rows"]] == ["gate", "gate"]
    assert "max-latency p50 (torch fp32 1×20" in second.stderr
    assert "max-metric-drop (ort fp32 1×20: the model brings no metric" in second.stderr
    assert ElementTree.parse(project / "out" / "j.xml").getroot().get("failures") == "2"
    with (project / "c.csv").open(encoding="utf-8") as file:
        assert [line["backend"] for line in csv.DictReader(file)] == ["torch", "ort"]
    compared = run("compare", "one.json", "two.json")
    assert compared.exit_code == 0, compared.output
    assert "verdict changed: ort fp32 1×20, passed → failed" in compared.stdout


def test_all_of_it_may_stand_in_the_project_file_and_validate_takes_its_part(
    project: Path, run: Callable[..., Result]
) -> None:
    with (project / "deploykit.toml").open("a") as file:
        file.write('atol = 1e-12\nrtol = 0\nmax-latency = "p50=1us"\nmin-speedup = [0.001]\njson = "bench.json"\n')
    benched = run("bench")
    assert benched.exit_code == 3, benched.output
    found = json.loads((project / "bench.json").read_text())
    assert [gate["name"] for gate in found["gates"]] == ["max-latency p50", "min-speedup"]
    assert found["rows"][1]["fault"] == "answer"
    before = (project / "bench.json").read_text()
    validated = run("validate", "--json", "-")
    assert validated.exit_code == 3, validated.output
    rows = json.loads(validated.stdout)["rows"]
    assert [(row["backend"], row["time"], row["latency_ms"]) for row in rows] == [
        ("torch", 20, None),
        ("ort", 20, None),
    ]
    assert rows[1]["tolerance"]["atol"] == 1e-12
    assert (project / "bench.json").read_text() == before, "the file of [bench] is the bench's alone"
    assert run("validate", "--atol", "1e-3").exit_code == 0
    with (project / "deploykit.toml").open("a") as file:
        file.write("[validate]\natol = 1e-3\n")
    assert run("validate").exit_code == 0


def test_a_backend_that_was_named_and_is_gone_in_its_process_ends_with_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(report(GONE), named=True) == 1
    assert "error: backend trt cannot run this: TensorRT is not installed." in capsys.readouterr().err


def test_a_slowdown_is_a_number_above_zero() -> None:
    assert _gates.slowdown("1.1") == 1.1
    with pytest.raises(UsageError, match="above 0"):
        _gates.slowdown("0")
