"""Which version is played, and what every class here shares: it has what the true one of that version has, no more.

A call's arguments are checked against the true signatures, as pybind11 checks them: a wrong name, number or type of
arguments is a TypeError, and so is an attribute of another type.
"""

from __future__ import annotations

import ast
import json
import os
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, TypeVar

VERSION = os.environ.get("DEPLOYKIT_TEST_TENSORRT", "11.4.0.106")
NUMBERS = tuple(int(part) for part in VERSION.split("."))
API: dict[str, Any] = json.loads((Path(__file__).parents[2] / "api" / f"{VERSION}.json").read_text())
CLASSES: dict[str, Any] = {}

#: What may be None where one of these is asked for: the true bindings take pointers to them.
POINTERS = ("IOutputAllocator", "IProgressMonitor", "IErrorRecorder", "IProfiler", "IGpuAllocator", "IDebugListener")

Kind = TypeVar("Kind", bound=type)


class Meta(type):
    """Refuses a subclass that forgot to call the constructor of what it derives from, as pybind11 does."""

    def __call__(cls, *args: Any, **options: Any) -> Any:
        made = super().__call__(*args, **options)
        if "_bound" not in vars(made):
            base = next(kind for kind in cls.__mro__ if kind.__name__ in CLASSES)
            raise TypeError(f"{base.__name__}.__init__() must be called when overriding __init__")
        return made


class Bound(metaclass=Meta):
    """An object of the bindings. ``_begin`` makes it; ``__init__`` is there for those that a user may make."""

    _about: ClassVar[Mapping[str, Any]] = {}

    def __init__(self) -> None:
        self._begin()

    def _begin(self, *_: Any, **__: Any) -> None:
        object.__setattr__(self, "_bound", True)
        for kind in reversed(type(self).__mro__):
            for name in _writable(kind):
                if not isinstance(getattr(kind, name, None), property):  # those are read alone, here
                    object.__setattr__(self, name, None)

    def _default(self, **values: object) -> None:
        """What attributes are at first, as far as this version has them."""
        for name, value in values.items():
            if any(name in _writable(kind) for kind in type(self).__mro__):
                object.__setattr__(self, name, value)

    def __setattr__(self, name: str, value: object) -> None:
        kind = next((kind for kind in type(self).__mro__ if "_about" in vars(kind)), Bound)
        if not name.startswith("_"):
            known = {name: text for base in kind.__mro__ for name, text in _writable(base).items()}
            if name in known:
                value = converted(value, known[name], f"{kind.__name__}.{name}")
            elif kind is type(self) or isinstance(getattr(kind, name, None), property):
                raise AttributeError(f"'tensorrt.{kind.__name__}' object has no attribute '{name}' that can be set")
        object.__setattr__(self, name, value)

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        """The true ones do nothing here either."""


def _writable(kind: type) -> Mapping[str, str]:
    found: Mapping[str, str] = vars(kind).get("_about", {}).get("writable", {})
    return found


def made(kind: type[Any], *args: Any, **options: Any) -> Any:
    """An object of a class that has no constructor for users."""
    new: Any = object.__new__(kind)
    new._begin(*args, **options)
    return new


def exposed(kind: Kind) -> Kind:
    """Leave of a class what the true one has in this version, and check what its methods are called with."""
    about = API["classes"].get(kind.__name__)
    kind._about = about or {}  # type: ignore[attr-defined]
    if about is None:
        return kind
    CLASSES[kind.__name__] = kind
    methods = about.get("methods", {})
    names = {*methods, *about.get("readonly", {}), *about.get("writable", {})}
    for name, value in list(vars(kind).items()):
        if name.startswith("_") and name not in methods:
            continue
        if name not in names:
            delattr(kind, name)
        elif name in methods and callable(value):
            setattr(kind, name, checked(name, methods[name], value))
    if "__init__" not in methods:
        kind.__init__ = _no_constructor  # type: ignore[misc]
    for name, text in about.get("constants", {}).items():
        setattr(kind, name, text)
    return kind


def _no_constructor(self: object, *_: object, **__: object) -> None:
    raise TypeError(f"tensorrt.{type(self).__name__}: No constructor defined!")


@cache
def parsed(signature: str) -> ast.arguments:
    tree = ast.parse(f"def f{signature}: ...").body[0]
    assert isinstance(tree, ast.FunctionDef)
    return tree.args


def checked(name: str, signatures: Sequence[str], function: Callable[..., Any]) -> Callable[..., Any]:
    """``function``, called with what fits one of the true signatures, in its order; else a TypeError."""

    def call(self: object, *args: Any, **options: Any) -> Any:
        for signature in signatures:
            try:
                given = arranged(parsed(signature), args, options)
            except TypeError:
                continue
            return function(self, *given)
        what = "\n".join(f"    {number}. {name}{text}" for number, text in enumerate(signatures, 1))
        raise TypeError(
            f"{name}(): incompatible function arguments. The following argument types are supported:\n{what}\n\n"
            f"Invoked with: {args}, {options}"
        )

    call.__name__, call.__doc__, call.__wrapped__ = name, function.__doc__, function  # type: ignore[attr-defined]
    return call


def arranged(expected: ast.arguments, args: Sequence[Any], options: Mapping[str, Any]) -> list[Any]:
    """The arguments in the signature's order. What has a default may be left out, at the end.

    Raises:
        TypeError: they do not fit.
    """
    names = [argument.arg for argument in expected.args]
    needed = len(names) - len(expected.defaults)
    given = {**dict(zip(names, args, strict=False)), **options}
    if len(args) > len(names) or set(options) - set(names[len(args) :]) or set(names[:needed]) - set(given):
        raise TypeError
    found = []
    for argument in expected.args:
        if argument.arg not in given:
            break  # the stand-in's own method has the same defaults
        found.append(converted(given[argument.arg], ast.unparse(argument.annotation), argument.arg))  # type: ignore[arg-type]
    return found


def converted(value: Any, kind: str, name: str) -> Any:
    """``value`` as the bindings hand it on.

    Raises:
        TypeError: they take no such value for a ``kind``.
    """
    options = kind.split(" | ")
    if value is None and ("None" in options or kind in POINTERS):
        return None
    kind = options[0]
    plain: dict[str, tuple[bool, Callable[[Any], Any]]] = {
        "bool": (type(value).__name__ in {"bool", "bool_"}, bool),
        "str": (isinstance(value, str), str),
        "float": (type(value).__name__ in {"int", "float"}, float),
        "tuple": (isinstance(value, tuple), CLASSES.get("Dims", tuple)),
        "list": (isinstance(value, list), CLASSES.get("Dims", list)),
        "object": (False, str),  # overloads that the stand-in does not play
    }
    whole = hasattr(value, "__index__") and not isinstance(value, float)
    plain["SupportsInt"] = plain["int"] = (whole, int)
    if kind in plain:
        fits, change = plain[kind]
    elif kind == "Buffer":
        fits, change = hasattr(value, "_content") or isinstance(value, (bytes, bytearray, memoryview)), bytes
    elif kind == "Any":
        fits, change = True, lambda it: it
    elif kind == "Dims" and isinstance(value, (list, tuple)):
        fits, change = all(hasattr(item, "__index__") for item in value), CLASSES["Dims"]
    elif kind.startswith(("Sequence[", "list[")):
        fits, change = isinstance(value, (list, tuple)), list
    else:
        fits, change = kind in CLASSES and isinstance(value, CLASSES[kind]), lambda it: it
    if not fits:
        raise TypeError(f"{name}: {value!r} is no {kind}")
    return change(value)
