from __future__ import annotations

import csv
from dataclasses import replace

from deploykit.bench.csv import COLUMNS, to_csv
from deploykit.bench.gates import Gates, MinSpeedup, judge
from deploykit.bench.report import MetricResult
from tests.bench.samples import DRIFT, GONE, LATENCY, ORT, QUANTIZED, SERVER, report


def lines(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(text.splitlines()))


def test_one_line_for_each_row_in_a_stable_order() -> None:
    text = to_csv(report(ORT, QUANTIZED, GONE))
    assert text.splitlines()[0] == ",".join(COLUMNS)
    assert len(set(COLUMNS)) == len(COLUMNS)
    found = lines(text)
    assert [line["backend"] for line in found] == ["torch", "ort", "ort", "trt"]
    assert found[2]["precision"] == "int8"
    assert (found[2]["speedup"], found[2]["speedup_low"], found[2]["p99_ms"]) == ("3", "2.5", "8.0")
    assert (found[2]["passed"], found[2]["stable"]) == ("true", "true")


def test_the_scenario_its_server_and_the_drift_have_columns_of_their_own() -> None:
    row = replace(ORT, server=SERVER, drift=DRIFT, latency_ms=replace(LATENCY, throughput=192.0))
    first, found = lines(to_csv(report(row, settings={"scenario": "server"})))
    assert [line["scenario"] for line in (first, found)] == ["server", "server"]
    assert {name: value for name, value in found.items() if name.startswith(("drift_", "server_", "throughput"))} == {
        **{"throughput": "192.0", "drift_steps": "1000", "drift_max_abs": "0.002", "drift_grows": "true"},
        **{"drift_snr_db": "40.0", "drift_snr_first_db": "45.0", "drift_snr_last_db": "35.0"},
        **{"server_rate": "200.0", "server_percentile": "p99", "server_bound_ms": "20.0", "server_found_ms": "18.0"},
        **{"server_p50_ms": "5.0", "server_p90_ms": "9.0", "server_p99_ms": "18.0", "server_requests": "400"},
        **{"server_capped": "false", "server_p95_ms": "12.0", "server_mean_ms": "5.5"},
        **{"server_device_p50_ms": "", "server_device_p99_ms": ""},
    }
    assert not any(value for name, value in first.items() if name.startswith(("drift_", "server_")))


def test_what_is_unknown_or_not_finite_is_empty() -> None:
    bad = replace(ORT, metric=MetricResult("score", float("nan"), 2.0, higher_is_better=True))
    found = lines(to_csv(report(bad, GONE)))
    assert found[1]["metric_value"] == ""
    assert found[1]["metric_reference"] == "2.0"
    assert (found[2]["p50_ms"], found[2]["passed"], found[2]["batch"]) == ("", "", "")
    assert found[2]["reason"] == "TensorRT is not installed."


def test_commas_quotes_and_lines_stay_in_their_cell() -> None:
    reason = 'it said "no", and\nthen nothing.'
    text = to_csv(report(replace(ORT, reason=reason)))
    assert list(csv.DictReader(text.splitlines(keepends=True)))[1]["reason"] == reason


def test_failed_gates_are_named() -> None:
    found = lines(to_csv(judge(report(ORT, QUANTIZED), Gates(min_speedup=(MinSpeedup(2.5),)))))
    assert [line["gates_failed"] for line in found] == ["", "min-speedup", ""]
    assert found[1]["fault"] == "gate"


def test_the_columns_are_documented() -> None:
    from pathlib import Path

    text = (Path(__file__).parents[2] / "docs" / "method.md").read_text(encoding="utf-8")
    assert all(f"`{column}`" in text for column in COLUMNS)
