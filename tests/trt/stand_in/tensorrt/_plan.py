"""Plans: a true header, then what the stand-in needs to run the model again.

A true plan begins with the tag 0x74727466 (little endian), the number of the serialization's version at byte 4 (0), and
has the version of TensorRT that wrote it at bytes 24 to 27, a byte for each of its four numbers.
"""

from __future__ import annotations

import json
import struct
import zlib
from dataclasses import asdict, dataclass, field
from typing import Any

import onnx

from ._api import NUMBERS, VERSION

TAG = 0x74727466
HEADER = struct.Struct("<IIQQ4sI")


@dataclass
class Layer:
    """What the builder made of one ONNX node, or of several put together, and the type it computes in."""

    name: str
    operator: str
    nodes: list[str]
    kind: str
    inputs: list[tuple[str, str]]
    outputs: list[tuple[str, str]]
    weights: int = 0


@dataclass
class Content:
    """Everything of a plan but its weights."""

    name: str
    flags: list[str]
    profiles: list[dict[str, list[list[int]]]]
    layers: list[Layer]
    types: dict[str, str]
    wide: list[str]
    verbosity: str
    compatibility: str
    missing: list[str] = field(default_factory=list)


def version_bytes(version: tuple[int, ...] = NUMBERS) -> bytes:
    """Python's package tells no fourth number for 8.6.1 and 10.0.1, whose libraries are both the sixth build."""
    return bytes((*version, 6)[:4])


def written(content: Content, model: onnx.ModelProto) -> bytes:
    described = json.dumps(asdict(content)).encode()
    body = zlib.compress(struct.pack("<Q", len(described)) + described + model.SerializeToString(), 1)
    return HEADER.pack(TAG, 0, HEADER.size + len(body), 0, version_bytes(), 0) + body


def refusal(plan: bytes, host_code: bool) -> str | None:
    """Why this version does not load a plan."""
    if len(plan) < HEADER.size:
        return "Error Code 1: Serialization (the plan is too short)"
    tag, _, size, _, version, _ = HEADER.unpack_from(plan)
    if tag != TAG:
        return "Error Code 1: Serialization (Serialization assertion failed. Magic tag does not match)"
    if size != len(plan):
        return "Error Code 1: Serialization (the plan is cut off)"
    compatible = "VERSION_COMPATIBLE" in read(plan)[0].flags
    if version != version_bytes() and not (compatible and version < version_bytes()):
        wrote = ".".join(str(number) for number in version)
        return (
            "Error Code 6: API Usage Error (The engine plan file is not compatible with this version of TensorRT, "
            f"expecting library version {VERSION} got {wrote}, please rebuild.)"
        )
    if compatible and not host_code:
        return "Error Code 4: the engine holds host code, which engine_host_code_allowed does not allow"
    return None


def read(plan: bytes) -> tuple[Content, onnx.ModelProto]:
    body = zlib.decompress(plan[HEADER.size :])
    (length,) = struct.unpack_from("<Q", body)
    described: dict[str, Any] = json.loads(body[8 : 8 + length])
    described["layers"] = [Layer(**layer) for layer in described["layers"]]
    return Content(**described), onnx.load_model_from_string(body[8 + length :])
