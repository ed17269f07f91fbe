"""Numbers with units, for people."""

from __future__ import annotations


def size(value: int | None) -> str:
    """A size in bytes with three digits and a decimal unit: 4.14 MB; a dash for None."""
    if value is None:
        return "–"
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value} B"
