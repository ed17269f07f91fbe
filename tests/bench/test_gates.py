from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest

from deploykit.bench import bench, schema
from deploykit.bench.gates import Baseline, Gates, MaxLatency, MinRate, MinSpeedup, judge, usable_baseline
from deploykit.bench.report import GateResult, MetricResult, Report, Server, Speedup, read, save, to_json
from deploykit.bench.settings import Settings
from deploykit.bench.tolerance import Override, Overrides
from deploykit.errors import UnknownNameError, UsageError
from tests.bench.fakes import subject
from tests.bench.samples import BROKEN, ENVIRONMENT, GONE, LATENCY, ORT, QUANTIZED, SERVER, faster, report


def results(found: Report, name: str) -> list[GateResult]:
    return [gate for gate in found.gates if gate.name == name]


def test_without_gates_the_report_stays_as_it_is() -> None:
    assert judge(report(ORT), Gates()) == report(ORT)


def test_a_latency_gate_judges_every_row_but_the_reference_and_the_unavailable() -> None:
    found = judge(report(ORT, QUANTIZED, GONE), Gates(max_latency=(MaxLatency("p99", 9.0),)))
    assert [(gate.row, gate.found, gate.passed) for gate in found.gates] == [
        ("ort fp32 1×100", 8.0, True),
        ("ort int8 1×100", 8.0, True),
    ]
    assert found.passed


def test_a_missed_gate_marks_its_row() -> None:
    slow = replace(QUANTIZED, latency_ms=replace(LATENCY, p99=20.0))
    found = judge(report(ORT, slow), Gates(max_latency=(MaxLatency("p99", 9.0),)))
    assert not found.passed
    assert [row.fault for row in found.rows] == [None, None, "gate"]
    assert [row.passed for row in found.rows] == [True, True, False]
    assert found.rows[2].reason == "gate max-latency p99: its p99 is 20 ms, and 9 ms is allowed."
    jsonschema.Draft202012Validator(schema()).validate(json.loads(to_json(found)))


def test_a_row_that_was_wrong_already_keeps_its_fault_and_reason() -> None:
    wrong = replace(ORT, passed=False, fault="answer", reason="its SNR is low.")
    found = judge(report(wrong), Gates(max_latency=(MaxLatency("p50", 1.0),)))
    assert (found.rows[1].fault, found.rows[1].reason) == ("answer", "its SNR is low.")


def test_the_limit_itself_passes() -> None:
    gates = Gates((MaxLatency("mean", 5.2),), (MinSpeedup(2.0),))
    assert all(gate.passed for gate in judge(report(ORT), gates).gates)


def test_a_gate_for_one_backend_may_name_the_reference() -> None:
    found = judge(report(ORT), Gates(max_latency=(MaxLatency("p50", 9.0, "torch"),)))
    assert [(gate.row, gate.passed) for gate in found.gates] == [("torch fp32 1×100", False)]


@pytest.mark.parametrize("backend", ["trt", "package.module:OTHER"])
def test_a_gate_that_finds_nothing_to_judge_does_not_pass(backend: str) -> None:
    found = judge(report(ORT, GONE), Gates(max_latency=(MaxLatency("p50", 9.0, backend),)))
    assert not found.passed
    assert "nothing to judge" in str(found.gates[0].reason)
    assert [row.passed for row in found.rows] == [True, True, None]


def test_too_few_samples_do_not_pass_and_say_so() -> None:
    few = replace(ORT, latency_ms=replace(LATENCY, p99=None, samples=60))
    gate = judge(report(few), Gates(max_latency=(MaxLatency("p99", 9.0),))).gates[0]
    assert (gate.passed, gate.found) == (False, None)
    assert "60 samples are too few for a p99, which needs 100" in str(gate.reason)


def test_a_row_that_failed_cannot_be_judged() -> None:
    found = judge(report(BROKEN), Gates((MaxLatency("p50", 9.0),), (MinSpeedup(1),), max_metric_drop=0.1))
    assert [(gate.found, gate.passed) for gate in found.gates] == [(None, False)] * 3
    assert found.rows[1].fault == "error"


