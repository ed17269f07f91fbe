"""Type stubs of TensorRT's bindings, made from what ``introspect`` found in them.

The docstrings that they are made from say less than the bindings do in a few places, which are listed here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

HEAD = """\
# Made by python -m tests.trt.bindings from the bindings of TensorRT {version}.
import builtins
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Callable, ClassVar, SupportsFloat, SupportsInt, overload

from numpy import ndarray
from typing_extensions import Buffer

__version__: builtins.str
"""

#: What is None where it fails, or where there is nothing: documented in words alone.
NULLABLE = {
    "Builder.build_serialized_network",
    "Builder.build_engine_with_config",
    "IBuilderConfig.create_timing_cache",
    "IBuilderConfig.get_timing_cache",
    "ICudaEngine.create_execution_context",
    "IExecutionContext.get_output_allocator",
    "Runtime.deserialize_cuda_engine",
}
#: Parameters and attributes that take None as well.
OPTIONAL = {
    "IExecutionContext.set_output_allocator.output_allocator",
    "IBuilderConfig.progress_monitor",
    "IExecutionContext.profiler",
    "EngineInspector.execution_context",
}
#: What pybind11 turns into the type on the left.
TAKEN = {"Dims": "Dims | Sequence[int]", "Weights": "Weights | ndarray[Any, Any]"}
#: What Python finds by protocols of its own: it iterates what can be indexed, and reads buffers.
BESIDE = {
    "Dims": ("def __iter__(self) -> Iterator[builtins.int]: ...",),
    "IHostMemory": ("def __buffer__(self, flags: builtins.int, /) -> memoryview: ...",),
    "INetworkDefinition": ("def __iter__(self) -> Iterator[ILayer]: ...",),
}
#: Called by TensorRT, not by us: what it hands over are ints, not whatever can be made one.
CALLED = ("IProgressMonitor",)
ENUM = (
    "def __init__(self, value: builtins.int) -> None: ...",
    "__members__: ClassVar[builtins.dict[builtins.str, Any]]",
    "@property\ndef name(self) -> builtins.str: ...",
    "@property\ndef value(self) -> builtins.int: ...",
    "def __int__(self) -> builtins.int: ...",
    "def __index__(self) -> builtins.int: ...",
    "def __hash__(self) -> builtins.int: ...",
)


def text(full: Mapping[str, Any], lacking: Iterable[str] = ()) -> str:
    """The stub of the whole module ``tensorrt``.

    ``lacking`` names classes that this version does not have, and that the code uses behind a check of the version.
    """
    lines = [HEAD.format(version=full["version"])]
    for name, listed in full["functions"].items():
        lines += functions(name, [each if "->" in each else f"{each} -> Any" for each in listed], method=False)
    for name, where in full["constants"].items():
        kind = where.rpartition(".")[0]
        lines.append(f"{name}: {kind or 'builtins.int'}")
    for name in full["classes"]:
        if "." not in name:
            lines += ["", *klass(name, full["classes"])]
    for name in lacking:
        lines += [
            "",
            f"class {name}:  # in other versions alone",
            "    def __getattr__(self, name: builtins.str) -> Any: ...",
        ]
    return "\n".join(lines) + "\n"


def klass(name: str, classes: Mapping[str, Any]) -> Iterator[str]:
    """One class with the classes inside it."""
    about = classes[name]
    bases = f"({', '.join(about['bases'])})" if about.get("bases") else ""
    yield f"class {name.rpartition('.')[2]}{bases}:"
    yield from ("    " + line for line in body(name, about, classes))


def body(name: str, about: Mapping[str, Any], classes: Mapping[str, Any]) -> Iterator[str]:
    yield "..."
    for inner in classes:
        if inner.startswith(name + "."):
            yield from klass(inner, classes)
    for line in (*(ENUM if "enum" in about else ()), *BESIDE.get(name, ())):
        yield from line.splitlines()
    for member in about.get("enum", {}):
        yield f"{member}: ClassVar[{name}]"
    for member, where in about.get("constants", {}).items():
        yield f"{member}: ClassVar[{where.rpartition('.')[0] or 'builtins.int'}]"
    for member, kind in about.get("readonly", {}).items():
        yield "@property"
        yield f"def {member}(self) -> {optional(f'{name}.{member}', plain(kind))}: ..."
    for member, kind in about.get("writable", {}).items():
        yield f"{member}: {optional(f'{name}.{member}', plain(kind))}"
    for method, listed in about.get("methods", {}).items():
        yield from functions(method, listed, method=True, owner=name)


def functions(name: str, listed: list[str], *, method: bool, owner: str = "") -> Iterator[str]:
    for signature in listed:
        if len(listed) > 1:
            yield "@overload"
        told = signature.replace("SupportsInt", "int") if owner in CALLED else signature
        yield f"def {name}{annotated(told, f'{owner}.{name}', method)}: ..."


def annotated(signature: str, where: str, method: bool) -> str:
    """A signature with ``self``, with what is taken beside the type named, and what may be None."""
    parameters, _, result = signature.rpartition(" -> ") if "->" in signature else (signature, "", "Any")
    inside = parameters[1:-1]
    if any(kind in inside for kind in TAKEN):
        inside = re.sub(r": (\w+)\b", lambda found: f": {TAKEN.get(found[1], found[1])}", inside)
    inside = re.sub(r" = [^,)]+", " = ...", inside)
    inside = re.sub(
        r"(\w+): (\w+)", lambda found: f"{found[1]}: {optional(f'{where}.{found[1]}', found[2])}", plain(inside)
    )
    result = plain(result) + (" | None" if where in NULLABLE else "")
    listed = ", ".join(filter(None, ("self" if method else "", inside)))
    return f"({listed}) -> {result}"


def optional(where: str, kind: str) -> str:
    return f"{kind} | None" if where in OPTIONAL else kind


def plain(kind: str) -> str:
    """The module's own ``bool``, ``int8`` and the like hide Python's."""
    return re.sub(r"(?<![\w.])(bool|int|str|float|list|tuple|dict|object|slice)\b(?!:)", r"builtins.\1", kind)
