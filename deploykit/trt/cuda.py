"""The little of CUDA that an engine needs, through pycuda: the GPU's primary context, a stream, memory and time.

The primary context is the one that PyTorch uses as well. It is made current around each use and never longer, and it is
kept until the process ends, as PyTorch keeps it: when pycuda gives up a primary context, it leaves it current in the
calling thread.
"""

from __future__ import annotations

import atexit
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from deploykit.backends import _gpu
from deploykit.errors import BackendFailedError, BackendUnavailableError, first_line, missing_extra

if TYPE_CHECKING:
    from deploykit.types import Array

#: CU_STREAM_NON_BLOCKING: no waiting for, and no holding up of, the default stream. pycuda has no name for it.
_NON_BLOCKING = 1
#: CUDA hands out memory at such steps anyway.
_STEP = 256

# What to do about an error, by what CUDA calls it.
_STEPS = {
    "no cuda-capable device": "no GPU is visible to the driver: look at nvidia-smi and CUDA_VISIBLE_DEVICES, and start "
    "a container with --gpus all",
    "invalid device ordinal": "there is no such GPU: look at nvidia-smi and CUDA_VISIBLE_DEVICES",
    "insufficient": "the NVIDIA driver is too old for this CUDA: update it",
    "unsupported display driver": "the driver's library and its kernel module are of different versions: reboot after "
    "an update of the driver, and in a container take away the compat libraries",
    "forward compatibility": "this GPU cannot run a newer CUDA than its driver's own: update the NVIDIA driver",
    "not yet initialized": "the system's GPUs are not ready: start the nvidia-fabricmanager service",
    "stub library": "the libcuda that was found is the toolkit's stub: take its stubs folder out of LD_LIBRARY_PATH",
    "out of memory": "free some of the GPU's memory, or build the engine for smaller shapes",
    "illegal": "the GPU's context is lost: start a new process",
    "launch": "the GPU's context is lost: start a new process",
}


@dataclass(frozen=True)
class Gpu:
    """A GPU as engines know it. ``driver`` is the newest CUDA that its driver runs: ``13.0``."""

    name: str
    compute_capability: str
    driver: str


def gpu_missing() -> str | None:
    """Why TensorRT cannot have a GPU here, in one sentence; None where one is visible."""
    return _gpu.gpu_missing("TensorRT")


def describe(index: int = 0) -> Gpu:
    """The GPU that engines are built for and run on here.

    Raises:
        BackendUnavailableError: there is none, or its driver or pycuda does not work.
    """
    driver = started()
    with _starting():
        device = driver.Device(index)
        major, minor = device.compute_capability()
        version = driver.get_driver_version()
        return Gpu(device.name(), f"{major}.{minor}", f"{version // 1000}.{version % 1000 // 10}")


@contextlib.contextmanager
def context(index: int = 0) -> Iterator[None]:
    """Make the GPU's primary context this thread's for a while: TensorRT works in whichever is current.

    Raises:
        BackendUnavailableError: there is no GPU, or its driver or pycuda does not work.
    """
    driver = started()
    with _starting():
        held = _primary(driver, index)
        held.push()
    try:
        yield
    finally:
        held.pop()


def started() -> Any:
    """The module ``pycuda.driver``, ready for use.

    Raises:
        BackendUnavailableError: it is not installed or cannot be loaded, or the driver does not start.
    """
    if find_spec("pycuda") is None:
        raise BackendUnavailableError(missing_extra("pycuda", "trt").rstrip(".") + " (it needs an NVIDIA GPU).")
    try:
        from pycuda import driver
    except ImportError as error:
        raise BackendUnavailableError(_not_loaded(error)) from error
    with _starting():
        driver.init()
    return driver


def _not_loaded(error: ImportError) -> str:
    why = first_line(error)
    if "libcuda.so" in why or "nvcuda" in why:
        return f"pycuda finds no NVIDIA driver ({why}): install it, and start a container with --gpus all."
    if "undefined symbol" in why:
        return (
            f"pycuda was built for a newer CUDA than the NVIDIA driver has ({why}): update the driver, or install "
            "pycuda again with the toolkit that fits it."
        )
    return f"pycuda is installed, but cannot be loaded: {why}; run deploykit doctor."


def sentence(error: BaseException) -> str:
    """What CUDA says and what to do about it, in one sentence."""
    why = first_line(error)
    step = next((step for words, step in _STEPS.items() if words in why.lower()), None)
    return f"CUDA failed ({why}): {step or 'run deploykit doctor, and try again in a new process'}."


@contextlib.contextmanager
def _starting() -> Iterator[None]:
    from pycuda import driver

    try:
        yield
    except driver.Error as error:
        raise BackendUnavailableError(sentence(error)) from error


@cache
def _primary(driver: Any, index: int) -> Any:
    """The GPU's primary context, retained once and kept until the process ends: see above."""
    context = driver.Device(index).retain_primary_context()
    # Left to its destructor, pycuda would give it up as if it were no primary one, and complain.
    atexit.register(context.detach)
    return context


