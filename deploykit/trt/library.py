"""TensorRT's Python bindings: are they there, which version, and what that version has.

From 8.6 to 11 much was removed and added. What one version has and another lacks is reached by ``member`` and ``has``
alone, and is listed in ``SINCE`` and ``UNTIL``: a test holds both tables against the true bindings of each version.
"""

from __future__ import annotations

import re
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from deploykit.errors import BackendUnavailableError, first_line, missing_extra

if TYPE_CHECKING:
    from types import ModuleType

Version = tuple[int, ...]

#: The oldest version that this code knows, and the first one that nobody has looked at.
OLDEST, UNKNOWN = (8, 6), (12,)

#: The first version that has a name which ``OLDEST`` lacks.
SINCE: dict[str, Version] = {
    "NetworkDefinitionCreationFlag.STRONGLY_TYPED": (10, 0),
    "BuilderFlag.STRIP_PLAN": (10, 0),
    "BuilderFlag.REFIT_IDENTICAL": (10, 0),
    "HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY": (10, 9),
    "DataType.BF16": (10, 0),
    "DataType.INT64": (10, 0),
    "IProgressMonitor": (10, 0),
    "IBuilderConfig.progress_monitor": (10, 0),
    "OnnxParserRefitter": (10, 0),
    "ParserError.node_name": (10, 0),
    "ParserError.node_operator": (10, 0),
}
#: The first version that no longer has a name which older ones have.
UNTIL: dict[str, Version] = {
    "NetworkDefinitionCreationFlag.EXPLICIT_BATCH": (11, 0),
    "BuilderFlag.FP16": (11, 0),
    "BuilderFlag.INT8": (11, 0),
    "BuilderFlag.OBEY_PRECISION_CONSTRAINTS": (11, 0),
    "ILayer.precision": (11, 0),
    "ILayer.set_output_type": (11, 0),
}


def missing() -> str | None:
    """Why TensorRT and pycuda cannot be used here, in one sentence; None where both are installed.

    Looked for without importing: an import would start the GPU's driver.
    """
    for module, package in (("tensorrt", "TensorRT"), ("pycuda", "pycuda")):
        if find_spec(module) is None:
            return missing_extra(package, "trt").rstrip(".") + " (it needs an NVIDIA GPU)."
    return None


def require() -> None:
    """Import TensorRT, so that ``import tensorrt`` works from here on.

    Raises:
        BackendUnavailableError: it is not installed, cannot be loaded, or is of a version that this code does not know.
    """
    if find_spec("tensorrt") is None:
        raise BackendUnavailableError(missing_extra("TensorRT", "trt").rstrip(".") + " (it needs an NVIDIA GPU).")
    try:
        import tensorrt
    except Exception as error:  # a missing libnvinfer is an ImportError, a stale one anything
        raise BackendUnavailableError(
            f"TensorRT is installed, but cannot be loaded: {first_line(error)}; run deploykit doctor."
        ) from error
    if not OLDEST <= parse_version(str(tensorrt.__version__)) < UNKNOWN:
        raise BackendUnavailableError(
            f"TensorRT {tensorrt.__version__} is none that deploykit knows: install one from "
            f"{'.'.join(map(str, OLDEST))} to before {'.'.join(map(str, UNKNOWN))}."
        )


def installed_text() -> str:
    """The version of the TensorRT that ``require`` has imported, as it says itself."""
    import tensorrt

    return str(tensorrt.__version__)


def installed() -> Version:
    """The version of the TensorRT that ``require`` has imported, as numbers."""
    return parse_version(installed_text())


def parse_version(text: str) -> Version:
    """``10.16.1.11`` or ``8.6.1.post1`` as numbers."""
    match = re.match(r"\d+(\.\d+)*", text)
    return tuple(int(part) for part in match[0].split(".")) if match else ()


def has(version: Version, name: str) -> bool:
    """Whether a version of TensorRT has a name of ``SINCE`` or ``UNTIL``."""
    assert name in SINCE or name in UNTIL, name
    return SINCE.get(name, OLDEST) <= version < UNTIL.get(name, UNKNOWN)


def member(trt: ModuleType, name: str) -> Any:
    """``BuilderFlag.FP16`` and the like, of a version that ``has`` it.

    Raises:
        BackendUnavailableError: this version lacks it.
    """
    version = parse_version(str(trt.__version__))
    if not has(version, name):
        first = f"from {'.'.join(map(str, SINCE[name]))} on" if name in SINCE else "in older versions only"
        raise BackendUnavailableError(f"TensorRT {trt.__version__} has no {name}: it is there {first}.")
    value: Any = trt
    for part in name.split("."):
        value = getattr(value, part)
    return value
