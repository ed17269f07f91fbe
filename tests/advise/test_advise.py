from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from deploykit.advise import Question, Training, advise
from deploykit.advise import measure as measuring
from deploykit.advise.measure import Measured, Timing
from deploykit.advise.probes import Probe
from deploykit.errors import UnknownNameError, UsageError
from tests.advise.samples import EVIDENCE, MACHINE, cost
from tests.models.synthetic import traffic

HERE = {**MACHINE, "cpu": "another CPU"}


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[Probe]:
    """A machine three times as slow as the grid's; the probes that were measured on it."""
    done: list[Probe] = []

    def measure(wanted: Sequence[Probe], timing: Timing, tell: object) -> Measured:
        done.extend(wanted)
        return Measured(
            [
                cost(probe.architecture, probe.hidden, steps, precision=precision, slower=3.0, batch=timing.batch)
                for probe in wanted
                for steps in timing.steps
                for precision in ("float32", "int8")
            ]
        )

    monkeypatch.setattr(measuring, "measure", measure)
    return done


def test_times_of_another_machine_are_thin() -> None:
    found = advise(Question(steps=50), [EVIDENCE], HERE)
    assert found.choice.taken is not None
    assert any("times are of a CPU, 2 cores" in said for said in found.thin)
    assert not any("times are of" in said for said in advise(Question(steps=50), [EVIDENCE], MACHINE).thin)


def test_what_is_taken_was_measured_here(measured: list[Probe]) -> None:
    found = advise(Question(steps=50, latency={"p50": 4.0}), [EVIDENCE], HERE, measure=True)
    taken = found.choice.taken
    assert taken is not None
    assert taken.estimate.measured
    assert Probe(taken.architecture, taken.hidden, 16, 1) in measured
    assert taken.estimate.latency_ms["p50"] <= 4.0
    # The grid alone would have taken what is too slow here: 64 units, 50 steps, half of it in int8, three times over.
    first = advise(Question(steps=50, latency={"p50": 4.0}), [EVIDENCE], HERE).choice.taken
    assert first is not None
    assert first.hidden == 64
    assert taken.hidden < 64
    assert found.measured == len({(probe.architecture, probe.hidden) for probe in measured})


def test_another_batch_needs_measuring(measured: list[Probe]) -> None:
    with pytest.raises(UsageError, match=r"nothing was measured at batch 8.*--measure"):
        advise(Question(batch=8), [EVIDENCE], MACHINE)
    found = advise(Question(batch=8), [EVIDENCE], MACHINE, measure=True)
    assert found.choice.taken is not None
    assert found.choice.taken.estimate.measured


def test_a_gpu_without_measurements_needs_measuring(measured: list[Probe]) -> None:
    with pytest.raises(UsageError, match="nothing was measured on a gpu"):
        advise(Question(device="gpu"), [EVIDENCE], MACHINE)
    found = advise(Question(device="gpu", architectures=("gru", "rnn-tanh")), [EVIDENCE], MACHINE, measure=True)
    assert {probe.architecture for probe in measured} == {"gru", "rnn-tanh"}
    assert found.choice.taken is not None


def test_other_features_change_the_size_and_are_thin() -> None:
    few, many = (advise(Question(steps=50, features=count), [EVIDENCE], MACHINE) for count in (16, 300))
    sizes = [{one.key: one.estimate.size_bytes for one in found.choice.candidates} for found in (few, many)]
    assert all(sizes[1][key] > size for key, size in sizes[0].items())
    assert any("16 features a step, not 300" in said for said in many.thin)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="architecture 'grru'"):
        advise(Question(architectures=("grru",)), [EVIDENCE], MACHINE)
    with pytest.raises(UnknownNameError, match="task 'flaw'"):
        advise(Question(tasks=("flaw",)), [EVIDENCE], MACHINE)
    with pytest.raises(UsageError, match="steps 0"):
        Question(steps=0)


def test_on_data_of_ones_own_only_that_counts(measured: list[Probe], tmp_path: Path) -> None:
    series = traffic(tmp_path / "series.csv")
    training = Training(series, "traffic", steps=3, seeds=1)
    found = advise(Question(steps=10), [EVIDENCE], MACHINE, measure=True, training=training)
    assert [task.name for task in found.tasks] == ["your data"]
    taken = found.choice.taken
    assert taken is not None
    assert taken.index is not None
    assert set(taken.index.tasks) == {"your data"}
    assert not any("other data" in said for said in found.thin)
