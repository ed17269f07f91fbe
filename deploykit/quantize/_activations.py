"""Activations as unsigned 8-bit numbers with zero point 128 and a scale per row, and their products with weights.

One scale per row (everything but the last axis), never one per tensor: only so is a row's answer independent of its
batch neighbours, and a step's of what follows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from deploykit.quantize._graph import MICROSOFT, Builder
from deploykit.quantize._weights import LEVELS, ZERO_POINT, QuantizedMatrix

_TINY = 1e-30


@dataclass(frozen=True)
class QuantizedRows:
    """``values`` uint8 ``[..., in]``, and the float32 ``scale`` ``[..., 1]`` that gives back the rows.

    Or, along the last axis but one, ``[..., in, columns]`` and ``[..., 1, columns]``.
    """

    values: str
    scale: str


def quantize_rows(build: Builder, value: str, axis: int = -1) -> QuantizedRows:
    """Quantize with the scale max(1e-30, largest magnitude of the row) / 127; a row runs along ``axis``.

    A row with a NaN or Inf gets the scale NaN, so that its results are NaN, as are those of no other row: ReduceMax
    alone would overlook a NaN, and rounding would turn it into a number.
    """
    magnitude = build.op("Abs", [value], "abs")
    peak = build.op("Max", [build.reduce("ReduceMax", magnitude, "peak", axis), build.scalar(_TINY)], "floored")
    sound = build.op("Mul", [build.reduce("ReduceSum", magnitude, "sum", axis), build.scalar(0.0)], "sound")
    scale = build.op("Div", [build.op("Add", [peak, sound], "range"), build.scalar(LEVELS)], "scale")
    return QuantizedRows(to_uint8(build, build.op("Div", [value, scale], "scaled"), 1.0), scale)


def to_uint8(build: Builder, value: str, scale: float) -> str:
    """``clip(round(value / scale) + 128, 0, 255)`` with one fixed scale.

    onnxruntime's own QuantizeLinear does not change with the opset; it lacks ai.onnx's newest ones for a while.
    """
    return build.op("QuantizeLinear", [value, build.scalar(scale), zero_point(build)], "q", MICROSOFT)


def zero_point(build: Builder) -> str:
    return build.constant(np.array(ZERO_POINT, np.uint8), "zero_point")


def product(build: Builder, values: str, scale: float, weights: QuantizedMatrix, wish: str, bias: str = "") -> str:
    """The float32 product of uint8 rows, with one scale for them all, and a matrix; ``bias`` float32 ``[out]``."""
    inputs = [
        values,
        build.constant(weights.values, f"{wish}_int8"),
        build.scalar(scale),
        build.constant(weights.scale, f"{wish}_scale"),
        zero_point(build),
        build.constant(weights.zero_point, "zero_point"),
    ]
    return build.op("MatMulIntegerToFloat", inputs + [bias] * bool(bias), wish, MICROSOFT)


def row_product(build: Builder, rows: QuantizedRows, weights: QuantizedMatrix, wish: str) -> str:
    """The float32 product of rows with a scale each and a matrix."""
    return build.op("Mul", [product(build, rows.values, 1.0, weights, wish), rows.scale], f"{wish}_scaled")
