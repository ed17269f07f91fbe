"""Fused int8 operators for onnxruntime on the CPU: a whole GRU, LSTM or RNN layer in one node of the graph.

They lie in a shared library that any onnxruntime (1.16 or newer, in any language) loads by
``register_custom_ops_library``. It is compiled when deploykit is installed, if there is a C++ compiler, and by
``python -m deploykit.kernels.build`` later; everything else works without it.

Two environment variables, for tests and measurements:

- ``DEPLOYKIT_KERNELS_PATH`` names the CPU path that new sessions use (``plain``, ``avx2``, ...) instead of the fastest
  that runs here. The library reads it itself, in every language, when a session is made; a path that is not in this
  build, or not for this CPU, fails the session.
- ``DEPLOYKIT_KERNELS_LIBRARY`` names another library file than the package's: one built with sanitizers, say.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from deploykit.errors import KernelsError

#: The operators' domain in a model, and the version of them that this deploykit writes into its opset imports.
DOMAIN, VERSION = "ai.deploykit", 1
#: What a GRU, LSTM or RNN is called there.
OPERATORS = {kind: f"DynamicQuantize{kind}" for kind in ("GRU", "LSTM", "RNN")}

PATH_VARIABLE, LIBRARY_VARIABLE = "DEPLOYKIT_KERNELS_PATH", "DEPLOYKIT_KERNELS_LIBRARY"

_LIBRARY = Path(__file__).with_name("libdeploykit_kernels.so")
_BUILD = "run python -m deploykit.kernels.build, which needs a C++ compiler (g++ or clang++)"


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
    return _file()


def why_missing() -> str | None:
    """One sentence that says why the library cannot be used here, and the next step; None where it can."""
    file, given = _file(), bool(os.environ.get(LIBRARY_VARIABLE))
    step = f"correct or unset {LIBRARY_VARIABLE}" if given else _BUILD
    if file.is_file():
        fault = _fault(file)
        return None if fault is None else f"{fault}: {step}."
    if given:
        return f"there are no fused int8 kernels at {file}: {step}."
    if sys.platform != "linux":
        return "the fused int8 kernels are built on Linux alone: the portable int8 graph runs everywhere."
    return f"the fused int8 kernels are not built: {step}."


def _fault(file: Path) -> str | None:
    try:
        library = _loaded(file)
        version, *_ = library.deploykit_kernels_version(), library.deploykit_kernels_path, library.RegisterCustomOps
    except OSError as error:
        return f"the fused int8 kernels cannot be loaded ({error})"
    except AttributeError:
        return f"{file} is no library of fused int8 kernels"
    if version != VERSION:
        return f"the fused int8 kernels are of version {version}, and this deploykit's of {VERSION}"
    return None


def cpu_paths() -> tuple[CpuPath, ...]:
    """What the library was built with, the fastest first; the first one that runs here is used.

    Raises:
        KernelsError: there is no library.
    """
    find = _loaded(library_path()).deploykit_kernels_path
    find.restype, find.argtypes = ctypes.c_char_p, [ctypes.c_size_t, ctypes.POINTER(ctypes.c_int)]
    found: list[CpuPath] = []
    runs = ctypes.c_int()
    while (name := find(len(found), ctypes.byref(runs))) is not None:
        found.append(CpuPath(name.decode(), bool(runs.value)))
    return tuple(found)


def used_path() -> str:
    """The name of the CPU path that a session made now would use.

    Raises:
        KernelsError: there is no library, or ``DEPLOYKIT_KERNELS_PATH`` names a path that does not run here.
    """
    names = [path.name for path in cpu_paths() if path.runs_here]
    forced = os.environ.get(PATH_VARIABLE)
    if not forced:
        return names[0]
    if forced not in names:
        raise KernelsError(
            f"{PATH_VARIABLE} is {forced!r}, and there is no such path in this build or on this CPU: "
            f"set it to one of {', '.join(names)}, or unset it."
        )
    return forced


def _file() -> Path:
    given = os.environ.get(LIBRARY_VARIABLE)
    # Absolute, or the loader would look for a mere name on the system's own path.
    return Path(given).absolute() if given else _LIBRARY


@functools.cache
def _loaded(file: Path) -> ctypes.CDLL:
    return ctypes.CDLL(str(file))
