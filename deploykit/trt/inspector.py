"""What the builder really chose: the layers of an engine and their types, set against what was asked for.

The engine inspector answers in JSON. Its words changed: up to 8.6 a tensor has ``"Format/Datatype": "Row major linear
FP16 format"``, from 10 on ``"Half"``, and 11 tells the two apart. All are read alike, by the type's word.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

#: The words for types, in the order in which they are looked for: BF16 holds no FP16, but BFloat16 holds Float.
_WORDS = {
    "bfloat16": re.compile(r"\b(BF16|BFloat16)\b", re.IGNORECASE),
    "float16": re.compile(r"\b(FP16|Half|Float16)\b", re.IGNORECASE),
    "float8": re.compile(r"\b(FP8|E4M3\w*)\b", re.IGNORECASE),
    "float32": re.compile(r"\b(FP32|Float|Float32)\b", re.IGNORECASE),
    "int8": re.compile(r"\bInt8\b", re.IGNORECASE),
    "int32": re.compile(r"\bInt32\b", re.IGNORECASE),
    "int64": re.compile(r"\bInt64\b", re.IGNORECASE),
    "bool": re.compile(r"\bBool\b", re.IGNORECASE),
    "uint8": re.compile(r"\bUInt8\b", re.IGNORECASE),
}
FLOATS = ("float32", "float16", "bfloat16")
#: Fields of a tensor that may hold its type.
_FIELDS = ("Format/Datatype", "DataType", "Datatype", "Format")
_NODE = re.compile(r"\[ONNX Layer: ([^\]]+)\]")
#: Layers that move, cast or hold numbers, and compute none: their types say nothing of the arithmetic.
_MOVERS = {"reformat", "constant", "shapehosttodevice", "devicetoshapehost", "shape", "signal", "wait", "cast", "noop"}


@dataclass(frozen=True)
class Layer:
    """One layer of an engine: its name, its kind, the ONNX nodes it was made of, and its inputs' and outputs' types.

    Types are by tensor name, None where the inspector does not tell, as it may not where shapes vary ("N/A due to
    dynamic shapes"). ``weights`` is the type of its weights, where it has some: that is told all the same.
    """

    name: str
    kind: str
    nodes: frozenset[str]
    inputs: Mapping[str, str | None]
    outputs: Mapping[str, str | None]
    weights: str | None = None

    @property
    def computes(self) -> bool:
        """Whether it calculates anything."""
        return self.kind.lower() not in _MOVERS

    @property
    def type(self) -> str | None:
        """The type it computes in: int8 where it takes such a tensor, else its outputs' float type, else any.

        Where no tensor's is told, its weights' type.
        """
        if "int8" in self.inputs.values():
            return "int8"
        known = [one for one in (*self.outputs.values(), *self.inputs.values()) if one is not None]
        return next((one for one in known if one in FLOATS), known[0] if known else self.weights)

    def made_of(self, node: str) -> bool:
        """Whether an ONNX node went into it."""
        if self.nodes:
            return node in self.nodes
        # Without metadata the name is all there is: fused layers join the names of theirs with plus signs.
        parts = re.split(r"\s*\+\s*|[()\[\],{}]|\.\.\.", self.name)
        return node in (part.strip() for part in parts)


def layers(information: str) -> list[Layer]:
    """The layers in the JSON of ``EngineInspector.get_engine_information``.

    Empty where it tells names alone, or is no JSON that this code knows: then nothing may be said of the types.
    """
    try:
        data = json.loads(information)
    except json.JSONDecodeError:
        return []
    found = data.get("Layers", []) if isinstance(data, dict) else data
    return [_layer(one) for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def count(found: Iterable[Layer]) -> dict[str, int]:
    """How many of the layers that compute do so in each type; ``unknown`` where the inspector does not tell."""
    return dict(Counter(layer.type or "unknown" for layer in found if layer.computes))


def fallbacks(
    found: Sequence[Layer],
    asked: str,
    tensors: Mapping[str, str],
    int8_nodes: Collection[str] = (),
) -> tuple[str, ...]:
    """A sentence on each layer that came out in another type than it should have.

    ``asked`` is the engine's precision, ``tensors`` the float types that the network gives its tensors, by name, and
    ``int8_nodes`` are the ONNX nodes that stand between DequantizeLinear and shall run in int8.
    """
    told: list[str] = []
    for layer in found:
        if layer.type == "int8" and asked == "int8":
            continue  # its outputs may well be int8 too, where the network has floats between Q and DQ
        for name, made in layer.outputs.items():
            expected = tensors.get(name)
            if expected in FLOATS and made is not None and made != expected and layer.computes:
                told.append(f"{layer.name} makes {name} in {made}, and {expected} was asked for.")
    for node in int8_nodes:
        of_node = [layer for layer in found if layer.computes and layer.made_of(node)]
        types = sorted({layer.type for layer in of_node if layer.type is not None})
        if types and "int8" not in types:
            told.append(f"{node} runs in {', '.join(types)}, and int8 was asked for.")
    return tuple(dict.fromkeys(told))


def type_of(text: str) -> str | None:
    """The type that a description of a tensor names."""
    return next((name for name, pattern in _WORDS.items() if pattern.search(text)), None)


def _layer(data: Mapping[str, Any]) -> Layer:
    weights = data.get("Weights")
    return Layer(
        str(data.get("Name", "")),
        str(data.get("LayerType", "")),
        frozenset(_NODE.findall(str(data.get("Metadata", "")))),
        _tensors(data.get("Inputs")),
        _tensors(data.get("Outputs")),
        type_of(str(weights.get("Type", ""))) if isinstance(weights, dict) else None,
    )


def _tensors(data: object) -> dict[str, str | None]:
    rows = [one for one in data if isinstance(one, dict)] if isinstance(data, list) else []
    return {str(one.get("Name", "")): type_of(" ".join(str(one.get(field, "")) for field in _FIELDS)) for one in rows}
