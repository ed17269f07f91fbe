"""Weights as symmetric 8-bit numbers, one scale per output channel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Zero point of quantized activations.
ZERO_POINT = 128
#: Largest magnitude of a quantized activation: symmetric, so that -x and x quantize alike.
LEVELS = 127


@dataclass(frozen=True)
class WeightForm:
    """How a matrix is stored: magnitudes up to ``levels``, around ``zero_point``, as uint8 or (0) as int8.

    On x86 CPUs with AVX2 and without VNNI onnxruntime's uint8 x int8 product saturates at 16 bits, and is wrong, once
    two neighbouring weights exceed 128 together. Both forms below are exact on every CPU.
    """

    levels: int
    zero_point: int
    remark: str | None = None


#: All 8 bits, in the uint8 x uint8 product.
EXACT = WeightForm(levels=127, zero_point=128)
#: 7 bits, in the uint8 x int8 product: 255 * (64 + 64) fits 16 bits.
REDUCED = WeightForm(levels=64, zero_point=0, remark="its weights have 7 bits")


@dataclass(frozen=True)
class QuantizedMatrix:
    """``values`` ``[in, out]``, float value ``(values - zero_point) * scale``; ``scale`` float32 ``[out]``."""

    values: NDArray[np.uint8] | NDArray[np.int8]
    scale: NDArray[np.float32]
    zero_point: NDArray[np.uint8] | NDArray[np.int8]


def symmetric(
    matrix: NDArray[np.float32], axis: int | tuple[int, ...], levels: int = LEVELS
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Int8 values in [-levels, levels] and float32 scales, one for all numbers along ``axis``.

    Numbers that are all zero, or too small for a normal float32 scale, get scale 1 and become zeros.
    """
    scale = (np.abs(matrix.astype(np.float64)).max(axis=axis, keepdims=True, initial=0.0) / levels).astype(np.float32)
    scale = np.where(scale < np.finfo(np.float32).tiny, np.float32(1), scale)
    values = np.clip(np.rint(matrix.astype(np.float64) / scale), -levels, levels)
    return values.astype(np.int8), np.squeeze(scale, axis=axis)


def per_output_channel(matrix: NDArray[np.float32], form: WeightForm = EXACT) -> QuantizedMatrix:
    """The matrix ``[in, out]`` with one scale per column."""
    values, scale = symmetric(matrix, axis=0, levels=form.levels)
    if not form.zero_point:
        return QuantizedMatrix(values, scale, np.array(0, np.int8))
    stored = (values.astype(np.int16) + form.zero_point).astype(np.uint8)
    return QuantizedMatrix(stored, scale, np.array(form.zero_point, np.uint8))
