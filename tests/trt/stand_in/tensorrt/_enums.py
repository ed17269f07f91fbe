"""Every enum of the played version, with the true numbers."""

from __future__ import annotations

from typing import Any, ClassVar

from ._api import API, CLASSES


class Enum:
    """As pybind11 makes them: no ints and no enums of Python's, but with ``name``, ``value`` and ``__int__``."""

    __members__: ClassVar[dict[str, Any]] = {}

    def __init__(self, value: int) -> None:
        found = next((member for member in self.__members__.values() if member.value == value), None)
        if found is None:
            raise ValueError(f"{value} is no {type(self).__name__}")
        self.name: str = found.name
        self.value: int = value

    def __int__(self) -> int:
        return self.value

    __index__ = __int__

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other.value == self.value

    def __hash__(self) -> int:
        return hash(self.value)

    def __repr__(self) -> str:
        return f"<{type(self).__name__}.{self.name}: {self.value}>"

    def __str__(self) -> str:
        return f"{type(self).__name__}.{self.name}"


def _made(name: str, numbers: dict[str, int]) -> type[Enum]:
    kind: type[Enum] = type(name.rpartition(".")[2], (Enum,), {"__members__": {}, "__module__": "tensorrt"})
    for member, value in numbers.items():
        new = object.__new__(kind)
        new.name, new.value = member, value
        kind.__members__[member] = new
        setattr(kind, member, new)
    return kind


ENUMS: dict[str, Any] = {name: _made(name, about["enum"]) for name, about in API["classes"].items() if "enum" in about}
CLASSES.update(ENUMS)

BuilderFlag: Any = ENUMS["BuilderFlag"]
DataType: Any = ENUMS["DataType"]
ErrorCode: Any = ENUMS["ErrorCode"]
LayerType: Any = ENUMS["LayerType"]
Severity: Any = ENUMS["ILogger.Severity"]
TensorIOMode: Any = ENUMS["TensorIOMode"]
TensorLocation: Any = ENUMS["TensorLocation"]

SIZES = {"FLOAT": 4, "HALF": 2, "BF16": 2, "INT8": 1, "INT32": 4, "INT64": 8, "BOOL": 1, "UINT8": 1, "FP8": 1}
DataType.itemsize = property(lambda self: SIZES.get(self.name, 0.5))


def is_set(flags: int, kind: Any, name: str) -> bool:
    """Whether a flag of this name is among the bits; one that the version lacks never is."""
    return name in kind.__members__ and bool(flags >> int(kind.__members__[name]) & 1)
