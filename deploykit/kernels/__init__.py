"""Fused int8 operators for onnxruntime on the CPU: a whole GRU, LSTM or RNN layer in one node of the graph.

They lie in a shared library that any onnxruntime (1.16 or newer, in any language) loads by
``register_custom_ops_library``. It is compiled when deploykit is installed, if there is a C++ compiler; everything else
works without it. ``docs/kernels.md`` says what the operators compute.
"""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass
from pathlib import Path

from deploykit.errors import KernelsError

#: The operators' domain in a model, and the version of them that this deploykit writes into its opset imports.
DOMAIN, VERSION = "ai.deploykit", 1
#: What a GRU, LSTM or RNN is called there.
OPERATORS = {kind: f"DynamicQuantize{kind}" for kind in ("GRU", "LSTM", "RNN")}

_LIBRARY = Path(__file__).with_name("libdeploykit_kernels.so")
_INSTALL = "install a C++ compiler (g++ or clang++) and deploykit again, with pip install --force-reinstall --no-deps"


@dataclass(frozen=True)
class CpuPath:
    """One way to compute, made for one kind of CPU: its name, and whether this CPU has it."""

    name: str
    runs_here: bool


def library_path() -> Path:
    """The shared library, for ``SessionOptions.register_custom_ops_library(str(library_path()))``.

    Raises:
        KernelsError: it was not built when deploykit was installed, or cannot be loaded here.
    """
    reason = why_missing()
    if reason is not None:
        raise KernelsError(reason)
    return _LIBRARY


def why_missing() -> str | None:
    """One sentence that says why the library cannot be used here, and the next step; None where it can."""
    if not _LIBRARY.is_file():
        return f"the fused int8 kernels were not built, for want of a C++ compiler: {_INSTALL}."
    try:
        version = _loaded().deploykit_kernels_version()
    except OSError as error:
        return f"the fused int8 kernels cannot be loaded ({error}): {_INSTALL}."
    if version != VERSION:
        return f"the fused int8 kernels are of version {version}, and this deploykit's of {VERSION}: {_INSTALL}."
    return None


def cpu_paths() -> tuple[CpuPath, ...]:
    """What the library was built with, the fastest first; the first one that runs here is used.

    Raises:
        KernelsError: there is no library.
    """
    library_path()
    find = _loaded().deploykit_kernels_path
    find.restype, find.argtypes = ctypes.c_char_p, [ctypes.c_size_t, ctypes.POINTER(ctypes.c_int)]
    found = []
    runs = ctypes.c_int()
    while (name := find(len(found), ctypes.byref(runs))) is not None:
        found.append(CpuPath(name.decode(), bool(runs.value)))
    return tuple(found)


@functools.cache
def _loaded() -> ctypes.CDLL:
    return ctypes.CDLL(str(_LIBRARY))
