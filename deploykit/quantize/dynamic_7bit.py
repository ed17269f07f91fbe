"""Dynamic int8 as in ``dynamic``, with weights of 7 bits: about 2 dB less exact, and faster on most x86 CPUs."""

from __future__ import annotations

from deploykit.quantize._weights import REDUCED
from deploykit.quantize.dynamic import DynamicInt8

SCHEME = DynamicInt8(REDUCED)
