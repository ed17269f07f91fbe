"""The numbers of an engine's inputs and outputs, and NumPy's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deploykit.errors import BackendFailedError

if TYPE_CHECKING:
    from deploykit.types import Array

#: How NumPy holds each of TensorRT's types, by TensorRT's name. NumPy has no bfloat16: its bits go as integers.
HELD = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "uint16",
    "INT64": "int64",
    "INT32": "int32",
    "INT8": "int8",
    "UINT8": "uint8",
    "BOOL": "bool",
}
#: What a user gives and gets.
PUBLIC = {**HELD, "BF16": "float32"}


def store(given: Array, into: Array, kind: str, name: str) -> None:
    """Write ``given`` into the engine's array, whose numbers are of TensorRT's type ``kind``.

    Raises:
        BackendFailedError: an integer does not fit: TensorRT 8 has no int64.
    """
    import numpy as np

    if kind == "BF16":
        into[...] = _bfloat16(given)
        return
    if given.dtype.kind in "iu" and into.dtype.kind in "iu" and given.size and not np.can_cast(given.dtype, into.dtype):
        limits = np.iinfo(into.dtype)
        if given.min() < limits.min or given.max() > limits.max:
            raise BackendFailedError(
                f"the input {name!r} holds integers that do not fit {into.dtype}, which this engine takes: give it "
                "smaller ones."
            )
    np.copyto(into, given, casting="unsafe")


def fetch(held: Array, kind: str, dtype: str) -> Array:
    """A new array of ``dtype`` with the engine's numbers."""
    import numpy as np

    if kind == "BF16":
        held = (held.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return held.astype(dtype)


def _bfloat16(given: Array) -> Array:
    """The bits, rounded to the nearest and to even in the middle, as the GPU rounds."""
    import numpy as np

    values = np.asarray(given, np.float32, order="C")
    bits = values.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(values), np.uint32(0x7FC0), rounded).astype(np.uint16)
