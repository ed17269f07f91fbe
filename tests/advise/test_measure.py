from __future__ import annotations

from types import ModuleType

import pytest

from deploykit.advise import measure, probes
from deploykit.advise.probes import Probe
from deploykit.errors import BackendUnavailableError, UnknownNameError
from tests.trt.conftest import stand_in

__all__ = ["stand_in"]

PROBE = Probe("gru", 8, 4, 2)


def test_every_way_to_run_a_probe_is_timed() -> None:
    timing = measure.Timing((3, 5), backends=("torch", "ort"), seconds=0.02, rounds=1)
    found = measure.measure([PROBE, Probe("rnn-tanh", 8, 4, 2)], timing)
    assert not found.failed
    ways = {(one.architecture, one.backend, one.precision) for one in found.costs}
    assert {("gru", "torch", "float32"), ("gru", "ort", "float32"), ("rnn-tanh", "ort", "int8")} <= ways
    assert {one.steps for one in found.costs} == {3, 5}
    for one in found.costs:
        assert one.latency_ms["p50"] > 0
        assert one.parameters == probes.parameters(Probe(one.architecture, 8, 4, 2))
        assert one.size_bytes > one.parameters
        assert (one.mac_share is None) == (one.precision == "float32")


def test_a_probe_is_the_same_each_time_and_no_other() -> None:
    one, other = (probes.build(PROBE).module.state_dict() for _ in range(2))
    assert all((value == other[name]).all() for name, value in one.items())
    sample = probes.build(PROBE).sample
    assert sample is not None
    assert sample(0, batch=2, time=3)["x"].shape == (2, 3, 4)


def test_only_some_are_causal() -> None:
    assert probes.causal("gru")
    assert not probes.causal("bigru")


def test_a_backend_that_is_not_there_is_told() -> None:
    with pytest.raises(UnknownNameError, match="orrt"):
        measure.backends("cpu", ("orrt",))
    assert {"torch", "ort"} <= set(measure.backends("cpu"))
    assert "null" not in measure.backends("cpu")


def test_without_a_gpu_every_backend_of_one_says_why() -> None:
    with pytest.raises(BackendUnavailableError, match=r"no backend of the gpu runs here: .*deploykit\[trt\]"):
        measure.backends("gpu")


def test_on_a_gpu_engines_are_built_and_timed(stand_in: ModuleType) -> None:
    timing = measure.Timing((3,), device="gpu", backends=("trt",), seconds=0.02, rounds=1)
    found = measure.measure([PROBE], timing)
    assert not found.failed
    assert {one.variant for one in found.costs} == {("trt", "float32", ""), ("trt", "float16", "")}
