from __future__ import annotations

import os
import signal

import pytest

from deploykit.backends import RunOptions
from deploykit.bench.client import Worker
from deploykit.errors import BackendFailedError, UsageError
from tests.bench.fakes import subject


def test_a_worker_outlives_ctrl_c_and_errors_and_closes_twice() -> None:
    fake = subject("PLAIN")
    with Worker(threads=1, timeout_s=60) as worker:
        worker.call("open", fake.backend, fake.artifact, RunOptions())
        os.kill(worker.pid, signal.SIGINT)  # as the terminal does to the whole group: the parent decides
        assert worker.call("feeds", 0, {"batch": 1, "time": 2})["x"].shape == (1, 2, 4)
        with pytest.raises(BackendFailedError, match="knows no command 'dance'"):
            worker.call("dance")
        with pytest.raises(BackendFailedError, match="input 'x' is missing"):
            worker.call("infer", {})
        with pytest.raises(UsageError, match="cannot find the backend 'no:such'"):
            worker.call("open", "no:such", fake.artifact, RunOptions())
        alive = [worker.alive]
        worker.close()
        worker.close()
        assert [*alive, worker.alive] == [True, False]
        with pytest.raises(BackendFailedError, match="has ended already"):
            worker.call("stats")


def test_a_worker_that_is_killed_is_told_with_its_signal() -> None:
    with Worker(threads=1, timeout_s=60) as worker:
        os.kill(worker.pid, signal.SIGKILL)
        with pytest.raises(BackendFailedError, match=r"ended by SIGKILL \(out of memory\?\)"):
            worker.call("stats")


def test_a_worker_is_told_its_threads_and_that_idle_ones_sleep() -> None:
    from deploykit.bench.worker import environment

    found = environment(3)
    assert found["OMP_NUM_THREADS"] == found["MKL_NUM_THREADS"] == "3"
    assert found["OMP_WAIT_POLICY"] == "PASSIVE"