@pytest.mark.parametrize(
    ("low", "high", "limit", "passed", "unsure"),
    [
        (1.8, 2.2, 1.9, True, True),
        (1.8, 2.2, 2.1, False, True),
        (1.8, 2.2, 1.5, True, False),
        (1.8, 2.2, 3, False, False),
    ],
)
def test_a_speedup_is_judged_on_its_median_and_says_where_it_is_uncertain(
    low: float, high: float, limit: float, passed: bool, unsure: bool
) -> None:
    gate = judge(report(faster(ORT, 2.0, low, high)), Gates(min_speedup=(MinSpeedup(limit),))).gates[0]
    assert gate.passed is passed
    assert ("uncertain" in str(gate.reason)) is unsure


def rated(server: Server | None, *limits: float) -> list[GateResult]:
    gates = Gates(min_rate=tuple(map(MinRate, limits)))
    return list(judge(report(replace(ORT, server=server), settings={"scenario": "server"}), gates).gates)


def test_a_rate_is_judged_and_uncertain_within_what_it_reads_to() -> None:
    found = rated(SERVER, 100, 190, 210, 300)
    assert [(gate.name, gate.found, gate.passed) for gate in found] == [
        ("min-rate", 200.0, passed) for passed in (True, True, False, False)
    ]
    assert ["uncertain" in str(gate.reason) for gate in found] == [False, True, True, False]
    assert found[3].reason == "it holds p99 within 20 ms up to 200 requests/s, and 300 are needed."


def served(server: Server | None, *gates: MaxLatency) -> list[GateResult]:
    fast = replace(ORT, latency_ms=replace(LATENCY, p50=0.1, p99=0.1, mean=0.1), server=server)
    return list(judge(report(fast, settings={"scenario": "server"}), Gates(max_latency=gates)).gates)


AT_RATE = replace(SERVER, percentile=None, bound_ms=None, found_ms=None, tries=())


@pytest.mark.parametrize("server", [AT_RATE, SERVER])
def test_a_latency_gate_on_the_server_judges_requests_and_their_queue(server: Server) -> None:
    found = served(server, MaxLatency("p99", 9.0), MaxLatency("p95", 50.0), MaxLatency("mean", 5.3))
    assert [(gate.name, gate.found, gate.passed) for gate in found] == [
        ("max-latency p99", 18.0, False),
        ("max-latency p95", 12.0, True),
        ("max-latency mean", 5.5, False),
    ]
    assert found[0].reason == "at 200 requests/s its p99, queue included, is 18 ms, and 9 ms is allowed."
    assert found[1].reason is None
    assert "uncertain: a percentile of a queue reads to about 10%" in str(found[2].reason)


def test_a_latency_gate_on_the_server_without_a_latency_does_not_pass() -> None:
    ran_away = replace(AT_RATE, p50=None, p90=None, p95=None, p99=None, mean=None)
    few = replace(AT_RATE, requests=30, p99=None)
    told = {
        "at 200 requests/s its queue ran away, and 9 ms is allowed.": ran_away,
        "30 requests are too few for a p99, which needs 100: name a higher --rate.": few,
        "no rate that was tried holds p99 within 20 ms, so there is no latency.": replace(SERVER, rate=None, p50=None),
        "this run timed nothing.": None,
    }
    for reason, server in told.items():
        (gate,) = served(server, MaxLatency("p99", 9.0))
        assert (gate.found, gate.passed, gate.reason) == (None, False, reason)


def test_a_search_that_ended_early_makes_only_a_miss_uncertain() -> None:
    passed, missed = rated(replace(SERVER, capped=True), 100, 300)
    assert passed.reason is None
    assert "the search ended for its time" in str(missed.reason)


def test_without_a_rate_that_holds_nothing_passes() -> None:
    (none,) = rated(replace(SERVER, rate=None, found_ms=None), 1)
    assert (none.found, none.passed) == (None, False)
    assert none.reason == "no rate that was tried holds p99 within 20 ms, and 1 are needed."
    for server in (None, replace(SERVER, percentile=None, bound_ms=None)):
        (none,) = rated(server, 1)
        assert (none.found, none.passed, none.reason) == (None, False, "this run looked for no highest rate.")
    found = judge(report(BROKEN), Gates(min_rate=(MinRate(1),)))
    assert found.gates[0].reason == "it failed, so there is no rate."


