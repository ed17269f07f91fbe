"""Real inputs, recorded in an .npz file or elsewhere, cut to the sizes that a run needs."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from deploykit.errors import UsageError
from deploykit.types import TIME, TensorSpec, ValueRange

if TYPE_CHECKING:
    from deploykit.types import Array


class Recorded:
    """Arrays by input name, each with the dims of its spec: rows along ``batch``, steps along ``time``.

    ``feeds`` takes a seeded, consecutive piece along each dynamic dim, the same piece for all inputs; rows wrap around
    where more are asked for than there are, and so do steps, so that a short recording serves a long check. Lengths,
    which are the inputs whose ``ranges`` end with a dim's name, are never beyond the piece.
    """

    def __init__(
        self,
        arrays: Mapping[str, Array],
        inputs: Sequence[TensorSpec],
        told: object,
        ranges: Mapping[str, ValueRange] | None = None,
    ) -> None:
        """Of ``arrays``, which come from what ``told`` names.

        Raises:
            UsageError: an array does not fit its spec.
        """
        self._inputs = tuple(inputs)
        self._arrays = dict(arrays)
        self._ranges = ranges or {}
        self._lengths: dict[str, int] = {}
        for spec in self._inputs:
            _check(told, spec, self._arrays[spec.name], self._lengths)

    def whole(self) -> dict[str, Array]:
        """All that there is of the inputs, by name."""
        return dict(self._arrays)

    def feeds(self, seed: int, sizes: Mapping[str, int]) -> dict[str, Array]:
        """Inputs by name for the given sizes of the dynamic dims, contiguous copies."""
        generator = np.random.default_rng(seed)
        picked = {}
        for dim, length in self._lengths.items():
            # Steps begin where the recording lets the piece end without a wrap, if it can.
            starts = max(length - sizes[dim], 0) + 1 if dim == TIME else length
            picked[dim] = (int(generator.integers(starts)) + np.arange(sizes[dim])) % length
        feeds = {spec.name: _cut(self._arrays[spec.name], spec, picked) for spec in self._inputs}
        for name, allowed in self._ranges.items():
            if isinstance(allowed.high, str) and allowed.high in sizes and name in feeds:
                feeds[name] = allowed.within(feeds[name], sizes).astype(feeds[name].dtype)
        return feeds


class DataFile(Recorded):
    """``Recorded`` arrays of an .npz file."""

    def __init__(
        self, path: Path, inputs: Sequence[TensorSpec], ranges: Mapping[str, ValueRange] | None = None
    ) -> None:
        """Read ``path``.

        Raises:
            UsageError: it cannot be read, lacks an input, or an array does not fit its spec.
        """
        super().__init__(_read(path, [spec.name for spec in inputs]), inputs, path, ranges)


def everything(path: Path) -> dict[str, Array]:
    """All arrays of an .npz file, inputs or not, as they are.

    Raises:
        UsageError: it cannot be read.
    """
    return _read(path, None)


def _read(path: Path, names: Sequence[str] | None) -> dict[str, Array]:
    try:
        with np.load(path, allow_pickle=False) as file:
            missing = [name for name in names or () if name not in file]
            if missing:
                raise UsageError(f"{path} has no array {missing[0]!r}: it needs one for each input of the model.")
            return {name: file[name] for name in (file.files if names is None else names)}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, TypeError, AttributeError) as error:
        raise UsageError(f"cannot read {path} as an .npz file of plain arrays: write it with numpy.savez.") from error


def _check(told: object, spec: TensorSpec, array: Array, lengths: dict[str, int]) -> None:
    found = f"{spec.name}:{array.dtype}[{','.join(map(str, array.shape))}]"
    if str(array.dtype) != spec.dtype or array.ndim != len(spec.dims):
        raise UsageError(f"{told} has {found}, and the model takes {spec}.")
    for size, dim in zip(array.shape, spec.dims, strict=True):
        expected = lengths.setdefault(dim, size) if isinstance(dim, str) else dim
        if size != expected or size == 0:
            raise UsageError(f"{told} has {found}, where the model takes {spec} with {dim}={expected}.")


def _cut(array: Array, spec: TensorSpec, picked: Mapping[str, Array]) -> Array:
    for axis, dim in enumerate(spec.dims):
        if isinstance(dim, str):
            array = array.take(picked[dim], axis=axis)
    return np.ascontiguousarray(array)
