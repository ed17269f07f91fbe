"""The inputs that a quantized artifact is held against its parent on: real ones where there are any."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from deploykit import examples
from deploykit.artifact import Artifact
from deploykit.errors import DeploykitError, UsageError
from deploykit.quantize._ranges import ranges_of
from deploykit.runtime import session
from deploykit.types import BATCH, TIME, DimRange, Metric, ValueRange, dynamic_dims, noise

if TYPE_CHECKING:
    import onnx

    from deploykit.types import Array, ModelSpec, Sampler

# One size for all sets, so that their errors can be joined step by step; other sizes are `deploykit validate`'s work.
_BATCH, _OTHERS = 4, 100
#: Where a model cannot run that: sizes that others are made for, as multiples of a power of two, or samples of sound.
_MORE = (128, 64, 10, 400, 1000, 4096, 16_000)
#: Real inputs are taken whole, unless they hold more numbers than this.
_MOST_NUMBERS = 4_000_000
_SEEDS = (2000, 2001, 2002)


@dataclass(frozen=True)
class Inputs:
    """Sets of inputs by name and of one size, where they come from, and the model's own metric where it has one."""

    feeds: tuple[Mapping[str, Array], ...]
    told: str
    metric: Metric | None = None


def gather(
    source: Artifact,
    model: onnx.ModelProto,
    calibration: Path | None,
    example: str | None = None,
    metric_at: str | None = None,
) -> Inputs:
    """Inputs for ``source``: the file's, else the example's, else the model's own sample, else seeded noise.

    The metric is the user's own, which ``metric_at`` names, else the model's.

    Raises:
        UsageError: the calibration file cannot be read or does not fit, or neither does what the example returns; or
            the metric cannot be found.
        ModelError: the example fails.
    """
    spec, why = _spec(source)
    ranges: Mapping[str, ValueRange] = ranges_of(model, source.inputs) | dict(spec.ranges if spec else {})
    metric = spec.metric if spec else None
    if metric_at is not None:
        metric = _users_metric(metric_at, calibration, spec)
    if calibration is not None or example is not None:
        told, arrays = _given(source, calibration, example)
        sample = examples.sample(told, source.inputs, arrays, ranges)
        sizes = _whole(source, arrays)
        return Inputs(tuple(sample(seed, **sizes) for seed in _SEEDS), told, metric)
    if spec is not None and (spec.sample is not None or spec.ranges):
        told = "the model's own sample" if spec.has_own_sample else "seeded noise within the model's ranges"
        return Inputs(_first_that_runs(source, model, spec.feeds), told, metric)

    def drawn(seed: int, **sizes: int) -> dict[str, Array]:
        return noise(source.inputs, seed, sizes, ranges)

    unknown = [one.name for one in source.inputs if not one.dtype.startswith("float") and one.name not in ranges]
    besides = f" (0 and 1 for {', '.join(unknown)}, of which nothing is known)" if unknown else ""
    told = f"seeded noise{besides}, since there is no --calibration or --example and {why.rstrip('.')}"
    return Inputs(_first_that_runs(source, model, drawn), told, metric)


def _users_metric(named: str, calibration: Path | None, spec: ModelSpec | None) -> Metric:
    from deploykit import given
    from deploykit.data import everything

    arrays = None if calibration is None else lambda: everything(calibration)
    found = given.metric(named, arrays, "give them with --calibration FILE.npz")
    return found if spec is None else given.for_streams(found, spec)


def _given(source: Artifact, calibration: Path | None, example: str | None) -> tuple[str, dict[str, Array]]:
    """Real inputs, and where they come from."""
    import numpy as np

    if calibration is not None:
        from deploykit.data import DataFile

        told, arrays = str(calibration), DataFile(calibration, source.inputs).whole()
    else:
        from deploykit import loading

        told = f"the inputs of {example}"
        arrays = examples.arrays(loading.run_example(str(example)), source.inputs, told)
    for name, array in arrays.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise UsageError(f"{told} holds NaN or Inf in {name!r}: give sound inputs.")
    return told, arrays


def _spec(source: Artifact) -> tuple[ModelSpec | None, str]:
    """The PyTorch model that ``source`` was exported from, or why there is none."""
    if source.model is None:
        return None, "the file names no PyTorch model"
    from deploykit import loading

    try:
        return loading.load(source.model), "the model has no sample"
    except DeploykitError as error:
        return None, str(error)


def _whole(source: Artifact, arrays: Mapping[str, Array]) -> dict[str, int]:
    """Sizes of real inputs: a few rows and all steps, or as many as are not too much."""
    sizes: dict[str, int] = {}
    for spec in source.inputs:
        for dim, size in zip(spec.dims, arrays[spec.name].shape, strict=True):
            if isinstance(dim, str):
                sizes[dim] = min(_BATCH, size) if dim == BATCH else size
    numbers = max((math.prod(spec.shape(sizes)) for spec in source.inputs), default=0)
    if TIME in sizes and numbers > _MOST_NUMBERS:
        sizes[TIME] = max(_OTHERS, sizes[TIME] * _MOST_NUMBERS // numbers)
    return {name: source.dims.get(name, DimRange()).clamp(size) for name, size in sizes.items()}


def _first_that_runs(source: Artifact, model: onnx.ModelProto, sample: Sampler) -> tuple[Mapping[str, Array], ...]:
    """Sets of the usual size, or of the first of some others that the float model can run."""
    opened = session(model.SerializeToString())
    usual = _sizes(source, _OTHERS)
    for others in (_OTHERS, *_MORE):
        sizes = _sizes(source, others)
        # onnxruntime's exceptions have no common base of their own below Exception; the gate tells what it says.
        with contextlib.suppress(Exception):
            opened.run(None, dict(sample(_SEEDS[0], **sizes)))
            usual = sizes
            break
    return tuple(sample(seed, **usual) for seed in _SEEDS)


def _sizes(source: Artifact, others: int) -> dict[str, int]:
    sizes = {name: _BATCH if name == BATCH else others for name in dynamic_dims(source.inputs)}
    return {name: source.dims.get(name, DimRange()).clamp(size) for name, size in sizes.items()}
