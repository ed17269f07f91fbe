"""Which operator sets an ONNX file imports, read without its graph: a file of gigabytes tells at once."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

from deploykit import kernels

_Buffer = bytes | memoryview

# Numbers of fields: of a model the list of its imports, of each import its domain and version.
_IMPORT, _DOMAIN, _VERSION = 8, 1, 2
# Protobuf's wire types: how long a field is.
_VARINT, _EIGHT_BYTES, _LENGTH, _FOUR_BYTES = 0, 1, 2, 5


def imported(model: bytes | Path) -> dict[str, int]:
    """The version of each operator set by its domain; ``ai.onnx`` is the empty one.

    Empty where the bytes are no ONNX model, or there is no such file: whoever loads it has a sentence for that.
    """
    if isinstance(model, bytes):
        return _imports(memoryview(model))
    try:
        with (
            model.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
            memoryview(mapped) as view,
        ):
            return _imports(view)
    except (OSError, ValueError):  # ValueError: the file is empty
        return {}


def operators_of(model: bytes | Path) -> dict[str, int]:
    """The version of each operator set that a plain onnxruntime lacks: that of ``deploykit.kernels``, or none."""
    return {domain: version for domain, version in imported(model).items() if domain == kernels.DOMAIN}


def _imports(model: _Buffer) -> dict[str, int]:
    found: dict[str, int] = {}
    try:
        for number, value in _fields(model):
            if number == _IMPORT and not isinstance(value, int):
                entry = dict(_fields(value))
                domain, version = entry.get(_DOMAIN, b""), entry.get(_VERSION, 0)
                if not isinstance(domain, int) and isinstance(version, int):
                    found[bytes(domain).decode()] = version
    except (IndexError, ValueError):
        return {}
    return found


def _fields(message: _Buffer) -> Iterator[tuple[int, int | bytes]]:
    """Number and value of each field: an int, or bytes. Large ones (the graph) are stepped over.

    Raises:
        IndexError, ValueError: it is no protobuf message, or is cut short.
    """
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        number, kind = tag >> 3, tag & 7
        if kind == _VARINT:
            value, at = _varint(message, at)
            yield number, value
        elif kind == _LENGTH:
            size, at = _varint(message, at)
            if at + size > len(message):
                raise ValueError("cut short")
            yield number, bytes(message[at : at + size]) if size < _LARGE else b""
            at += size
        elif kind in (_EIGHT_BYTES, _FOUR_BYTES):
            at += 8 if kind == _EIGHT_BYTES else 4
        else:
            raise ValueError("no such wire type")


#: No import of an operator set is as large.
_LARGE = 1024


def _varint(message: _Buffer, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
        if shift > 63:
            raise ValueError("no such number")
