"""What deploykit does with CUDA, through the true pycuda: ``test_driver.py`` runs it on a driver that stands in."""

from __future__ import annotations

import contextlib
import ctypes
import inspect
import threading
from collections.abc import Iterator
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploykit.backends import RunOptions
from deploykit.backends.ort import BACKEND as ORT
from deploykit.errors import BackendFailedError, BackendUnavailableError
from deploykit.trt import cuda, graphs
from deploykit.trt.runner import TrtRunner
from tests.backends.models import INPUTS, OUTPUTS, onnx_artifact
from tests.trt.engines import build
from tests.trt.test_runner import PAIRS, WIDE, by_numpy, cell, chunks, feeds

KINDS = ("context", "stream", "event", "memory", "pinned", "graph", "executable")
STAND_IN = Path(__file__).parents[1] / "stand_in" / "pycuda"


def live() -> dict[str, int]:
    library = ctypes.CDLL("libcuda.so.1")
    found = {kind: int(library.deploykit_live(number)) for number, kind in enumerate(KINDS)}
    return {kind: count for kind, count in found.items() if count}


def depth() -> int:
    return int(ctypes.CDLL("libcuda.so.1").deploykit_depth())


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """The primary context is retained once for the process, and is current nowhere."""
    yield
    assert live() in ({}, {"context": 1})
    assert depth() == 0


def stand_in(name: str) -> Any:
    """A module of the stand-in, beside the true one."""
    loader = SourceFileLoader(f"stand_in_pycuda.{name}", str(STAND_IN / f"{name}.py"))
    spec = spec_from_loader(loader.name, loader)
    assert spec is not None
    return module_from_spec(spec), loader


def test_this_is_the_true_pycuda_and_the_other_driver() -> None:
    import pycuda._driver

    assert pycuda._driver.__file__.endswith(".so")
    assert cuda.describe() == cuda.Gpu("Stand-in GPU", "9.0", "13.0")


def test_the_stand_in_has_only_what_the_true_one_has() -> None:
    import sys

    from pycuda import driver

    package, loader = stand_in("__init__")
    package.__path__ = [str(STAND_IN)]
    loader.exec_module(package)
    sys.modules["stand_in_pycuda"] = package
    import stand_in_pycuda.driver as played  # type: ignore[import-not-found]

    assert played.__file__ != driver.__file__
    names = [name for name, value in vars(played).items() if getattr(value, "__module__", "") == played.__name__]
    for name in [name for name in names if not name.startswith("_")]:
        assert hasattr(driver, name) or name in {"DeviceAllocation", "PagelockedHostAllocation"}, name
        value, true = getattr(played, name), getattr(driver, name, None)
        if inspect.isclass(value):
            for method in [method for method in vars(value) if not method.startswith("_")]:
                assert hasattr(true, method), f"{name}.{method}"
        else:
            same_arguments(value, true)
    for name in ("Error", "MemoryError", "LogicError", "LaunchError", "RuntimeError"):
        assert issubclass(getattr(driver, name), driver.Error)


def same_arguments(value: Any, true: Any) -> None:
    """Where the true one tells the names of its arguments, those of the stand-in are the same."""
    told = str(true.__doc__)
    for parameter in inspect.signature(value).parameters.values():
        if parameter.kind is not inspect.Parameter.POSITIONAL_ONLY and "arg1" not in told:
            assert f"){parameter.name}" in told, (told, parameter.name)


def test_copies_time_and_growth() -> None:
    device = cuda.Device()
    with device.current():
        there, back, memory = device.pinned(), device.pinned(), device.memory()
        for size in (3, 5000, 10):
            array = there.array((size, 2), "float16")
            array[...] = np.arange(size * 2).reshape(size, 2)
            device.begin()
            device.upload(memory.reserve(array.nbytes), array)
            found = back.array((size, 2), "float16")
            device.download(found, memory.address)
            device.end()
            device.synchronize()
            assert np.array_equal(found, array)
            assert device.elapsed() >= 0
        memory.reserve(10**6, in_use=True)
        device.synchronize()
        assert live() == {"context": 1, "stream": 1, "event": 2, "memory": 1, "pinned": 2}
        with device.current():  # within itself
            assert depth() == 1  # pycuda keeps but one of a thread's contexts current
    device.close()
    device.close()
    with pytest.raises(BackendFailedError, match="closed"), device.current():
        pass


def test_no_memory_left_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    device = cuda.Device()
    ctypes.CDLL(None).setenv(b"DEPLOYKIT_TEST_CUDA_MEMORY", b"1000", 1)
    try:
        with pytest.raises(BackendFailedError, match=r"out of memory.*smaller shapes"), device.current():
            device.memory().reserve(5000)
    finally:
        ctypes.CDLL(None).unsetenv(b"DEPLOYKIT_TEST_CUDA_MEMORY")
    with device.current():
        assert device.memory().reserve(5000)
    device.close()


def test_another_thread_may_use_it_and_close_it() -> None:
    device = cuda.Device()
    failed: list[BaseException] = []

    def work() -> None:
        try:
            with device.current():
                device.memory().reserve(10)
                device.pinned().array((3,), "float32")
            device.close()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert failed == []


def test_a_graph_is_recorded_and_replayed() -> None:
    device = cuda.Device()
    graphs.require(cuda.describe().driver)
    with device.current():
        source, result = device.pinned().array((4,), "float32"), device.pinned().array((4,), "float32")
        source[...], result[...] = 1, 0
        address = device.memory().reserve(16)

        def enqueue() -> None:
            device.upload(address, source)
            device.download(result, address)

        graph = graphs.capture(device.stream, enqueue)
        assert not result.any()  # recorded, and not run
        for value in (2, 3):
            source[...] = value
            graph.launch(device.stream)
            device.synchronize()
            assert (result == value).all()
        assert live()["executable"] == 1
        assert "graph" not in live()
        graph.close()
        graph.close()
        with pytest.raises(BackendUnavailableError, match="previous error during capture"):
            graphs.capture(device.stream, lambda: _wait(device))
        device.upload(address, source)  # the stream can be used again
        device.synchronize()
    device.close()


def _wait(device: cuda.Device) -> None:
    """What nothing that is recorded may do."""
    with contextlib.suppress(device.driver.Error):
        device.synchronize()


def test_the_runner_answers_as_onnxruntime_does(tmp_path: Path) -> None:
    source = onnx_artifact(tmp_path)
    made = build(tmp_path, source.path, [WIDE], INPUTS, OUTPUTS)
    with TrtRunner(made) as runner, ORT.open(source, RunOptions()) as reference:
        for batch, time in ((2, 5), (1, 1), (4, 128)):
            given = feeds(batch, time)
            for name, value in reference.infer(given).items():
                np.testing.assert_allclose(runner.infer(given)[name], value, atol=1e-6)
        assert runner.device_ms is not None
        before = live()
        for number in range(1000):
            runner.infer(feeds(1 + number % 4, 1 + number % 16))
        assert live() == before


def test_a_stream_keeps_its_states_on_the_gpu(tmp_path: Path) -> None:
    with TrtRunner(cell(tmp_path)) as runner:
        step, plain = runner.carry(PAIRS), by_numpy(runner)
        for number, chunk in enumerate(chunks(8)):
            given = {"x": chunk, **({"h_in": np.zeros((2, 3), np.float32)} if number == 0 else {})}
            np.testing.assert_array_equal(step(given)["y"], plain(given)["y"])
