"""The inputs that a quantized artifact is held against its parent on: real ones where there are any."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from deploykit.artifact import Artifact
from deploykit.errors import DeploykitError
from deploykit.types import DimRange, Metric, dynamic_dims, noise

if TYPE_CHECKING:
    from deploykit.types import Array

# One size for all sets, so that their errors can be joined step by step; other sizes are `deploykit validate`'s work.
_BATCH, _OTHERS = 4, 100
_SEEDS = (2000, 2001, 2002)


@dataclass(frozen=True)
class Inputs:
    """Sets of inputs by name and of one size, where they come from, and the model's own metric where it has one."""

    feeds: tuple[Mapping[str, Array], ...]
    told: str
    metric: Metric | None = None


def gather(source: Artifact, calibration: Path | None) -> Inputs:
    """Inputs for ``source``: the file's, else the model's own sample, else seeded noise.

    Raises:
        UsageError: the calibration file cannot be read or does not fit.
    """
    sizes = _sizes(source)
    if calibration is not None:
        from deploykit.data import DataFile

        data = DataFile(calibration, source.inputs)
        return Inputs(tuple(data.feeds(seed, sizes) for seed in _SEEDS), str(calibration))
    why = "the file names no PyTorch model"
    if source.model is not None:
        from deploykit import loading

        why = "the model has no sample"
        try:
            spec = loading.load(source.model)
        except DeploykitError as error:
            why = str(error)
        else:
            if spec.sample is not None or spec.ranges:
                sets = tuple(spec.feeds(seed, **sizes) for seed in _SEEDS)
                told = "the model's own sample" if spec.has_own_sample else "seeded noise within the model's ranges"
                return Inputs(sets, told, spec.metric)
    sets = tuple(noise(source.inputs, seed, sizes) for seed in _SEEDS)
    return Inputs(sets, f"seeded noise, since there is no --calibration and {why.rstrip('.')}")


def _sizes(source: Artifact) -> dict[str, int]:
    sizes = {name: _BATCH if name == "batch" else _OTHERS for name in dynamic_dims(source.inputs)}
    return {name: source.dims.get(name, DimRange()).clamp(size) for name, size in sizes.items()}
