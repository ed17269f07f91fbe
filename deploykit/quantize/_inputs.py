"""The inputs that a quantized artifact is held against its parent on: real ones where there are any."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from deploykit import examples
from deploykit.artifact import Artifact
from deploykit.errors import DeploykitError
from deploykit.quantize._ranges import ranges_of
from deploykit.types import DimRange, Metric, ValueRange, dynamic_dims, noise

if TYPE_CHECKING:
    import onnx

    from deploykit.types import Array, ModelSpec, Sampler

# One size for all sets, so that their errors can be joined step by step; other sizes are `deploykit validate`'s work.
_BATCH, _OTHERS = 4, 100
_SEEDS = (2000, 2001, 2002)


@dataclass(frozen=True)
class Inputs:
    """Sets of inputs by name and of one size, where they come from, and the model's own metric where it has one."""

    feeds: tuple[Mapping[str, Array], ...]
    told: str
    metric: Metric | None = None


def gather(source: Artifact, model: onnx.ModelProto, calibration: Path | None, example: str | None = None) -> Inputs:
    """Inputs for ``source``: the file's, else the example's, else the model's own sample, else seeded noise.

    Raises:
        UsageError: the calibration file cannot be read or does not fit, or neither does what the example returns.
        ModelError: the example fails.
    """
    spec, why = _spec(source)
    ranges: Mapping[str, ValueRange] = ranges_of(model, source.inputs) | dict(spec.ranges if spec else {})
    metric = spec.metric if spec else None
    if calibration is not None:
        from deploykit.data import DataFile

        recorded = DataFile(calibration, source.inputs).whole()
        return _sets(
            source, examples.sample(str(calibration), source.inputs, recorded, ranges), str(calibration), metric
        )
    if example is not None:
        from deploykit import loading

        given = examples.arrays(loading.run_example(example), source.inputs, example)
        told = f"the inputs of {example}"
        return _sets(source, examples.sample(told, source.inputs, given, ranges), told, metric)
    if spec is not None and (spec.sample is not None or spec.ranges):
        told = "the model's own sample" if spec.has_own_sample else "seeded noise within the model's ranges"
        return _sets(source, spec.feeds, told, metric)

    def drawn(seed: int, **sizes: int) -> dict[str, Array]:
        return noise(source.inputs, seed, sizes, ranges)

    told = f"seeded noise, since there is no --calibration or --example and {why.rstrip('.')}"
    return _sets(source, drawn, told)


def _spec(source: Artifact) -> tuple[ModelSpec | None, str]:
    """The PyTorch model that ``source`` was exported from, or why there is none."""
    if source.model is None:
        return None, "the file names no PyTorch model"
    from deploykit import loading

    try:
        return loading.load(source.model), "the model has no sample"
    except DeploykitError as error:
        return None, str(error)


def _sets(source: Artifact, sample: Sampler, told: str, metric: Metric | None = None) -> Inputs:
    sizes = _sizes(source)
    return Inputs(tuple(sample(seed, **sizes) for seed in _SEEDS), told, metric)


def _sizes(source: Artifact) -> dict[str, int]:
    sizes = {name: _BATCH if name == "batch" else _OTHERS for name in dynamic_dims(source.inputs)}
    return {name: source.dims.get(name, DimRange()).clamp(size) for name, size in sizes.items()}
