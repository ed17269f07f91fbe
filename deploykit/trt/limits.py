"""What TensorRT's ONNX parser takes, by version: ``limits.json``, which says itself where each fact came from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from deploykit.trt.library import parse_version

if TYPE_CHECKING:
    from deploykit.trt.library import Version

#: By ONNX's number, the name that the table has for a type. TensorRT reads float64 as float32.
NAMES = {
    **{1: "FP32", 10: "FP16", 16: "BF16", 11: "FP32"},
    **{6: "INT32", 7: "INT64", 3: "INT8", 2: "UINT8", 9: "BOOL"},
}
HALVES = {10: "float16", 16: "bfloat16"}

#: From here on int64 is a type of TensorRT's own; before, its parser reads int64 as int32.
INT64 = (10, 0)
#: From here on there is bfloat16, and networks whose types are those of the file.
BFLOAT16 = (10, 0)
#: From here on an LSTM in 16 bits starts from states of its own type, and a float16 GRU computes with a 1 of its own.
HALF_LSTM, HALF_GRU = (10, 14), (10, 2)


@dataclass(frozen=True)
class Limits:
    """The table as it stands for one version."""

    version: Version
    data: Mapping[str, Any]

    @property
    def opsets(self) -> tuple[int, int]:
        """The oldest and the newest opset."""
        spans = [(low, high) for first, low, high in self.data["opsets"] if parse_version(first) <= self.version]
        return spans[-1] if spans else (0, 0)

    @property
    def activations(self) -> frozenset[str]:
        """The activations of recurrent operators."""
        return frozenset(self.data["activations"])

    @property
    def most_dims(self) -> int:
        """How many dims a value may have."""
        return int(self.data["most_dims"])

    def types(self, operator: str) -> frozenset[str]:
        """The types that an operator takes; none where this version does not have it."""
        found: list[str] = []
        for entry in self.data["operators"].get(operator, ()):
            if parse_version(entry["since"]) <= self.version:
                found = entry["types"]
        return frozenset(found)

    def first(self, operator: str) -> str | None:
        """The version that an operator came with; None where none has it."""
        entries = self.data["operators"].get(operator)
        return str(entries[0]["since"]) if entries else None

    def rule(self, operator: str) -> Mapping[str, Any]:
        """What an operator's attributes, inputs and outputs have to be."""
        rule: Mapping[str, Any] = self.data["rules"].get(operator, {})
        return {} if "until" in rule and parse_version(rule["until"]) <= self.version else rule

    def sized_by_data(self, operator: str) -> bool:
        """Whether the shape of an operator's output depends on the numbers that it reads."""
        return operator in self.data["sized_by_data"]

    def name(self, kind: int) -> str | None:
        """What this version reads a value of one of ONNX's types as; None where it knows no such type."""
        name = NAMES.get(kind)
        return "INT32" if name == "INT64" and self.version < INT64 else name


def limits(version: Version) -> Limits:
    """The limits of a version's parser."""
    return Limits(version, _data())


def newest() -> Version:
    """The newest version that something is known of: what a later one takes, nobody has looked up."""
    return parse_version(str(_data()["opsets"][-1][0]))


def told(version: Version) -> str:
    """``TensorRT 10.16``."""
    return f"TensorRT {'.'.join(map(str, version[:2]))}"


@cache
def _data() -> dict[str, Any]:
    data: dict[str, Any] = json.loads((files("deploykit.trt") / "limits.json").read_text(encoding="utf-8"))
    return data
