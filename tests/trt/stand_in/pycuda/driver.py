"""Stands in for ``pycuda.driver``: the names and the signatures of the true one, as far as deploykit uses it.

Copies to the host are done when their stream is synchronized and no sooner; a copy to the device is done at once, and
what it was made from must be unchanged until then. Every allocation has a fence behind it, looked at when it is freed.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from ._state import STATE, stack

_FENCE = b"\xa5" * 64


class Error(Exception):
    pass


class MemoryError(Error):  # noqa: A001 - the true one is called so
    pass


class LogicError(Error):
    pass


class LaunchError(Error):
    pass


class RuntimeError(Error):  # noqa: A001 - the true one is called so
    pass


def _called(function: str, *, needs_context: bool = True) -> None:
    if function in STATE.failing:
        text = STATE.failing[function]
        kinds = {"no CUDA-capable device is detected": RuntimeError, "out of memory": MemoryError}
        kind = LaunchError if "launch" in text else kinds.get(text, LogicError)
        raise kind(f"{function} failed: {text}")
    if needs_context and not stack():
        raise LogicError(f"{function} failed: invalid device context")


def init(flags: int = 0) -> None:
    _called("cuInit", needs_context=False)


def get_version() -> tuple[int, int, int]:
    return (13, 0, 0)


def get_driver_version() -> int:
    return STATE.driver


class Device:
    def __init__(self, number: int) -> None:
        _called("cuDeviceGet", needs_context=False)
        if not 0 <= number < STATE.devices:
            raise LogicError("cuDeviceGet failed: invalid device ordinal")
        self._number = number

    @staticmethod
    def count() -> int:
        return STATE.devices

    def name(self) -> str:
        return STATE.name

    def compute_capability(self) -> tuple[int, int]:
        return STATE.compute_capability

    def retain_primary_context(self) -> Context:
        _called("cuDevicePrimaryCtxRetain", needs_context=False)
        return Context._made()


class Context:
    def __init__(self) -> None:
        raise Error("This class cannot be instantiated from Python")

    @classmethod
    def _made(cls) -> Context:
        made = cls.__new__(cls)
        STATE.begin("context")
        return made

    def detach(self) -> None:
        """As the true one does, it leaves the context current in this thread: nothing here undoes that."""
        stack().append(self)
        STATE.end("context")

    def push(self) -> None:
        _called("cuCtxPushCurrent", needs_context=False)
        stack().append(self)
        STATE.pushed += 1

    @staticmethod
    def pop() -> None:
        if not stack():
            raise LogicError("context::pop failed: invalid device context - cannot pop non-current context")
        stack().pop()
        STATE.pushed -= 1


class _Dependent:
    """What belongs to the context that was current when it was made."""

    _kind = ""

    def _begin(self) -> None:
        self._context, self._thread = stack()[-1], threading.get_ident()
        STATE.begin(self._kind)

    def _end(self) -> None:
        if (not stack() or stack()[-1] is not self._context) and self._thread != threading.get_ident():
            # The true one lets go of it without a word.
            STATE.broken.append(f"a {self._kind} was dropped in another thread without its context")
            return
        STATE.end(self._kind)


class Stream(_Dependent):
    _kind = "stream"

    def __init__(self, flags: int = 0) -> None:
        _called("cuStreamCreate")
        self._flags, self._pending = flags, list[Callable[[], None]]()
        self._begin()

    @property
    def handle(self) -> int:
        return id(self)

    def synchronize(self) -> None:
        _called("cuStreamSynchronize")
        pending, self._pending = self._pending, []
        for work in pending:
            work()

    def is_done(self) -> bool:
        return not self._pending

    def __del__(self) -> None:
        if hasattr(self, "_context"):
            self._end()


class Event(_Dependent):
    _kind = "event"

    def __init__(self, flags: int = 0) -> None:
        _called("cuEventCreate")
        self._time: float | None = None
        self._begin()

    def record(self, stream: Stream | None = None) -> Event:
        _called("cuEventRecord")
        STATE.clock += 0.25
        self._time = STATE.clock
        return self

    def synchronize(self) -> Event:
        return self

    def query(self) -> bool:
        return True

    def time_since(self, start: Event) -> float:
        if self._time is None or start._time is None:
            raise LogicError("cuEventElapsedTime failed: invalid resource handle")
        return self._time - start._time

    def time_till(self, end: Event) -> float:
        return end.time_since(self)

    def __del__(self) -> None:
        if hasattr(self, "_context"):
            self._end()


class DeviceAllocation(_Dependent):
    _kind = "memory"

    def __init__(self) -> None:
        raise Error("This class cannot be instantiated from Python")

    @classmethod
    def _made(cls, size: int) -> DeviceAllocation:
        made = cls.__new__(cls)
        made._size = size
        # Garbage, as fresh memory is, so that nobody takes it for zeros.
        made._array = np.full(size + len(_FENCE), 0xCD, np.uint8)
        made._array[size:] = np.frombuffer(_FENCE, np.uint8)
        made._valid = True
        made._begin()
        STATE.allocations[int(made)] = made
        return made

    _size: int
    _array: Any
    _valid: bool

    def __int__(self) -> int:
        return int(self._array.ctypes.data)

    __index__ = __int__

    def free(self) -> None:
        if not self._valid:
            raise LogicError("device_allocation::free failed: invalid resource handle")
        self._valid = False
        if self._array[self._size :].tobytes() != _FENCE:
            STATE.broken.append(f"something wrote behind an allocation of {self._size} bytes")
        self._array[:] = 0xDD
        del STATE.allocations[int(self)]
        self._end()

    def __del__(self) -> None:
        if getattr(self, "_valid", False):
            self.free()


class PagelockedHostAllocation(_Dependent):
    _kind = "pinned"

    def __init__(self) -> None:
        raise Error("This class cannot be instantiated from Python")

    @classmethod
    def _made(cls, size: int) -> PagelockedHostAllocation:
        made = cls.__new__(cls)
        made._buffer = ctypes.create_string_buffer(b"\xcd" * size, size)
        made._valid = True
        made._begin()
        return made

    _buffer: Any
    _valid: bool

    def free(self) -> None:
        if not self._valid:
            raise LogicError("pagelocked_host_allocation::free failed: invalid resource handle")
        self._valid = False
        ctypes.memset(self._buffer, 0xDD, len(self._buffer))
        self._end()

    def __del__(self) -> None:
        if getattr(self, "_valid", False):
            self.free()


def mem_alloc(size: int, /) -> DeviceAllocation:
    _called("cuMemAlloc")
    if size <= 0:
        raise LogicError("cuMemAlloc failed: invalid argument")
    if size + sum(one._size for one in STATE.allocations.values()) > STATE.memory:
        raise MemoryError("cuMemAlloc failed: out of memory")
    return DeviceAllocation._made(size)


def pagelocked_empty(shape: Any, dtype: Any, order: str = "C", mem_flags: int = 0) -> Any:
    _called("cuMemHostAlloc")
    dims = (shape,) if isinstance(shape, int) else tuple(shape)
    size = int(np.prod(dims)) * np.dtype(dtype).itemsize
    if size <= 0:
        raise LogicError("cuMemHostAlloc failed: invalid argument")
    allocation = PagelockedHostAllocation._made(size)
    allocation.__array_interface__ = {  # type: ignore[attr-defined]
        "shape": dims,
        "typestr": np.dtype(dtype).str,
        "data": (ctypes.addressof(allocation._buffer), False),
        "version": 3,
    }
    return np.asarray(allocation, order="C" if order == "C" else "F")


def memcpy_htod_async(dest: int, src: Any, stream: Stream | None = None) -> None:
    _called("cuMemcpyHtoDAsync")
    content = _contiguous(src)
    place = _place(int(dest), len(content), "cuMemcpyHtoDAsync")
    before = bytes(content)
    place[:] = np.frombuffer(before, np.uint8)

    def check() -> None:
        if bytes(content) != before:
            STATE.broken.append("the source of a copy to the device changed before the stream was synchronized")

    if stream is not None:
        stream._pending.append(check)


def memcpy_dtoh_async(dest: Any, src: int, stream: Stream | None = None) -> None:
    _called("cuMemcpyDtoHAsync")
    content = _contiguous(dest)
    place = _place(int(src), len(content), "cuMemcpyDtoHAsync")

    def copy() -> None:
        content[:] = place.tobytes()

    if stream is None:
        copy()
    else:
        stream._pending.append(copy)


def _contiguous(array: Any) -> memoryview:
    view = memoryview(array)
    if not view.contiguous:
        raise ValueError("ndarray is not contiguous")
    return memoryview(array.reshape(-1, order="A").view(np.uint8)).cast("B")


def _place(address: int, size: int, function: str) -> Any:
    for start, allocation in STATE.allocations.items():
        if start <= address and address + size <= start + allocation._size:
            return allocation._array[address - start : address - start + size]
    raise LogicError(f"{function} failed: invalid argument")
