"""How far a backend's outputs lie from the reference's, and whether that is too far.

With reference r, found f and error e = f - r, all as float64: SNR = 10 log10(sum r^2 / sum e^2) in decibels; cosine =
sum r f / (|r| |f|); an element is within tolerance when |e| <= atol + rtol |r| (``numpy.isclose``'s rule: nothing is
divided by the reference, whose zeros would make any error infinite). All sums run over every seed of one shape.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from deploykit.bench.report import Accuracy, OutputError, Tolerance

if TYPE_CHECKING:
    import numpy.typing as npt

    from deploykit.types import Array

    Floats = npt.NDArray[np.float64]

Outputs = Mapping[str, "Array"]
#: Axis of the batch or of the time in each output that has one.
Axes = Mapping[str, int]

STEP_POINTS = 64
#: The error grows when its mean over the last quarter of the steps is this many times that over the second quarter.
#: The first quarter is left out: from a state of zero every error starts small.
GROWTH = 2.0


def mismatch(reference: Outputs, found: Outputs, *, half: bool = False) -> str | None:
    """One sentence where names, shapes or dtypes differ or a value is not finite; None when the two can be compared.

    ``half``: float16 is as good as the reference's float32, as in an artifact of that precision.
    """
    if set(reference) != set(found):
        return f"it returns the outputs {', '.join(found) or 'none'}, and the reference {', '.join(reference)}."
    for name, expected in reference.items():
        value = found[name]
        if value.shape != expected.shape:
            return f"its output {name!r} has the shape {list(value.shape)}, and the reference's {list(expected.shape)}."
        if value.dtype != expected.dtype and not (half and value.dtype == np.float16 and expected.dtype == np.float32):
            return f"its output {name!r} is {value.dtype}, and the reference's {expected.dtype}."
        unfit = not_finite(value)
        if unfit:
            return f"its output {name!r} has {unfit} of {value.size} elements that are NaN or Inf."
    return None


def not_finite(value: Array) -> int:
    """The number of elements that are NaN or Inf."""
    return int(value.size - np.isfinite(value).sum()) if np.issubdtype(value.dtype, np.inexact) else 0


def measure(
    pairs: Sequence[tuple[Outputs, Outputs]], allowed: Tolerance, *, batch_axes: Axes, time_axes: Axes
) -> Accuracy:
    """Errors over all ``pairs`` (reference, found) of one shape, which ``mismatch`` has let pass."""
    outputs = {
        name: _output_error(
            [pair[0][name] for pair in pairs],
            [pair[1][name] for pair in pairs],
            allowed.of(name),
            batch_axes.get(name),
            time_axes.get(name),
        )
        for name in pairs[0][0]
    }
    stepped = next((error for error in outputs.values() if error.per_step is not None), None)
    return Accuracy(
        max_abs=max(error.max_abs for error in outputs.values()),
        mean_abs=max(error.mean_abs for error in outputs.values()),
        snr_db=_least(error.snr_db for error in outputs.values()),
        cosine=_least(error.cosine for error in outputs.values()),
        argmax_agreement=next((e.argmax_agreement for e in outputs.values() if e.argmax_agreement is not None), None),
        per_step=stepped.per_step if stepped else None,
        grows=stepped.grows if stepped else None,
        first_step_outside=stepped.first_step_outside if stepped else None,
        outputs=outputs,
    )


def judge(accuracy: Accuracy, allowed: Tolerance) -> str | None:
    """None when every output is within ``allowed``, else one sentence on the first that is not."""
    for name, error in accuracy.outputs.items():
        bound = allowed.of(name)
        if error.outside:
            return (
                f"its output {name!r} is outside |error| <= {bound.atol:g} + {bound.rtol:g} |reference| in "
                f"{error.outside} elements: the largest error is {error.max_abs:.3g}."
            )
        if bound.min_snr_db is None:
            continue
        if error.snr_db is not None and error.snr_db < bound.min_snr_db:
            return f"its output {name!r} has an SNR of {error.snr_db:.1f} dB, and {bound.min_snr_db:g} dB is needed."
        # Integers and booleans have neither SNR nor cosine: under an SNR rule it is how many are equal that counts.
        if error.outside is None and error.cosine is None and error.equal < bound.min_equal:
            return (
                f"its output {name!r} equals the reference in {error.equal:.1%}, and {bound.min_equal:.0%} is needed."
            )
    return None


def _output_error(
    references: Sequence[Array],
    founds: Sequence[Array],
    allowed: Tolerance,
    batch_axis: int | None,
    time_axis: int | None,
) -> OutputError:
    inexact = bool(np.issubdtype(references[0].dtype, np.inexact))
    reference, found = _flat(references), _flat(founds)
    error = np.abs(found - reference)
    # A float output that should be all zeros has no SNR, so there it is the elements that are judged.
    by_element = allowed.by_element or (inexact and not reference.any())
    limit = allowed.atol + allowed.rtol * np.abs(reference) if by_element else None
    steps = _steps(references, founds, time_axis)
    return OutputError(
        max_abs=float(error.max(initial=0.0)),
        mean_abs=float(error.mean()) if error.size else 0.0,
        snr_db=snr_db(reference, error) if inexact else None,
        cosine=_cosine(reference, found) if inexact else None,
        argmax_agreement=_argmax_agreement(references, founds, batch_axis, time_axis) if inexact else None,
        equal=float((error == 0).mean()) if error.size else 1.0,
        outside=None if limit is None else int((error > limit).sum()),
        per_step=None if steps is None else tuple(float(value) for value in downsample(steps, STEP_POINTS)),
        steps=None if steps is None else len(steps),
        grows=None if steps is None else grows(steps),
        first_step_outside=_first_outside(references, founds, allowed, time_axis),
    )


def snr_db(reference: Floats, error: Floats) -> float | None:
    """Signal over noise in decibels; None without any error, or without any signal."""
    noise, signal = float(np.square(error).sum()), float(np.square(reference).sum())
    return 10 * math.log10(signal / noise) if noise > 0 and signal > 0 else None


def downsample(values: Floats, points: int) -> Floats:
    """Means of at most ``points`` nearly equal pieces, in order."""
    return np.asarray([piece.mean() for piece in np.array_split(values, min(points, len(values)))], np.float64)


def grows(steps: Floats) -> bool | None:
    """Whether the error of the last quarter is ``GROWTH`` times that of the second; None with fewer than 8 steps."""
    quarter = len(steps) // 4
    if quarter < 2:
        return None
    return bool(steps[-quarter:].mean() > GROWTH * steps[quarter : 2 * quarter].mean())


def _flat(arrays: Sequence[Array]) -> Floats:
    return np.concatenate([array.ravel().astype(np.float64) for array in arrays])


def _cosine(reference: Floats, found: Floats) -> float | None:
    length = float(np.linalg.norm(reference) * np.linalg.norm(found))
    return float(reference @ found) / length if length > 0 else None


def _argmax_agreement(
    references: Sequence[Array], founds: Sequence[Array], batch_axis: int | None, time_axis: int | None
) -> float | None:
    last = references[0].ndim - 1
    # The largest entry along the batch or the time is no choice of a class.
    if last < 0 or references[0].shape[-1] < 2 or last in (batch_axis, time_axis) or not references[0].size:
        return None
    same = [(a.argmax(-1) == b.argmax(-1)).ravel() for a, b in zip(references, founds, strict=True)]
    return float(np.concatenate(same).mean())


def _steps(references: Sequence[Array], founds: Sequence[Array], axis: int | None) -> Floats | None:
    """Mean absolute error of each time step over seeds and all other axes, shape ``[time]``."""
    if axis is None or not all(np.issubdtype(array.dtype, np.inexact) and array.size for array in references):
        return None
    means = [
        np.abs(np.moveaxis(b.astype(np.float64) - a, axis, 0)).reshape(a.shape[axis], -1).mean(axis=1)
        for a, b in zip(references, founds, strict=True)
    ]
    return np.asarray(np.mean(means, axis=0), np.float64)


def _first_outside(
    references: Sequence[Array], founds: Sequence[Array], allowed: Tolerance, axis: int | None
) -> int | None:
    if axis is None or not allowed.by_element or not all(array.size for array in references):
        return None
    first: list[int] = []
    for a, b in zip(references, founds, strict=True):
        expected = a.astype(np.float64)
        outside = np.abs(b.astype(np.float64) - expected) > allowed.atol + allowed.rtol * np.abs(expected)
        first.extend(np.flatnonzero(np.moveaxis(outside, axis, 0).reshape(a.shape[axis], -1).any(axis=1))[:1].tolist())
    return min(first, default=None)


def _least(values: Iterable[float | None]) -> float | None:
    return min((value for value in values if value is not None), default=None)
