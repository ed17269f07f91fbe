"""What a run knows of the model, all of it learnt from the reference: specs, inputs, and the axes of its outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from deploykit.bench.accuracy import Axes, Outputs, not_finite
from deploykit.bench.seat import Seat
from deploykit.bench.settings import Settings
from deploykit.bench.shapes import Shape, other_size, sizes
from deploykit.bench.worker import Description
from deploykit.data import DataFile
from deploykit.errors import BackendFailedError, ModelError, UnknownNameError
from deploykit.given import is_function
from deploykit.states import carried
from deploykit.types import BATCH, TIME

if TYPE_CHECKING:
    from deploykit.types import Array

    Sample = Callable[[int, Mapping[str, int]], dict[str, Array]]


@dataclass(frozen=True)
class Model:
    """The reference and what it told. ``sample(seed, sizes)`` gives inputs: real data, or the model's own sample.

    ``carried``: the output that each state's input is taken from, of a model that streams.
    """

    reference: Seat
    description: Description
    sample: Sample
    batch_axes: Axes
    time_axes: Axes
    carried: Mapping[str, str] = field(default_factory=dict)

    def feeds(self, seed: int, shape: Shape) -> dict[str, Array]:
        """Inputs at ``shape``."""
        return self.sample(seed, sizes(shape, self.description))

    def expected(self, feeds: Mapping[str, Array], shape: Shape) -> Outputs:
        """The reference's outputs.

        Raises:
            BackendFailedError: the reference cannot run these inputs.
            ModelError: it returns NaN or Inf, so that nothing can be held against it.
        """
        return _finite(self.reference.infer(feeds), shape)


def learn(
    reference: Seat, settings: Settings, asked: Callable[[Description], Sequence[Shape]]
) -> tuple[Model, tuple[Shape, ...]]:
    """Ask the opened reference all that a run needs, and which shapes it shall run.

    Raises:
        UsageError: the sizes asked for, the data or the outputs of tolerances do not fit the model.
        BackendFailedError: the reference fails at the first of those shapes.
    """
    data = None if settings.data is None else str(settings.data)
    if data is not None or settings.metric is not None:
        reference.connected.call("given", data, settings.metric)
    description: Description = reference.connected.call("describe")
    shapes = tuple(asked(description))
    sample = _sample(reference, settings, description)
    first = sizes(shapes[0], description)
    outputs = _finite(reference.infer(sample(settings.seed, first)), shapes[0])
    for name in settings.overrides.outputs:
        if name not in outputs:
            raise UnknownNameError("output in --tolerance", name, outputs)
    batch_axes, time_axes = (
        _axes(reference, sample, description, first, dim, outputs, settings.seed) for dim in (BATCH, TIME)
    )
    pairs = carried((tensor.name for tensor in description.inputs), outputs)
    return Model(reference, description, sample, batch_axes, time_axes, pairs), shapes


def _sample(reference: Seat, settings: Settings, description: Description) -> Sample:
    if settings.data is not None and not is_function(str(settings.data)):
        return DataFile(settings.data, description.inputs, description.ranges).feeds

    def sample(seed: int, wanted: Mapping[str, int]) -> dict[str, Array]:
        feeds: dict[str, Array] = reference.connected.call("feeds", seed, dict(wanted))
        return feeds

    return sample


def _axes(
    reference: Seat,
    sample: Sample,
    description: Description,
    first: Mapping[str, int],
    dim: str,
    outputs: Outputs,
    seed: int,
) -> Axes:
    """The axis of each output that follows ``dim``, seen by running the reference at another size of it."""
    other = other_size(description, dim, first[dim]) if dim in first else None
    if other is None:
        return {}
    try:
        changed = reference.infer(sample(seed, {**first, dim: other}))
    except BackendFailedError:
        if not reference.connected.alive:
            raise
        return {}  # a size that the model cannot do: then nothing is known, and nothing is claimed
    found = {}
    for name, value in outputs.items():
        if name not in changed or changed[name].ndim != value.ndim:
            continue
        moved = [axis for axis, (a, b) in enumerate(zip(value.shape, changed[name].shape, strict=True)) if a != b]
        if len(moved) == 1:
            found[name] = moved[0]
    return found


def _finite(outputs: Outputs, shape: Shape) -> Outputs:
    for name, value in outputs.items():
        if not_finite(value):
            raise ModelError(
                f"the reference itself returns NaN or Inf in its output {name!r} at {shape}: "
                "check the weights and the inputs."
            )
    return outputs
