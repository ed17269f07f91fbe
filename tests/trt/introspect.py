"""What TensorRT's true bindings hold, as JSON. Runs in a process of its own that can import them, without deploykit.

Signatures are read out of pybind11's docstrings and written as Python would have them, without ``self``: C++ names and
module prefixes are cut, and what is no valid Python is mended (a parameter called ``in``, or one without a default
behind one with).
"""

from __future__ import annotations

import importlib
import inspect
import json
import keyword
import re
import sys
from typing import Any

#: Special methods that say something about how an object may be used.
SPECIAL = ("__init__", "__len__", "__getitem__", "__bool__")
#: Names of C++ and of older pybind11, and Python's own for them.
TYPES = (
    (re.compile(r"\b(?:typing_extensions|collections\.abc|typing|numpy(?:\.typing)?)\."), ""),
    (re.compile(r"\b(?:capsule|CapsuleType|handle|function)\b"), "Any"),
    (re.compile(r"\bbuffer\b"), "Buffer"),
    (re.compile(r"\bList\b"), "list"),
    (re.compile(r"\bTuple\b"), "tuple"),
    (re.compile(r"\bDict\b"), "dict"),
    (re.compile(r"\bNDArray\[[^\]]*\]+"), "ndarray"),
    (re.compile(r"\bndarray\[[^\]]*\]+"), "ndarray"),
    (re.compile(r"Annotated\[([^,\]]+),[^\]]*\]+"), r"\1"),
)


def clean(text: str, known: set[str]) -> str:
    """A type of a docstring as an annotation."""
    text = text.strip().replace(MODULE + ".tensorrt.", "").replace(MODULE + ".", "")
    for pattern, instead in TYPES:
        text = pattern.sub(instead, text)
    if "<" in text:  # a template of C++ that Python has no name for
        return "Any"
    return re.sub(r"\w+(?:::\w+)+", lambda found: plain(found[0].rsplit("::", 1)[1], known), text) or "Any"


def plain(name: str, known: set[str]) -> str:
    """``IBuilder`` of C++ is ``Builder`` here; what Python does not see can be anything."""
    return next((form for form in (name, name.removeprefix("I")) if form in known), "Any")


def split(text: str) -> list[str]:
    """Parameters apart: at the commas that are in no brackets."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "[(<{") - (character in "])}" or (character == ">" and not parts[-1].endswith("-")))
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts if part.strip()]


def parameter(text: str, known: set[str]) -> tuple[str, str, str]:
    """Name, annotation and default of one parameter; an empty default stands for none."""
    name, _, rest = text.partition(":")
    kind, _, default = rest.partition(" = ")
    if default.startswith("<"):
        default = default.strip("<>").partition(":")[0]
    elif default and not re.fullmatch(r"-?[\d.]+|None|True|False|'[^']*'", default):
        default = "..."
    annotation = clean(kind, known)
    if default == "None" and "None" not in annotation:
        annotation += " | None"
    return name.strip() + ("_" if keyword.iskeyword(name.strip()) else ""), annotation, default


def signatures(name: str, doc: str, known: set[str]) -> list[str]:
    """Each overload of a function, in the order that pybind11 tries them."""
    found = []
    for line in doc.splitlines():
        match = re.match(rf"\s*(?:\d+\. )?{re.escape(name)}\((.*)\) -> (.+)$", line)
        if not match or "*args" in match[1]:
            continue
        parameters = [parameter(part, known) for part in split(match[1]) if not part.startswith("self")]
        # A default before a parameter that has none cannot be left out.
        last = max((index for index, (_, _, default) in enumerate(parameters) if not default), default=-1)
        texts = [
            f"{name}: {kind}" + (f" = {default}" if default and index > last else "")
            for index, (name, kind, default) in enumerate(parameters)
        ]
        found.append(f"({', '.join(texts)}) -> {clean(match[2], known)}")
    return found


def property_type(value: property, known: set[str]) -> str:
    return clean(((value.fget and value.fget.__doc__) or "").rpartition("->")[2], known)


def is_enum(value: object) -> bool:
    return isinstance(value, type) and hasattr(value, "__members__")


def constant(value: Any) -> str | None:
    """``DataType.FLOAT`` for a member of an enum, None for what is no constant."""
    kind = type(value)
    if is_enum(kind):
        return f"{kind.__qualname__}.{value.name}"
    return repr(value) if isinstance(value, int) else None


def describe(kind: type, known: set[str]) -> dict[str, Any]:
    """One class: its bases, methods, properties and constants; a member of an enum is a name and a number."""
    if is_enum(kind):
        return {"enum": {name: int(value) for name, value in kind.__members__.items()}}  # type: ignore[attr-defined]
    found: dict[str, Any] = {"bases": [base.__name__ for base in kind.__bases__ if base.__name__ in known]}
    methods: dict[str, list[str]] = {}
    readonly: dict[str, str] = {}
    writable: dict[str, str] = {}
    constants: dict[str, str] = {}
    for name, value in sorted(vars(kind).items()):
        if name.startswith("_") and name not in SPECIAL:
            continue
        if isinstance(value, property) or type(value).__name__ == "pybind11_static_property":
            into = readonly if value.fset is None else writable
            into[name] = property_type(value, known)
        elif (text := constant(value)) is not None:
            constants[name] = text
        elif callable(value) and not isinstance(value, type) and value.__doc__:
            methods[name] = signatures(name, value.__doc__, known)
    methods = {name: listed for name, listed in methods.items() if listed}
    found.update(methods=methods, readonly=readonly, writable=writable, constants=constants)
    return {key: value for key, value in found.items() if value}


def function(name: str, value: Any, known: set[str]) -> list[str]:
    if inspect.isfunction(value):
        return [f"({', '.join(inspect.signature(value).parameters)})"]
    return signatures(name, value.__doc__ or "", known)


def read(module: Any) -> dict[str, Any]:
    """Everything public: ``functions``, ``constants`` and ``classes``, each by its name."""
    classes: dict[str, type] = {}
    for name, value in sorted(vars(module).items()):
        if isinstance(value, type) and value.__module__.startswith(MODULE) and not name.startswith("_"):
            classes[name] = value
            classes.update(
                (f"{name}.{inner}", kind)
                for inner, kind in sorted(vars(value).items())
                if isinstance(kind, type) and kind.__qualname__ == f"{name}.{inner}"
            )
    known = set(classes)
    result: dict[str, Any] = {"version": module.__version__, "functions": {}, "constants": {}, "classes": {}}
    for name, value in sorted(vars(module).items()):
        if name.startswith("_") or isinstance(value, type) or inspect.ismodule(value):
            continue
        if callable(value) and getattr(value, "__module__", "").startswith(MODULE):
            if listed := function(name, value, known):
                result["functions"][name] = listed
        elif (text := constant(value)) is not None and name != "value":  # a loop's variable that bindings leave behind
            result["constants"][name] = text
    result["classes"] = {name: describe(kind, known) for name, kind in classes.items()}
    # Written in Python, on top of the compiled part.
    result["classes"]["DataType"]["readonly"] = {"itemsize": "float"}
    return result


MODULE = "tensorrt_bindings"

if __name__ == "__main__":
    json.dump(read(importlib.import_module(MODULE)), sys.stdout, indent=1)
