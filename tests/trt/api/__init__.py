"""What each supported version of TensorRT's bindings holds, of the classes that a builder or a runner may use.

The JSON files beside this one are written by ``python -m tests.trt.bindings --write`` from the true bindings.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
#: Each version with the package that its true bindings come in.
PACKAGES = {
    "8.6.1": "tensorrt_bindings",
    "10.0.1": "tensorrt_cu12_bindings",
    "10.16.1.11": "tensorrt_cu12_bindings",
    "11.4.0.106": "tensorrt_cu13_bindings",
}
VERSIONS = tuple(PACKAGES)
CLASSES = frozenset(
    {
        "Builder",
        "BuilderFlag",
        "DataType",
        "Dims",
        "EngineCapability",
        "EngineInspector",
        "EngineStat",
        "ErrorCode",
        "ErrorCodeTRT",
        "ExecutionContextAllocationStrategy",
        "HardwareCompatibilityLevel",
        "IBuilderConfig",
        "ICudaEngine",
        "IErrorRecorder",
        "IExecutionContext",
        "IHostMemory",
        "ILayer",
        "ILogger",
        "ILogger.Severity",
        "INetworkDefinition",
        "IOptimizationProfile",
        "IOutputAllocator",
        "IPluginRegistry",
        "IProfiler",
        "IProgressMonitor",
        "IRuntimeConfig",
        "ISerializationConfig",
        "ITensor",
        "ITimingCache",
        "LayerInformationFormat",
        "LayerType",
        "Logger",
        "MemoryPoolType",
        "NetworkDefinitionCreationFlag",
        "OnnxParser",
        "OnnxParserFlag",
        "OnnxParserRefitter",
        "ParserError",
        "PreviewFeature",
        "ProfilingVerbosity",
        "QuantizationFlag",
        "Refitter",
        "Runtime",
        "SerializationFlag",
        "TacticSource",
        "TempfileControlFlag",
        "TensorFormat",
        "TensorIOMode",
        "TensorLocation",
        "Weights",
        "WeightsRole",
    }
)
#: Bindings leave these behind: they are part of no API.
LEFT_BEHIND = ("common_enter", "common_exit")


@cache
def load(version: str) -> dict[str, Any]:
    """``functions``, ``constants`` and ``classes`` of one of ``VERSIONS``."""
    found: dict[str, Any] = json.loads((FOLDER / f"{version}.json").read_text())
    return found


def chosen(full: dict[str, Any]) -> dict[str, Any]:
    """Of everything that bindings hold, what is kept here. Layers are made by the parser alone: no ``add_…``."""
    classes = {name: dict(kind) for name, kind in full["classes"].items() if name in CLASSES}
    network = classes["INetworkDefinition"]
    network["methods"] = {
        name: listed
        for name, listed in network["methods"].items()
        if not name.startswith("add_") or name == "add_input"
    }
    functions = {name: listed for name, listed in full["functions"].items() if name not in LEFT_BEHIND}
    return {**full, "functions": functions, "classes": classes}


def text(api: dict[str, Any]) -> str:
    """As the file holds it."""
    return json.dumps(api, indent=1, sort_keys=True) + "\n"