class Device:
    """A GPU in use: its context, one stream of our own, and all memory and events that were taken through it."""

    def __init__(self, index: int = 0) -> None:
        """Start the driver and make a stream.

        Raises:
            BackendUnavailableError: there is no GPU, or its driver or pycuda does not work.
        """
        self.driver = started()
        self.closed = False
        self._memory: list[Memory] = []
        self._pinned: list[Pinned] = []
        self._spare: list[Memory] = []
        self._retired: list[Any] = []
        with _starting():
            self._context = _primary(self.driver, index)
            with self.pushed():
                self._stream = self.driver.Stream(_NON_BLOCKING)
                self._begin, self._end = self.driver.Event(), self.driver.Event()

    @property
    def stream(self) -> int:
        """The stream as TensorRT takes it."""
        return int(self._stream.handle)

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        """Make the context this thread's for a while, and an error of CUDA one sentence.

        Raises:
            BackendFailedError: CUDA failed, or the device is closed.
        """
        if self.closed:
            raise BackendFailedError("the engine is closed: open the artifact again.")
        try:
            with self.pushed():
                yield
        except self.driver.Error as error:
            raise BackendFailedError(sentence(error)) from error

    @contextlib.contextmanager
    def pushed(self) -> Iterator[None]:
        """Make the context this thread's for a while, closed or not, and leave errors as they are."""
        self._context.push()
        try:
            yield
        finally:
            self._context.pop()

    def memory(self) -> Memory:
        """Memory of the GPU, empty as yet."""
        self._memory.append(Memory(self))
        return self._memory[-1]

    def pinned(self) -> Pinned:
        """Page-locked memory of the host, empty as yet."""
        self._pinned.append(Pinned(self))
        return self._pinned[-1]

    def borrow(self) -> Memory:
        """Memory that somebody gave back, or new."""
        return self._spare.pop() if self._spare else self.memory()

    def give_back(self, memory: list[Memory]) -> None:
        """Take memory for the next one who borrows. Calls nothing of CUDA: a finalizer may run at any time."""
        self._spare += memory

    def drop(self, memory: list[Memory], pinned: list[Pinned]) -> None:
        """Free what belongs to a part of the engine that is no more."""
        for one in memory:
            one.free()
        for other in pinned:
            other.free()
        self._memory = [one for one in self._memory if one not in memory]
        self._pinned = [one for one in self._pinned if one not in pinned]

    def retire(self, allocation: Any) -> None:
        """Free it when the stream has run dry: work that is under way may still use it."""
        self._retired.append(allocation)

    def upload(self, address: int, array: Array) -> None:
        """Copy a page-locked array to the GPU, on the stream: it must stay as it is until ``synchronize``."""
        if array.nbytes:
            self.driver.memcpy_htod_async(address, array, self._stream)

    def download(self, array: Array, address: int) -> None:
        """Copy from the GPU into a page-locked array, on the stream: it is there after ``synchronize``."""
        if array.nbytes:
            self.driver.memcpy_dtoh_async(array, address, self._stream)

    def begin(self) -> None:
        """Mark on the stream where the time that ``elapsed`` tells begins."""
        self._begin.record(self._stream)

    def end(self) -> None:
        """Mark where it ends."""
        self._end.record(self._stream)

    def elapsed(self) -> float:
        """Milliseconds of the GPU between the two marks; the stream must be synchronized."""
        return float(self._end.time_since(self._begin))

    def synchronize(self) -> None:
        """Wait until everything on the stream is done."""
        self._stream.synchronize()
        while self._retired:
            self._retired.pop().free()

    def close(self) -> None:
        """Free memory, events and stream, in this order; the context stays. Calling it twice does no harm."""
        if self.closed:
            return
        self.closed = True
        with self.pushed():
            with contextlib.suppress(self.driver.Error):  # said by whoever ran into it: here is only to free
                self.synchronize()
            self.drop(self._memory, self._pinned)
            self._spare.clear()
            while self._retired:
                self._retired.pop().free()
            # pycuda frees these with the object, and from another thread only while the context is current there.
            del self._begin, self._end, self._stream


class Memory:
    """Memory of the GPU that grows when more is asked for, and is kept when less is."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._allocation: Any = None
        self.size = 0

    @property
    def address(self) -> int:
        """Where it is: never null once it was reserved."""
        return int(self._allocation)

    def reserve(self, size: int, *, in_use: bool = False) -> int:
        """Make sure of ``size`` bytes and return the address; what it held is lost when it grows.

        ``in_use`` says that work on the stream may still use what was there before.
        """
        if self._allocation is None or size > self.size:
            wanted = _rounded(max(size, self.size * 3 // 2))
            if in_use and self._allocation is not None:
                self._device.retire(self._allocation)
                self._allocation, self.size = None, 0
            self.free()
            self._allocation = self._device.driver.mem_alloc(wanted)
            self.size = wanted
        return self.address

    def free(self) -> None:
        """Free it; it can be reserved again."""
        if self._allocation is not None:
            allocation, self._allocation, self.size = self._allocation, None, 0
            allocation.free()


class Pinned:
    """Page-locked memory of the host, which the GPU copies from and to by itself. It grows as ``Memory`` does."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._bytes: Array | None = None

    def array(self, shape: tuple[int, ...], dtype: str) -> Array:
        """An array in it. The next one lies in the same place: nobody else may keep it."""
        import math

        import numpy as np

        size = math.prod(shape) * np.dtype(dtype).itemsize
        if self._bytes is None or size > self._bytes.nbytes:
            wanted = _rounded(max(size, 0 if self._bytes is None else self._bytes.nbytes * 3 // 2))
            self.free()
            self._bytes = self._device.driver.pagelocked_empty(wanted, np.uint8)
        assert self._bytes is not None
        return self._bytes[:size].view(dtype).reshape(shape)

    def free(self) -> None:
        """Free it; an array can be asked for again."""
        if self._bytes is not None:
            held, self._bytes = self._bytes, None
            base: Any = held.base
            base.free()


def _rounded(size: int) -> int:
    return max(-(-size // _STEP), 1) * _STEP
