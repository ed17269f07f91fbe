"""Numbers with units, for people."""

from __future__ import annotations

import re

_SCALES = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


def size(value: int | None) -> str:
    """A size in bytes with three digits and a decimal unit: 4.14 MB; a dash for None."""
    if value is None:
        return "–"
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value} B"


def milliseconds(value: float | None) -> str:
    """A time with three digits and a unit: 412 µs, 1.24 ms, 3.1 s; a dash for None."""
    if value is None:
        return "–"
    if value < 1:
        return f"{value * 1e3:.3g} µs"
    return f"{value:.3g} ms" if value < 1000 else f"{value / 1e3:.3g} s"


def parse_size(text: str) -> int:
    """Bytes of ``1MB``, ``512 kB``, ``1.5 MiB`` or ``20000``; a unit's case does not matter.

    Raises:
        ValueError: it is no positive size.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", text, re.IGNORECASE)
    scale = None if found is None else _SCALES.get(found[2].lower())
    if found is None or scale is None or (value := round(float(found[1]) * scale)) < 1:
        raise ValueError(text)
    return value
