from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from deploykit.artifact import Artifact, ModelRef
from deploykit.bench import Report, Row, Settings, Subject, bench, schema, stages, to_json
from deploykit.bench.locate import locate
from deploykit.errors import BackendFailedError, BackendUnavailableError, ModelError, UsageError
from deploykit.export import export
from tests.bench.fakes import subject

ACCURACY = Settings(latency=False, times=(20,), timeout_s=60)
REFERENCE = subject("REFERENCE")
FAULTY = (
    "ROLLED",
    "SWAPPED",
    "NAN",
    "SHORT",
    "CRASH",
    "RAISE",
    "NAMES",
    "DOUBLE",
    "MISSING",
    "DRIFTING",
    "OVERFLOW",
    "LEAK",
)
INT8 = ("COARSE", "RUINED", "COUPLED", "AHEAD")


@pytest.fixture(scope="module")
def report() -> Report:
    """One run with every fault at once: each must be caught, and none may spoil another."""
    subjects = [
        subject("PLAIN"),
        *(subject(name) for name in FAULTY),
        subject("HALF", "float16"),
        *(subject(name, "int8") for name in INT8),
        Subject("trt", None, "TensorRT is not installed."),
        replace(subject("COARSE"), backend="nowhere:BACKEND"),
    ]
    return bench(subjects, REFERENCE, ACCURACY)


def row(report: Report, name: str) -> Row:
    found = [row for row in report.rows if row.backend.rpartition(":")[2] == name]
    assert len(found) == 1
    return found[0]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("NAN", "at batch 1, time 20, its output 'y' has 80 of 80 elements that are NaN or Inf."),
        ("SHORT", "at batch 1, time 20, its output 'y' has the shape [1, 19, 4], and the reference's [1, 20, 4]."),
        ("OVERFLOW", "at batch 1, time 20, its output 'y' has 79 of 80 elements that are NaN or Inf."),
        ("CRASH", "its process ended by itself with exit code 7."),
        ("RAISE", "ValueError: the kernel broke."),
        ("NAMES", "at batch 1, time 20, it returns the outputs y, state, and the reference y, h."),
        ("DOUBLE", "at batch 1, time 20, its output 'h' is float64, and the reference's float32."),
        ("BACKEND", "cannot find the backend 'nowhere:BACKEND': No module named 'nowhere'."),
    ],
)
def test_a_subject_that_breaks_is_a_failed_row(report: Report, name: str, reason: str) -> None:
    found = row(report, name)
    assert (found.status, found.reason, found.passed) == ("failed", reason, False)


def test_a_subject_that_eats_memory_fails_alone(report: Report) -> None:
    found = row(report, "LEAK")
    assert found.status == "failed"
    assert found.reason is not None
    assert "Memory" in found.reason


@pytest.mark.parametrize("name", ["ROLLED", "SWAPPED", "DRIFTING"])
def test_wrong_numbers_do_not_pass(report: Report, name: str) -> None:
    found = row(report, name)
    assert found.status == "ok"
    assert found.passed is False
    assert found.reason is not None
    assert "outside |error| <=" in found.reason


def test_swapped_rows_are_found_although_the_row_has_one(report: Report) -> None:
    found = row(report, "SWAPPED")
    assert found.accuracy is not None
    assert found.accuracy.max_abs == 0
    assert [check.passed for check in found.checks] == [True, True, False, False]


def test_every_subject_is_checked_at_three_sizes_and_more(report: Report) -> None:
    sizes = [(check.batch, check.time) for check in row(report, "PLAIN").checks]
    assert sizes == [(1, 20), (1, 1), (3, 7), (2, 137)]


def test_the_reference_and_its_twin_pass(report: Report) -> None:
    for name in ("REFERENCE", "PLAIN"):
        found = row(report, name)
        assert found.passed is True
        assert found.accuracy is not None
        assert (found.accuracy.max_abs, found.accuracy.snr_db) == (0, None)
        assert found.metric is not None
        assert found.metric.value == found.metric.reference


def test_unavailable_backends_are_rows_without_a_verdict(report: Report) -> None:
    for name, reason in (
        ("MISSING", "libfake is not installed: run pip install libfake."),
        ("trt", "TensorRT is not installed."),
    ):
        found = row(report, name)
        assert (found.status, found.reason, found.passed) == ("unavailable", reason, None)


def test_float16_may_return_float16(report: Report) -> None:
    assert row(report, "HALF").passed is True


def test_int8_is_judged_by_its_snr(report: Report) -> None:
    coarse, ruined = row(report, "COARSE"), row(report, "RUINED")
    assert coarse.passed is True
    assert coarse.accuracy is not None
    assert coarse.accuracy.snr_db is not None
    assert 30 < coarse.accuracy.snr_db < 50
    assert ruined.passed is False
    assert "dB is needed" in str(ruined.reason)


def test_int8_is_judged_by_its_metric(report: Report) -> None:
    metric = row(report, "RUINED").metric
    assert metric is not None
    assert metric.name == "mean_square"
    assert metric.value != metric.reference


