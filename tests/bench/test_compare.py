from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from deploykit.bench.compare import Change, Slowdown, compare, incomparable, matched, slowdown, to_json
from deploykit.bench.report import MetricResult, Speedup
from tests.bench.samples import BROKEN, ENVIRONMENT, GONE, ORT, QUANTIZED, REFERENCE, faster, report


def test_a_report_compared_with_itself_has_nothing_to_say() -> None:
    found = compare(report(ORT, GONE), report(ORT, GONE))
    assert (found.incomparable, found.environment, found.settings) == (None, (), ())
    ort = found.rows[1]
    assert ort.slowdown is not None
    assert (ort.slowdown.median, ort.overlap, ort.verdict_changed) == (1, True, False)
    assert found.rows[2].slowdown is None


def test_what_changed_around_the_runs_is_named() -> None:
    other = {
        **ENVIRONMENT,
        "cpu": "Another",
        "load_average": 7.0,
        "libraries": {"torch": "2.7.0"},
        "git": {"commit": "b" * 40, "dirty": False},
    }
    found = compare(report(ORT), report(ORT, environment=other, settings={"seed": 1}))
    assert found.environment == (
        Change("cpu", "A CPU", "Another"),
        Change("libraries.torch", "2.6.0", "2.7.0"),
        Change("libraries.onnxruntime", "1.20.0", None),
        Change("git.commit", "a" * 40, "b" * 40),
    )
    assert found.settings == (Change("seed", 0, 1),)


def test_a_slowdown_is_the_ratio_of_the_speedups() -> None:
    found = slowdown(faster(ORT, 3.0, 2.0, 4.0), faster(ORT, 1.5, 1.0, 2.0))
    assert found is not None
    assert found.median == 2.0
    assert found.low == pytest.approx(2 / math.exp(math.hypot(math.log(3 / 2), math.log(2 / 1.5))))
    assert found.high == pytest.approx(2 * math.exp(math.hypot(math.log(4 / 3), math.log(1.5 / 1))))
    assert slowdown(replace(ORT, speedup=None), ORT) is None


def test_one_side_without_an_interval_gives_none_and_one_of_no_width_is_the_others() -> None:
    found = slowdown(faster(ORT, 3.0, 2.0, 4.0), replace(ORT, speedup=Speedup("torch", 3.0, None, None)))
    assert found == Slowdown(1.0, None, None)
    found = slowdown(faster(ORT, 3.0, 2.0, 4.0), faster(ORT, 3.0))
    assert found is not None
    assert found.low == pytest.approx(2 / 3)
    assert found.high == pytest.approx(4 / 3)


def test_of_two_draws_of_one_thing_nineteen_in_twenty_intervals_hold_1() -> None:
    draws = np.random.default_rng(0)
    held = 0
    for _ in range(1000):
        old, new = (
            faster(ORT, math.exp(middle), math.exp(middle - 1.96 * spread), math.exp(middle + 1.96 * spread))
            for spread in draws.uniform(0.01, 0.1, 2)
            for middle in draws.normal(0, spread, 1)
        )
        found = slowdown(old, new)
        assert found is not None
        assert found.low is not None
        assert found.high is not None
        held += found.low <= 1 <= found.high
    assert 935 <= held <= 965


@pytest.mark.parametrize(("low", "high", "overlap"), [(2.1, 2.4, True), (2.3, 2.4, False)])
def test_whether_intervals_overlap(low: float, high: float, overlap: bool) -> None:
    pair = compare(report(faster(ORT, 2.0, 1.8, 2.2)), report(faster(ORT, 2.35, low, high))).rows[1]
    assert pair.overlap is overlap


def test_rows_of_one_report_alone_are_there() -> None:
    found = compare(report(ORT), report(QUANTIZED))
    assert [(pair.row, pair.before is None, pair.after is None) for pair in found.rows[1:]] == [
        ("ort fp32 1×100", False, True),
        ("ort int8 1×100", True, False),
    ]


def test_a_changed_verdict_is_seen() -> None:
    assert [pair.verdict_changed for pair in compare(report(ORT), report(BROKEN)).rows] == [False, True]


def test_artifacts_of_one_file_name_are_told_apart_by_their_folders() -> None:
    one, two = replace(ORT, artifact="a/net.onnx"), replace(ORT, artifact="b/net.onnx")
    pairs = matched(report(one, two), report(two, one))
    assert [(old.artifact, new.artifact) for _, old, new in pairs[1:] if old and new] == [
        ("a/net.onnx", "a/net.onnx"),
        ("b/net.onnx", "b/net.onnx"),
    ]
    moved = matched(report(one, two), report(replace(one, artifact="c/net.onnx")))
    assert [new for _, old, new in moved[1:] if old] == [None, None], "which of the two it was is not known"


def test_other_models_and_weights_do_not_compare() -> None:
    assert incomparable(report(ORT), report(ORT)) is None
    assert "of the model" in str(incomparable(report(ORT), report(ORT, model="other")))
    larger = report(ORT)
    larger = replace(larger, rows=(replace(REFERENCE, size_bytes=9), *larger.rows[1:]))
    assert "another model" in str(incomparable(report(ORT), larger))
    assert compare(report(ORT), larger).rows[1].slowdown is None


def test_the_json_has_no_nan() -> None:
    bad = replace(ORT, metric=MetricResult("score", float("nan"), 2.0, higher_is_better=True))
    data = json.loads(to_json(compare(report(bad), report(bad))), parse_constant=pytest.fail)
    assert data["rows"][1]["before"]["metric"] is None
    assert list(data["rows"][1]) == ["row", "before", "after", "slowdown", "overlap", "verdict_changed"]
    assert data["schema_version"] == 1
