"""A stream beside the reference: who loses the state, or lets an error grow in it, is named."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import jsonschema
import numpy as np
import numpy.typing as npt
import pytest

from deploykit.bench import Report, Row, Settings, bench, drift, schema, to_json
from deploykit.bench.table import notes
from deploykit.bench.tolerance import FLOAT32, INT8
from deploykit.errors import UsageError
from tests.bench.fakes import subject

STREAM = subject("STREAM")
STEPS = 2000
SETTINGS = Settings(latency=False, times=(5,), timeout_s=60, drift=STEPS)


@pytest.fixture(scope="module")
def report() -> Report:
    names = ("STREAM_ACCUMULATING", "STREAM_FORGETFUL", "STREAM_NAN")
    subjects = [replace(STREAM, backend="tests.bench.fakes:STREAM", artifact=subject("STREAM", "int8").artifact)]
    subjects += [subject(name) for name in names] + [subject("STREAM_COARSE", "int8")]
    return bench(subjects, STREAM, SETTINGS)


def row(report: Report, name: str) -> Row:
    return next(row for row in report.rows[1:] if row.backend.rpartition(":")[2] == name)


def test_one_that_answers_alike_does_not_drift(report: Report) -> None:
    found = row(report, "STREAM")
    assert found.passed is True
    assert found.drift is not None
    assert (found.drift.steps, found.drift.max_abs, found.drift.snr_db, found.drift.reason) == (STEPS, 0, None, None)
    assert len(found.drift.per_step) == 64
    assert report.rows[0].drift is None


def test_an_error_that_accumulates_is_named_although_every_sequence_passed(report: Report) -> None:
    found = row(report, "STREAM_ACCUMULATING")
    assert all(check.passed for check in found.checks)
    assert (found.status, found.passed, found.fault) == ("ok", False, "answer")
    assert found.reason is not None
    assert found.reason.startswith("its answer drifts: over 2,000 streamed steps its output 'y' is outside |error| <= ")
    assert found.drift is not None
    assert found.drift.grows is True
    assert found.drift.max_abs == pytest.approx(2e-5 * (STEPS - 1), rel=0.01)
    assert found.drift.per_step[-1] > 50 * found.drift.per_step[0]


def test_int8_is_judged_by_its_last_tenth(report: Report) -> None:
    found = row(report, "STREAM_COARSE")
    assert all(check.passed for check in found.checks)
    assert found.reason is not None
    assert found.reason.startswith("its answer drifts: over the last 200 of 2,000 streamed steps its output 'y' has")
    assert found.drift is not None
    assert found.drift.snr_last_db is not None
    assert found.drift.snr_last_db < 20


def test_a_state_that_is_not_carried_is_named(report: Report) -> None:
    found = row(report, "STREAM_FORGETFUL")
    assert all(check.passed for check in found.checks)
    assert found.reason is not None
    assert found.reason.startswith("its answer drifts: ")
    assert " from step " in found.reason


def test_no_numbers_after_some_hundred_steps_is_a_failed_row(report: Report) -> None:
    found = row(report, "STREAM_NAN")
    assert (found.status, found.fault) == ("failed", "answer")
    assert found.reason is not None
    assert found.reason.startswith("its answer drifts: within 1,100 streamed steps, its output 'y' has ")


def test_it_is_said_and_satisfies_the_schema(report: Report) -> None:
    lines = list(notes(report))
    assert "STREAM int8: over 2,000 streamed steps its largest error is 0." in lines
    assert sum("drifts" in line for line in lines) == 4
    jsonschema.Draft202012Validator(schema()).validate(json.loads(to_json(report)))


def test_without_steps_or_states_there_is_no_drift() -> None:
    assert bench([subject("STREAM_FORGETFUL")], STREAM, replace(SETTINGS, drift=0)).passed is True
    assert bench([subject("PLAIN")], subject("REFERENCE"), SETTINGS).rows[1].drift is None
    with pytest.raises(UsageError, match="--drift -1"):
        Settings(drift=-1)


@pytest.mark.parametrize(
    ("wanted", "trial_seconds", "steps"),
    [(10_000, 0.0, 10_000), (10_000, 0.2, 10_000), (10_000, 0.4, 5000), (10_000, 60.0, 100), (50, 60.0, 50)],
)
def test_a_slow_reference_gets_fewer_steps(wanted: int, trial_seconds: float, steps: int) -> None:
    assert drift.steps_within(wanted, trial_seconds) == steps


def test_fewer_steps_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drift, "REFERENCE_SECONDS", 1e-9)
    report = bench([subject("STREAM", "int8")], STREAM, SETTINGS)
    assert report.rows[1].drift is not None
    assert report.rows[1].drift.steps == 100
    assert report.warnings == (
        "drift was measured over 100 steps and not 2,000, which would have taken the reference more than 1e-09 s.",
    )


def test_integers_are_counted_and_silence_is_judged_by_its_elements() -> None:
    tally = drift._Tally(INT8)
    right: dict[str, npt.NDArray[Any]] = {"token": np.zeros((100, 2), np.int64), "y": np.zeros((100, 3), np.float32)}
    tally.add(right, {**right, "y": right["y"] + np.float32(0.5)})
    assert "output 'y' is outside" in str(tally.drift().reason)
    tally = drift._Tally(INT8)
    tally.add({"token": right["token"]}, {"token": np.repeat([[0, 1]], 100, axis=0)})
    assert tally.drift().reason == (
        "its answer drifts: over the last 10 of 100 streamed steps its output 'token' equals the reference in 50.0%, "
        "and 90% is needed."
    )
    tally = drift._Tally(FLOAT32)
    tally.add({"token": right["token"]}, {"token": right["token"]})
    assert tally.drift().reason is None