def test_one_scale_for_all_is_seen_as_broken_invariance(report: Report) -> None:
    found = row(report, "COUPLED").invariance
    clean = row(report, "COARSE").invariance
    assert found is not None
    assert clean is not None
    assert found.batch is not None
    assert found.prefix is not None
    assert clean.batch == clean.prefix == 0
    assert found.batch > 1e-3
    assert found.prefix > 1e-3
    assert len(row(report, "COUPLED").warnings) == 2
    assert "batch neighbours" in row(report, "COUPLED").warnings[0]


def test_looking_ahead_breaks_the_prefix_alone(report: Report) -> None:
    found = row(report, "AHEAD").invariance
    assert found is not None
    assert found.causal is True
    assert found.batch == 0
    assert found.prefix is not None
    assert found.prefix > 1e-3


def test_a_growing_error_is_said_to_grow_and_where_it_starts(report: Report) -> None:
    accuracy = row(report, "DRIFTING").accuracy
    assert accuracy is not None
    assert accuracy.grows is True
    assert accuracy.first_step_outside == 1
    assert accuracy.per_step is not None
    assert np.allclose(accuracy.per_step, 1e-3 * np.arange(20), atol=1e-6)


def test_the_report_fails_when_a_row_does_and_satisfies_its_schema(report: Report) -> None:
    assert report.passed is False
    jsonschema.Draft202012Validator(schema()).validate(json.loads(to_json(report)))


def test_latency_is_measured_in_rounds_and_a_crash_there_leaves_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "WARM_SECONDS", 0.0)
    seen: list[tuple[str, float]] = []
    settings = Settings(times=(5,), batches=(1, 2), seconds=0.05, rounds=6, timeout_s=60)
    report = bench(
        [subject("PLAIN"), subject("CRASH_LATE")], REFERENCE, settings, lambda step, done: seen.append((step, done))
    )
    rows = {(row.backend.rpartition(":")[2], row.batch): row for row in report.rows}
    for name in ("REFERENCE", "PLAIN"):
        for batch in (1, 2):
            found = rows[name, batch]
            assert found.latency_ms is not None
            assert found.latency_ms.windows == 6
            assert found.latency_ms.samples >= 6
            assert found.latency_ms.p50 is not None
            assert found.speedup is not None
            assert found.peak_memory_bytes is not None
            assert 10e6 < found.peak_memory_bytes < 500e6
            assert found.load_ms is not None
            assert found.first_ms is not None
    assert rows["REFERENCE", 1].speedup is not None
    assert rows["REFERENCE", 1].speedup.median == 1
    late = rows["CRASH_LATE", 1]
    assert (late.status, late.reason, late.latency_ms) == (
        "failed",
        "its process ended by itself with exit code 9.",
        None,
    )
    assert late.accuracy is not None
    shares = [done for _, done in seen]
    assert all(0 <= share <= 1 for share in shares)
    assert shares[-1] > 0.9
    jsonschema.Draft202012Validator(schema()).validate(json.loads(to_json(report)))


def test_a_subject_that_hangs_is_ended() -> None:
    report = bench([subject("HANG"), subject("PLAIN")], REFERENCE, replace(ACCURACY, timeout_s=4))
    assert row(report, "HANG").reason == "its process did not answer 'infer' within 4 s and was ended."
    assert row(report, "PLAIN").passed is True


def test_what_a_subject_prints_goes_to_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    report = bench([subject("CHATTY")], REFERENCE, ACCURACY)
    out, err = capfd.readouterr()
    assert report.passed is True
    assert out == ""
    assert "printed garbage" in err
    assert "written garbage" in err


def test_an_interrupt_leaves_no_process_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[Any]] = []

    class Spy(subprocess.Popen[Any]):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            started.append(self)

    def interrupt(step: str, done: float) -> None:
        if step.startswith("accuracy"):
            raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "Popen", Spy)
    with pytest.raises(KeyboardInterrupt):
        bench([subject("PLAIN")], REFERENCE, ACCURACY, interrupt)
    assert len(started) == 2
    assert all(process.poll() is not None for process in started)


