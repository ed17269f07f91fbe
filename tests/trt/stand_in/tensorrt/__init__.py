"""Stands in for TensorRT in tests, on machines without a GPU. Nothing that it measures or computes is TensorRT's.

It plays the version that the environment variable DEPLOYKIT_TEST_TENSORRT names, and has that version's true names, no
others. "Device" memory is the host's, and its addresses are the pointers. What it builds is the ONNX model with a true
header before it; what it runs is onnxruntime, within the rules of the true thing.
"""

from __future__ import annotations

from typing import Any

from . import _builder as _builder
from . import _refit as _refit
from . import _values
from ._api import API, CLASSES, VERSION, made

__version__ = VERSION


def init_libnvinfer_plugins(logger: Any, namespace: str) -> bool:
    return True


def get_plugin_registry() -> Any:
    return made(_values.IPluginRegistry)


def get_nv_onnx_parser_version() -> int:
    return int("".join(f"{int(part):02d}" for part in VERSION.split(".")[:3]))


def volume(iterable: Any) -> int:
    size = 1
    for each in iterable:
        size *= each
    return size


def nptype(trt_type: Any) -> Any:
    import numpy as np

    kinds = {"FLOAT": "float32", "HALF": "float16", "BOOL": "bool", "INT64": "int64"}
    found = kinds.get(trt_type.name, trt_type.name.lower())
    if found not in {"float32", "float16", "int8", "int32", "int64", "bool", "uint8"}:
        raise TypeError("Could not resolve TensorRT datatype to an equivalent numpy datatype.")
    return np.dtype(found).type


def _fill() -> None:
    """The classes and constants of the version that is played."""
    here = globals()
    here.update({name: kind for name, kind in CLASSES.items() if "." not in name})
    for name, where in API["constants"].items():
        kind, _, member = where.rpartition(".")
        if kind in CLASSES:
            here[name] = getattr(CLASSES[kind], member)
    for name in [name for name in here if not name.startswith("_") and callable(here[name])]:
        if name not in API["functions"] and name not in CLASSES:
            del here[name]
    for name in ("API", "CLASSES", "VERSION", "Any", "annotations"):
        here.pop(name, None)


_fill()
