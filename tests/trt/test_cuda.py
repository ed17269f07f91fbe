"""CUDA through pycuda, on a stand-in of it: what is held, in which order it is let go, and what failures say."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from deploykit.errors import BackendFailedError, BackendUnavailableError
from deploykit.trt import cuda


@pytest.fixture
def state(stand_in: Any) -> Iterator[Any]:
    """What the stand-in counts."""
    from pycuda import _state

    found: Any = _state.reset()
    yield found
    assert found.pushed == 0
    assert found.broken == []


def one_sentence(error: BaseException) -> str:
    text = str(error)
    assert text.endswith(".")
    assert "\n" not in text
    return text


def test_the_gpu_is_described(state: Any) -> None:
    state.driver = 12090
    assert cuda.describe() == cuda.Gpu("Stand-in GPU", "9.0", "12.9")
    assert not state.live  # looking takes no context


@pytest.mark.parametrize(
    ("said", "step"),
    [
        ("no CUDA-capable device is detected", "--gpus all"),
        ("system has unsupported display driver / cuda driver combination", "reboot"),
        ("CUDA driver version is insufficient for CUDA runtime version", "update it"),
        ("forward compatibility was attempted on non supported HW", "update the NVIDIA driver"),
        ("system not yet initialized", "nvidia-fabricmanager"),
        ("CUDA driver is a stub library", "LD_LIBRARY_PATH"),
        ("unknown error", "deploykit doctor"),
    ],
)
def test_a_driver_that_does_not_start_is_a_sentence_with_the_next_step(state: Any, said: str, step: str) -> None:
    state.failing["cuInit"] = said
    for use in (cuda.describe, cuda.Device):
        with pytest.raises(BackendUnavailableError) as error:
            use()
        assert said in one_sentence(error.value)
        assert step in str(error.value)


@pytest.mark.parametrize(
    ("said", "step"),
    [
        ("libcuda.so.1: cannot open shared object file: No such file or directory", "--gpus all"),
        ("_driver.so: undefined symbol: cuCtxCreate_v4", "update the driver"),
        ("No module named 'pytools'", "deploykit doctor"),
    ],
)
def test_a_pycuda_that_cannot_be_loaded_is_a_sentence(
    state: Any, monkeypatch: pytest.MonkeyPatch, said: str, step: str
) -> None:
    import builtins

    loading = builtins.__import__

    def refuse(name: str, *args: Any) -> Any:
        if name == "pycuda":
            raise ImportError(said)
        return loading(name, *args)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(BackendUnavailableError, match=step) as error:
        cuda.started()
    assert said.partition(":")[0] in one_sentence(error.value)


def test_without_pycuda_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "find_spec", lambda name: None)
    with pytest.raises(BackendUnavailableError, match=r"pip install 'deploykit\[trt\]'"):
        cuda.started()


def test_a_gpu_that_is_hidden_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    reason = cuda.gpu_missing()
    assert reason is not None
    assert "TensorRT" in reason


def test_no_such_gpu_is_a_sentence(state: Any) -> None:
    with pytest.raises(BackendUnavailableError, match="no such GPU"):
        cuda.Device(3)


def test_the_primary_context_is_one_and_current_only_while_used(state: Any) -> None:
    from pycuda import _state

    with cuda.Device().current():
        assert state.pushed == 1
    assert _state.stack() == []
    cuda.Device()
    assert state.made["context"] == 1
    with pytest.raises(KeyError), cuda.Device().current():
        raise KeyError
    assert state.pushed == 0


def test_the_stream_is_no_default_one_and_does_not_block_it(state: Any) -> None:
    device = cuda.Device()
    assert device.stream != 0
    assert device._stream._flags == 1


def test_memory_grows_and_is_kept(state: Any) -> None:
    device = cuda.Device()
    with device.current():
        memory = device.memory()
        first = memory.reserve(1000)
        assert memory.reserve(10) == memory.reserve(0) == memory.address == first
        made = state.made["memory"]
        for size in range(1000, 5000):
            memory.reserve(size)
        assert state.made["memory"] - made < 8
    assert state.live["memory"] == 1


def test_memory_in_use_is_freed_after_the_stream_has_run_dry(state: Any) -> None:
    device = cuda.Device()
    with device.current():
        memory = device.memory()
        memory.reserve(10)
        memory.reserve(100_000, in_use=True)
        assert state.live["memory"] == 2
        device.synchronize()
        assert state.live["memory"] == 1


def test_no_memory_left_is_a_sentence_and_the_device_lives_on(state: Any) -> None:
    device = cuda.Device()
    state.memory = 1000
    with pytest.raises(BackendFailedError) as error, device.current():
        device.memory().reserve(5000)
    assert "out of memory" in one_sentence(error.value)
    assert "smaller shapes" in str(error.value)
    with device.current():
        assert device.memory().reserve(10)


def test_copies_go_there_and_back(state: Any) -> None:
    device = cuda.Device()
    with device.current():
        there, back = device.pinned(), device.pinned()
        array = there.array((2, 3), "float32")
        array[...] = np.arange(6).reshape(2, 3)
        memory = device.memory()
        device.upload(memory.reserve(array.nbytes), array)
        found = back.array((2, 3), "float32")
        device.download(found, memory.address)
        device.synchronize()
        assert np.array_equal(found, array)
        empty = back.array((0, 3), "float32")
        device.upload(memory.address, empty)
        device.download(empty, memory.address)
        assert empty.shape == (0, 3)
        assert back.array((), "int64").shape == ()


def test_time_is_taken_between_two_marks(state: Any) -> None:
    device = cuda.Device()
    with device.current():
        device.begin()
        device.end()
        device.synchronize()
        assert device.elapsed() == 0.25


def test_close_lets_go_of_all_but_the_context_in_the_right_order(state: Any) -> None:
    device = cuda.Device()
    with device.current():
        device.memory().reserve(10)
        device.borrow().reserve(10)
        device.pinned().array((3,), "float32")
    device.close()
    device.close()
    assert +state.live == {"context": 1}
    assert state.released == ["memory", "memory", "pinned", "event", "event", "stream"]
    with pytest.raises(BackendFailedError, match="closed") as error, device.current():
        pass
    one_sentence(error.value)


def test_close_after_a_lost_gpu_says_nothing_and_frees(state: Any) -> None:
    device = cuda.Device()
    with device.current():
        device.memory().reserve(10)
    state.failing["cuStreamSynchronize"] = "unspecified launch failure"
    with pytest.raises(BackendFailedError, match="new process"), device.current():
        device.synchronize()
    device.close()
    assert +state.live == {"context": 1}


def test_a_device_can_be_closed_from_another_thread(state: Any) -> None:
    device = cuda.Device()
    with device.current():
        device.memory().reserve(10)
        device.pinned().array((3,), "float32")
    thread = threading.Thread(target=device.close)
    thread.start()
    thread.join()
    assert +state.live == {"context": 1}


def test_what_is_given_back_is_borrowed_again(state: Any) -> None:
    device = cuda.Device()
    with device.current():
        memory = device.borrow()
        memory.reserve(10)
    device.give_back([memory])  # outside of any context: a finalizer calls it
    with device.current():
        assert device.borrow() is memory
        assert device.borrow() is not memory