def test_a_script_without_a_main_guard_can_bench(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(
            """
            from deploykit.bench import Settings, bench
            from tests.bench.fakes import subject
            report = bench([], subject("PLAIN"), Settings(latency=False, times=(3,)))
            print("passed", report.passed)
            """
        )
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert (done.stdout, done.returncode) == ("passed True\n", 0), done.stderr


def test_a_reference_that_does_not_repeat_itself_does_not_pass() -> None:
    report = bench([], subject("REFERENCE_FORGETFUL"), ACCURACY)
    assert report.passed is False
    assert "outside |error|" in str(report.rows[0].reason)


def test_a_reference_that_looks_ahead_is_not_causal() -> None:
    found = bench([subject("REFERENCE_BIDIRECTIONAL")], subject("REFERENCE_BIDIRECTIONAL"), ACCURACY).rows[0].invariance
    assert found is not None
    assert (found.causal, found.prefix) == (False, None)


def test_a_size_that_the_reference_cannot_do_is_skipped_and_said() -> None:
    report = bench([subject("PLAIN")], subject("REFERENCE_REFUSES_SINGLE"), ACCURACY)
    assert report.passed is True
    assert report.warnings == (
        "not checked at batch 1, time 1, where the reference itself fails: at least 2 steps are needed.",
    )


def test_a_reference_that_fails_is_an_error() -> None:
    with pytest.raises(ModelError, match="reference itself returns NaN or Inf in its output 'y' at batch 1, time 20"):
        bench([], subject("REFERENCE_NAN"), ACCURACY)
    with pytest.raises(BackendFailedError, match="exit code 7"):
        bench([], subject("CRASH"), ACCURACY)
    with pytest.raises(BackendUnavailableError, match="libfake is not installed"):
        bench([], subject("MISSING"), ACCURACY)


def test_a_subject_that_fails_in_the_metric_fails_alone() -> None:
    report = bench([subject("CRASH_IN_METRIC"), subject("PLAIN")], subject("FRAGILE_METRIC"), ACCURACY)
    assert row(report, "CRASH_IN_METRIC").reason == "computing score: its process ended by itself with exit code 6."
    plain = row(report, "PLAIN").metric
    assert plain is not None
    assert plain.value == plain.reference


def test_a_metric_that_fails_on_the_reference_is_an_error() -> None:
    with pytest.raises(BackendFailedError, match=r"reference .* failed: computing score: KeyError: 'no such output'"):
        bench([], subject("BROKEN_METRIC"), ACCURACY)
    with pytest.raises(BackendFailedError, match=r"reference .* failed: computing score of .*exit code 5"):
        bench([subject("COARSE", "int8")], subject("DEADLY_METRIC"), ACCURACY)


def test_a_model_that_is_not_described_in_full_is_a_usage_error(net: ModelRef) -> None:
    with pytest.raises(UsageError, match=r"say what net\.py:gru takes"):
        bench([], Artifact.of_model(replace(net, inputs=()), "net"), ACCURACY)


def test_the_pytorch_reference_is_a_row(net: ModelRef) -> None:
    report = bench([], Artifact.of_model(net, "net"), ACCURACY)
    found = report.rows[0]
    assert (found.backend, found.precision, found.artifact, found.passed) == ("torch", "float32", "net.py:gru", True)
    assert found.size_bytes == 4 * (48 * 8 + 48 * 16 + 2 * 48 + 3 * 16 + 3)
    assert found.accuracy is not None
    assert list(found.accuracy.outputs) == ["output"]


def test_sizes_outside_the_model_are_usage_errors() -> None:
    with pytest.raises(UsageError, match="--time 60 is outside the model's range 2 to 50"):
        bench([], subject("SHORT_RANGE"), replace(ACCURACY, times=(60,)))


def test_default_sizes_move_into_the_models_ranges() -> None:
    report = bench([], subject("SHORT_RANGE"), replace(ACCURACY, times=None))
    assert [(row.batch, row.time) for row in report.rows] == [(1, 50)]
    assert [(check.batch, check.time) for check in report.rows[0].checks] == [(1, 50), (1, 2), (3, 7), (2, 50)]


def test_an_unknown_precision_is_found_before_anything_starts() -> None:
    with pytest.raises(UsageError, match="precision 'float8'"):
        bench([subject("PLAIN", "float8")], REFERENCE, ACCURACY)


def test_real_data_is_used_where_it_is_given(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    np.savez(path, x=np.zeros((3, 30, 4), np.float32))
    report = bench([subject("DRIFTING", "int8")], REFERENCE, replace(ACCURACY, data=path))
    accuracy = report.rows[1].accuracy
    assert accuracy is not None
    assert accuracy.outputs["y"].cosine is None, "zeros in give zeros out: there is no signal"
    assert report.rows[1].passed is False
    assert report.settings["data"] == "data.npz"


def test_swapped_gates_are_caught_and_located(net: ModelRef, folder: Path) -> None:
    """An export whose reset and update gates have changed places: every check runs, and the answer is outside."""
    exported = export(net, folder / "net.onnx")
    model = onnx.load(exported.path)
    gru = next(node for node in model.graph.node if node.op_type == "GRU")
    for name in gru.input[1:3]:
        weights = next(one for one in model.graph.initializer if one.name == name)
        update, reset, new = np.split(numpy_helper.to_array(weights), 3, axis=1)
        weights.CopyFrom(numpy_helper.from_array(np.concatenate([reset, update, new], axis=1), name))
    onnx.save(model, folder / "wrong.onnx")
    wrong = replace(exported, path=folder / "wrong.onnx")
    _, found = bench([Subject("ort", wrong)], Artifact.of_model(net, "gru"), ACCURACY).rows
    assert (found.passed, found.fault) == (False, "answer")
    assert "outside |error| <=" in str(found.reason)
    feeds = {"x": np.random.default_rng(0).standard_normal((2, 20, 8)).astype(np.float32)}
    located = locate(wrong, None, feeds).first_wrong
    assert located is not None
    assert located.where == "rnn"
