"""CUDA graphs by the driver's own functions: pycuda has none of them.

What is put on a stream while it is captured runs later, all at once, as often as wanted: with the same addresses and
shapes. TensorRT cannot be captured where it waits for the GPU in the middle: in loops and with sizes that the data
decides.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

from deploykit.errors import BackendFailedError, BackendUnavailableError

#: The first CUDA whose driver has ``cuGraphInstantiateWithFlags``: the older function has another number of arguments
#: by the same name in newer headers.
_SINCE = (11, 4)
#: CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: only this thread is held to what a capture allows.
_THREAD_LOCAL = 1
_SUCCESS = 0

_POINTER = ctypes.c_void_p
_FUNCTIONS = {
    "cuStreamBeginCapture_v2": (_POINTER, ctypes.c_int),
    "cuStreamEndCapture": (_POINTER, ctypes.POINTER(_POINTER)),
    "cuGraphInstantiateWithFlags": (ctypes.POINTER(_POINTER), _POINTER, ctypes.c_ulonglong),
    "cuGraphLaunch": (_POINTER, _POINTER),
    "cuGraphExecDestroy": (_POINTER,),
    "cuGraphDestroy": (_POINTER,),
    "cuGetErrorString": (ctypes.c_int, ctypes.POINTER(ctypes.c_char_p)),
}


class Graph:
    """A recorded run. It must be closed while the context that it was captured in is current."""

    def __init__(self, executable: int) -> None:
        self._executable: int | None = executable

    def launch(self, stream: int) -> None:
        """Put the whole run on a stream.

        Raises:
            BackendFailedError: CUDA refuses.
        """
        code = _library().cuGraphLaunch(self._executable, stream)
        if code != _SUCCESS:
            raise BackendFailedError(f"CUDA cannot launch the recorded graph ({_told(code)}).")

    def close(self) -> None:
        """Release it. Calling it twice does no harm."""
        if self._executable is not None:
            executable, self._executable = self._executable, None
            _library().cuGraphExecDestroy(executable)


def require(driver_cuda: str) -> None:
    """Refuse a driver that cannot record TensorRT; ``driver_cuda`` is the newest CUDA that it runs: ``13.0``.

    Raises:
        BackendUnavailableError: it is too old.
    """
    if tuple(map(int, driver_cuda.split("."))) < _SINCE:
        raise BackendUnavailableError(
            f"CUDA graphs need an NVIDIA driver for CUDA {'.'.join(map(str, _SINCE))} or later, and this one is for "
            f"CUDA {driver_cuda}: update it, or use the backend trt."
        )
    _library()


def capture(stream: int, enqueue: Callable[[], None]) -> Graph:
    """Record what ``enqueue`` puts on the stream; nothing of it runs.

    Raises:
        BackendUnavailableError: it does something that cannot be recorded.
    """
    cuda = _library()
    _need(cuda.cuStreamBeginCapture_v2(stream, _THREAD_LOCAL))
    graph = _POINTER()
    refused: BackendFailedError | None = None
    try:
        enqueue()
    except BackendFailedError as error:
        refused = error
    finally:
        # Ended in any case: a stream that is still being captured can do nothing else.
        code = cuda.cuStreamEndCapture(stream, ctypes.byref(graph))
    try:
        if refused is not None:
            raise BackendUnavailableError(_cannot(str(refused).rstrip("."))) from refused
        _need(code)
        executable = _POINTER()
        _need(cuda.cuGraphInstantiateWithFlags(ctypes.byref(executable), graph, 0))
    finally:
        if graph.value is not None:
            cuda.cuGraphDestroy(graph)
    assert executable.value is not None
    return Graph(executable.value)


def _need(code: int) -> None:
    if code != _SUCCESS:
        raise BackendUnavailableError(_cannot(_told(code)))


def _cannot(why: str) -> str:
    return (
        f"this engine cannot be recorded as a CUDA graph ({why}): TensorRT's loops, which recurrent layers become, and "
        "sizes that the data decides do not allow it; use the backend trt."
    )


def _told(code: int) -> str:
    text = ctypes.c_char_p()
    known = _library().cuGetErrorString(code, ctypes.byref(text)) == _SUCCESS and text.value is not None
    return text.value.decode() if known and text.value is not None else f"error {code}"


@cache
def _library() -> Any:
    try:
        found = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        for name, arguments in _FUNCTIONS.items():
            function = getattr(found, name)
            function.argtypes, function.restype = arguments, ctypes.c_int
    except (OSError, AttributeError) as error:
        raise BackendUnavailableError(
            f"the NVIDIA driver's library has no CUDA graphs ({error}): update the driver, or use the backend trt."
        ) from error
    return found
