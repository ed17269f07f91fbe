"""How large a graph's activations get on real inputs: the float model run in onnxruntime, with all of them exposed."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from deploykit.errors import QuantizationError
from deploykit.graphs import exposed
from deploykit.quantize._weights import LEVELS
from deploykit.runtime import sentence, session

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from deploykit.types import Array

#: Pieces that the calibration data is run in, so that the activations of a long recording fit in memory, and how many
#: of them, evenly spread: more samples than that move no scale.
_PIECE = {"batch": 16, "time": 256}
_MOST_PIECES = 64

# Bins of equal ratio, 64 to the octave: they need not know the range beforehand, and place a number within 1.1 %,
# closer than a scale has to be. Any scale between their ends is a normal float32.
_PER_OCTAVE, _LOWEST, _HIGHEST = 64, -112, 128

# Where a scale may cut off, as a share of the largest number.
_CUTS: NDArray[np.float64] = 2.0 ** np.linspace(0, -4, 129)


class Histogram:
    """Counts of the magnitudes of one value's elements."""

    def __init__(self) -> None:
        self._largest = 0.0
        self._counts = np.zeros((_HIGHEST - _LOWEST) * _PER_OCTAVE, np.int64)

    def add(self, array: NDArray[np.float32]) -> None:
        """Count an array's numbers."""
        magnitudes = np.abs(array).ravel()
        self._largest = max(self._largest, float(magnitudes.max(initial=0.0)))
        octaves = np.log2(magnitudes[magnitudes > 2.0**_LOWEST]) - _LOWEST
        places = np.minimum((octaves * _PER_OCTAVE).astype(np.int64), self._counts.size - 1)
        self._counts += np.bincount(places, minlength=self._counts.size)

    def scale(self) -> float:
        """The scale of symmetric int8 that costs the least squared error; 1 where there were zeros only.

        A number beyond 127 scales is cut off, one within half a scale of zero vanishes, and any other is off by up to
        half a scale, evenly spread, which is scale^2 / 12 on average.
        """
        (seen,) = np.nonzero(self._counts)
        if not seen.size:
            return 1.0
        numbers, counts = 2.0 ** ((seen + 0.5) / _PER_OCTAVE + _LOWEST), self._counts[seen]
        limits = self._largest * _CUTS
        errors = []
        for limit in limits:
            step = limit / LEVELS
            vanished, cut = np.less(numbers, step / 2), np.greater(numbers, limit)
            squared = np.select([vanished, cut], [numbers**2, (numbers - limit) ** 2], step**2 / 12)
            errors.append(float(squared @ counts))
        return float(limits[int(np.argmin(errors))]) / LEVELS


def scales(model: onnx.ModelProto, wanted: Collection[str], feeds: Mapping[str, Array] | None) -> dict[str, float]:
    """A positive scale for each of the wanted values that is a float32 number array.

    Raises:
        QuantizationError: there are no feeds, they do not fit the model's inputs, or a value is NaN or Inf on them.
    """
    if not feeds:
        raise QuantizationError(
            "static int8 takes its scales from real inputs, and there are none: pass --calibration FILE.npz."
        )
    inputs = _inputs(model.graph)
    for info in inputs:
        _check(info, feeds)
    exposed = _exposed(model, [name for name in wanted if name not in feeds])
    found: dict[str, Histogram] = {}
    for piece in _pieces(inputs, feeds):
        for name, value in (*piece.items(), *_run(exposed, piece)):
            if name in wanted and value.dtype == np.float32:
                if not np.isfinite(value).all():
                    raise QuantizationError(
                        f"value {name!r} is NaN or Inf on the calibration inputs: calibrate with sound ones."
                    )
                found.setdefault(name, Histogram()).add(value)
    return {name: histogram.scale() for name, histogram in found.items()}


def _inputs(graph: onnx.GraphProto) -> list[onnx.ValueInfoProto]:
    defaults = {tensor.name for tensor in graph.initializer}
    return [info for info in graph.input if info.name not in defaults]


def _check(info: onnx.ValueInfoProto, feeds: Mapping[str, Array]) -> None:
    if info.name not in feeds:
        given = ", ".join(sorted(feeds))
        raise QuantizationError(f"the calibration inputs ({given}) lack {info.name!r}: give an array for every input.")
    array, tensor = feeds[info.name], info.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    if array.dtype != dtype:
        raise QuantizationError(
            f"calibration input {info.name!r} is {array.dtype}, the model takes {dtype}: convert it."
        )
    dims = [dim.dim_value if dim.HasField("dim_value") else (dim.dim_param or "?") for dim in tensor.shape.dim]
    fits = array.ndim == len(dims) and all(
        size > 0 and (isinstance(dim, str) or size == dim) for size, dim in zip(array.shape, dims, strict=True)
    )
    if tensor.HasField("shape") and not fits:
        shape = ", ".join(map(str, dims))
        raise QuantizationError(
            f"calibration input {info.name!r} has shape {list(array.shape)}, the model takes [{shape}]: reshape it."
        )
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise QuantizationError(f"calibration input {info.name!r} holds NaN or Inf: calibrate with sound inputs.")


def _pieces(inputs: list[onnx.ValueInfoProto], feeds: Mapping[str, Array]) -> Iterator[dict[str, Array]]:
    """Pieces of the feeds, cut along the dims called batch and time."""
    whole = {info.name: feeds[info.name] for info in inputs}
    places = {
        dim: {info.name: axis for info in inputs for axis, one in enumerate(_names(info)) if one == dim}
        for dim in _PIECE
    }
    spans = [_spans(whole, places[dim], most) for dim, most in _PIECE.items()]
    both = list(itertools.product(*spans))
    for index in np.unique(np.linspace(0, len(both) - 1, min(len(both), _MOST_PIECES)).astype(int)):
        piece = dict(whole)
        for dim, span in zip(_PIECE, both[index], strict=True):
            piece |= {name: np.take(piece[name], span, axis) for name, axis in places[dim].items() if span is not None}
        yield piece


def _names(info: onnx.ValueInfoProto) -> list[str]:
    return [dim.dim_param for dim in info.type.tensor_type.shape.dim]


def _spans(feeds: dict[str, Array], axes: dict[str, int], most: int) -> list[Array | None]:
    """Indices of nearly equal parts of a dim, or None for all of it where the inputs do not share one size."""
    sizes = {feeds[name].shape[axis] for name, axis in axes.items()}
    if len(sizes) != 1:
        return [None]
    return list(np.array_split(np.arange(size := sizes.pop()), -(-size // most)))


def _exposed(model: onnx.ModelProto, names: list[str]) -> Any:
    try:
        return session(exposed(model, names).SerializeToString())
    except Exception as error:
        raise QuantizationError(
            f"onnxruntime cannot load the float model for calibration: {sentence(error)}."
        ) from error


def _run(opened: Any, feeds: dict[str, Array]) -> list[tuple[str, Array]]:
    names = [output.name for output in opened.get_outputs()]
    try:
        return list(zip(names, opened.run(names, feeds), strict=True))
    except Exception as error:
        raise QuantizationError(f"the float model failed on the calibration inputs: {sentence(error)}.") from error
