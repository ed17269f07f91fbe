"""Weights as symmetric 8-bit numbers, one scale per output channel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Zero point of quantized activations.
ZERO_POINT = 128
#: Largest magnitude of a quantized number: symmetric, so that -x and x quantize alike.
LEVELS = 127
#: Most that the two weights of a pair may come to: 255 * 128 fits 16 bits with a sign.
MOST_OF_A_PAIR = 128


@dataclass(frozen=True)
class WeightForm:
    """How a matrix is stored: around ``zero_point``, as uint8 or (0) as int8; ``paired`` says that pairs are bounded.

    On x86 CPUs with AVX2 and without VNNI onnxruntime's uint8 x int8 product adds the products of neighbouring rows,
    2k and 2k + 1, in 16 bits. They saturate, and the result is wrong, once two weights of a column and of one sign come
    to more than 128 together. Both forms below are exact on every CPU.
    """

    zero_point: int
    paired: bool


#: In the uint8 x int8 product, the fast one: a column's scale is as large as its pairs need. Where outliers rule the
#: scale, as in trained weights, hardly any column needs a larger one than its largest weight asks for.
PAIRED = WeightForm(zero_point=0, paired=True)
#: All 8 bits, in the uint8 x uint8 product.
WIDE = WeightForm(zero_point=128, paired=False)


@dataclass(frozen=True)
class QuantizedMatrix:
    """``values`` ``[in, out]``, float value ``(values - zero_point) * scale``; ``scale`` float32 ``[out]``."""

    values: NDArray[np.uint8] | NDArray[np.int8]
    scale: NDArray[np.float32]
    zero_point: NDArray[np.uint8] | NDArray[np.int8]


def symmetric(matrix: NDArray[np.float32], axis: int | tuple[int, ...]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Int8 values in [-127, 127] and float32 scales, one for all numbers along ``axis``.

    Numbers that are all zero, or too small for a normal float32 scale, get scale 1 and become zeros.
    """
    peak = np.abs(matrix.astype(np.float64)).max(axis=axis, keepdims=True, initial=0.0)
    values, scale = _rounded(matrix, peak)
    return values, np.squeeze(scale, axis=axis)


def per_output_channel(matrix: NDArray[np.float32], form: WeightForm = PAIRED) -> QuantizedMatrix:
    """The matrix ``[in, out]`` with one scale per column."""
    peak = np.abs(matrix.astype(np.float64)).max(axis=0, keepdims=True, initial=0.0)
    if form.paired:
        peak = np.maximum(peak, _largest_pair(matrix.astype(np.float64)))
    values, scale = _rounded(matrix, peak)
    if not form.zero_point:
        return QuantizedMatrix(values, scale[0], np.array(0, np.int8))
    stored = (values.astype(np.int16) + form.zero_point).astype(np.uint8)
    return QuantizedMatrix(stored, scale[0], np.array(form.zero_point, np.uint8))


def _largest_pair(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """``[1, out]``: the most that two rows 2k and 2k + 1 come to, numbers of one sign only.

    With the scale that makes 127 of it, rounding adds half a step to each of the two: 128 at most.
    """
    even = np.concatenate([matrix, np.zeros((len(matrix) % 2, matrix.shape[1]))])
    pairs = even.reshape(-1, 2, matrix.shape[1])
    above, below = (np.maximum(signed, 0).sum(axis=1).max(axis=0, initial=0.0) for signed in (pairs, -pairs))
    return np.asarray(np.maximum(above, below))[None]


def _rounded(matrix: NDArray[np.float32], peak: NDArray[np.float64]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    scale = (peak / LEVELS).astype(np.float32)
    scale = np.where(scale < np.finfo(np.float32).tiny, np.float32(1), scale)
    return np.clip(np.rint(matrix.astype(np.float64) / scale), -LEVELS, LEVELS).astype(np.int8), scale