def test_an_unstable_latency_is_uncertain_only_near_the_limit() -> None:
    shaky = report(replace(ORT, latency_ms=replace(LATENCY, stable=False)))
    near, far = (judge(shaky, Gates(max_latency=(MaxLatency("p50", limit),))).gates[0] for limit in (5.1, 100.0))
    assert near.passed
    assert "uncertain" in str(near.reason)
    assert far.reason is None


def test_the_metric_may_drop_by_its_share() -> None:
    for limit, passed in ((0.02, True), (0.005, False)):
        gate = judge(report(QUANTIZED), Gates(max_metric_drop=limit)).gates[0]
        assert gate.found == pytest.approx(0.01)
        assert gate.passed is passed


def test_a_metric_that_is_not_there_or_not_finite_does_not_pass() -> None:
    none = judge(report(replace(ORT, metric=None)), Gates(max_metric_drop=0.1)).gates[0]
    nan = judge(
        report(replace(ORT, metric=MetricResult("score", float("nan"), 2.0, higher_is_better=True))),
        Gates(max_metric_drop=0.1),
    ).gates[0]
    assert not none.passed
    assert "brings no metric" in str(none.reason)
    assert not nan.passed
    assert nan.found is None


def against(old: Report, new: Report, limit: float = 1.1) -> Report:
    return judge(new, Gates(baseline=Baseline(old, "old.json", limit)))


def test_the_baseline_is_held_against_by_speedup_and_not_by_milliseconds() -> None:
    crawling = replace(LATENCY, p50=500.0, p99=800.0)
    found = against(report(faster(ORT, 2.0)), report(replace(faster(ORT, 1.9), latency_ms=crawling)))
    assert found.passed
    assert found.gates[0].found == pytest.approx(2.0 / 1.9)
    assert "milliseconds of two runs do not compare" in found.warnings[0]


def test_a_row_slower_than_in_the_baseline_does_not_pass() -> None:
    found = against(report(faster(ORT, 2.0), QUANTIZED), report(faster(ORT, 1.5), QUANTIZED))
    assert [gate.passed for gate in found.gates] == [False, True]
    assert "1.33 times slower against the reference, and 1.1 is allowed" in str(found.gates[0].reason)
    assert found.rows[1].fault == "gate"


@pytest.mark.parametrize(
    ("median", "width", "passed", "unsure"),
    [
        (1.95, 0.01, True, False),
        (1.9, 0.1, True, True),
        (1.7, 0.15, True, True),  # 1.18 times slower, which noise explains
        (1.7, 0.01, False, False),
        (1.2, 0.15, False, False),
    ],
)
def test_a_slowdown_that_noise_explains_passes_and_says_that_it_is_uncertain(
    median: float, width: float, passed: bool, unsure: bool
) -> None:
    old, new = (faster(ORT, value, value * (1 - width), value * (1 + width)) for value in (2.0, median))
    found = against(report(old), report(new))
    assert found.passed is passed
    assert ("uncertain" in str(found.gates[0].reason)) is unsure


def test_without_an_interval_a_slowdown_is_judged_on_its_median() -> None:
    alone = replace(ORT, speedup=Speedup("torch", 1.5, None, None))
    found = against(report(faster(ORT, 2.0, 1.0, 4.0)), report(alone))
    assert not found.passed
    assert "one round gives no interval" in str(found.gates[0].reason)


def test_a_row_missing_or_unavailable_or_failed_now_does_not_pass() -> None:
    was = replace(QUANTIZED, backend="trt")
    missing = against(report(ORT, QUANTIZED), report(ORT))
    assert not missing.passed
    assert [(gate.row, gate.passed) for gate in missing.gates] == [("ort fp32 1×100", True), ("ort int8 1×100", False)]
    assert "missing in this run" in str(missing.gates[1].reason)
    assert "TensorRT is not installed" in str(against(report(was), report(GONE)).gates[0].reason)
    assert "it failed" in str(against(report(ORT), report(BROKEN)).gates[0].reason)


