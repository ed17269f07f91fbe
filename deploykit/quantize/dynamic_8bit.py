"""Dynamic int8 as in ``dynamic``, with all 8 bits of each weight: about 2 dB more exact, slower on most x86 CPUs."""

from __future__ import annotations

from deploykit.quantize._weights import WIDE
from deploykit.quantize.dynamic import DynamicInt8

SCHEME = DynamicInt8(WIDE)