@pytest.mark.parametrize("change", [{"batch": 2}, {"time": 7}, {"threads": 2}, {"artifact": "build/other.onnx"}])
def test_rows_are_matched_by_size_threads_and_artifact(change: dict[str, int]) -> None:
    found = against(report(ORT), report(replace(ORT, **change)))  # type: ignore[arg-type]
    assert not found.gates[0].passed
    assert any("has no speed-up in old.json" in warning for warning in found.warnings)


def test_what_a_baseline_cannot_vouch_for_is_said() -> None:
    wrong = replace(ORT, passed=False, fault="answer", reason="its SNR is low.")
    assert "ort fp32 1×100 did not pass in old.json: its SNR is low." in against(report(wrong), report(ORT)).warnings
    broken = against(report(BROKEN, QUANTIZED), report(ORT, QUANTIZED))
    assert any("ort fp32 1×100 has no speed-up in old.json" in warning for warning in broken.warnings)
    assert len(broken.gates) == 1


def test_the_folder_of_an_artifact_does_not_matter() -> None:
    assert against(report(ORT), report(replace(ORT, artifact="elsewhere/net.onnx"))).passed


def test_another_reference_cannot_be_held_against() -> None:
    for other in (report(ORT, model="other"), report(ORT, reference="ort")):
        gate = against(other, report(ORT)).gates[0]
        assert not gate.passed
        assert "do not compare" in str(gate.reason)


def test_another_environment_is_a_warning() -> None:
    old = report(ORT, environment={**ENVIRONMENT, "cpu": "Another", "load_average": 9, "git": None})
    told = [warning for warning in against(old, report(ORT)).warnings if "another environment" in warning]
    assert told == [
        "old.json comes from another environment, which may change a speed-up: cpu was Another and is A CPU."
    ]


def test_a_report_without_speedups_is_no_baseline() -> None:
    with pytest.raises(UsageError, match="no baseline"):
        usable_baseline(report(replace(ORT, speedup=None)), "old.json", 1.1, "single-stream")


def test_a_baseline_of_another_scenario_is_refused_and_never_held_against() -> None:
    server = report(ORT, settings={"scenario": "server"})
    with pytest.raises(UsageError, match=r"old\.json was timed in the scenario single-stream and this run in server"):
        usable_baseline(report(ORT), "old.json", 1.1, "server")
    assert usable_baseline(server, "old.json", 1.1, "server").report == server
    gate = against(report(ORT), server).gates[0]
    assert not gate.passed
    assert "the scenario single-stream and the other in server" in str(gate.reason)


ACCURACY = Settings(latency=False, times=(20,), timeout_s=60)


def test_tolerances_are_overridden_for_all_outputs_and_for_one() -> None:
    loose = replace(ACCURACY, overrides=Overrides(Override(atol=1.0)))
    strict = replace(ACCURACY, overrides=Overrides(outputs={"h": Override(min_snr_db=60)}))
    runs = [subject("ROLLED"), subject("COARSE", "int8")]
    rolled, coarse = bench(runs, subject("REFERENCE"), loose).rows[1:]
    assert rolled.passed is False, "an element may be off by 1, and rolled ones are by more"
    assert coarse.passed is True
    assert coarse.tolerance is not None
    assert coarse.tolerance.every_element
    assert coarse.tolerance.min_snr_db == 20
    assert coarse.tolerance.origin.startswith("set by the user: atol 1; else deploykit's default")
    coarse = bench(runs[1:], subject("REFERENCE"), strict).rows[1]
    assert coarse.fault == "answer"
    assert "its output 'h' has an SNR of" in str(coarse.reason)
    assert "60 dB is needed" in str(coarse.reason)


def test_a_tolerance_for_an_output_that_is_not_there_is_told() -> None:
    settings = replace(ACCURACY, overrides=Overrides(outputs={"why": Override(atol=1)}))
    with pytest.raises(UnknownNameError, match="did you mean 'y'"):
        bench([], subject("REFERENCE"), settings)


def test_a_report_whose_metric_was_nan_can_be_a_baseline(tmp_path: Path) -> None:
    bad = replace(ORT, metric=MetricResult("score", float("nan"), 2.0, higher_is_better=True))
    save(report(bad), tmp_path / "old.json")
    metric = read(tmp_path / "old.json").rows[1].metric
    assert metric is not None
    assert metric.value is None
    assert metric.reference == 2.0
