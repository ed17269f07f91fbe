"""Which sizes are run: those asked for, those that every check adds, and their limits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from deploykit.bench.worker import Description
from deploykit.errors import UsageError
from deploykit.types import BATCH, TIME, DimRange

DEFAULT_BATCH, DEFAULT_TIME = 1, 100
#: The size of a dynamic dim that is neither the batch nor the time, moved into its range.
DEFAULT_OTHER = 16
#: (batch, time) pairs that every model is checked at, beside those asked for: one step, a few, more than 100.
EXTRA = ((1, 1), (3, 7), (2, 137))


@dataclass(frozen=True)
class Shape:
    """One (batch, time) pair; None for a dim that the model does not have."""

    batch: int | None
    time: int | None

    def __str__(self) -> str:
        named = ((BATCH, self.batch), (TIME, self.time))
        return ", ".join(f"{name} {size}" for name, size in named if size is not None) or "its fixed sizes"


def sizes(shape: Shape, description: Description, **changed: int) -> dict[str, int]:
    """The size of every dynamic dim at ``shape``, some of them ``changed``."""
    found = {BATCH: shape.batch, TIME: shape.time, **changed}
    result = {}
    for dim in description.dynamic:
        size = found.get(dim)
        result[dim] = limits(description, dim).clamp(DEFAULT_OTHER) if size is None else size
    return result


def requested(
    description: Description,
    batches: Sequence[int] | None,
    times: Sequence[int] | None,
    *,
    default_batches: Sequence[int] = (DEFAULT_BATCH,),
    default_time: int = DEFAULT_TIME,
) -> tuple[Shape, ...]:
    """Every pair of the sizes asked for; None asks for the defaults, moved into the dim's range.

    Raises:
        UsageError: a size was asked for and is outside the dim's range, or the model has no such dynamic dim.
    """
    return tuple(
        Shape(batch, time)
        for batch in _asked(description, BATCH, batches, default_batches)
        for time in _asked(description, TIME, times, (default_time,))
    )


def checked(description: Description, asked: Sequence[Shape]) -> tuple[Shape, ...]:
    """The shapes that accuracy is checked at: those asked for, and ``EXTRA`` moved into the model's ranges."""
    extra = (Shape(_moved(description, BATCH, batch), _moved(description, TIME, time)) for batch, time in EXTRA)
    return tuple(dict.fromkeys((*asked, *extra)))


def other_size(description: Description, dim: str, size: int) -> int | None:
    """Another size that ``dim`` may take, near ``size`` and not much larger; None where it is fixed."""
    if dim not in description.dynamic:
        return None
    bounds = limits(description, dim)
    candidates = (size // 2, size * 2, size + 1, size - 1, bounds.low)
    return next((other for other in candidates if other != size and bounds.low <= other <= bounds.high), None)


def limits(description: Description, dim: str) -> DimRange:
    """The range of a dynamic dim."""
    return description.dims.get(dim, DimRange())


def _moved(description: Description, dim: str, size: int) -> int | None:
    return limits(description, dim).clamp(size) if dim in description.dynamic else None


def _asked(
    description: Description, dim: str, asked: Sequence[int] | None, defaults: Sequence[int]
) -> tuple[int | None, ...]:
    if asked is None:
        return tuple(dict.fromkeys(_moved(description, dim, default) for default in defaults))
    if not asked:
        raise UsageError(f"no {dim} size was given: name at least one.")
    bounds = limits(description, dim)
    for size in asked:
        if dim not in description.dynamic:
            raise UsageError(f"the model has no dynamic dim {dim!r}: leave --{dim} out.")
        if not bounds.low <= size <= bounds.high:
            raise UsageError(f"--{dim} {size} is outside the model's range {bounds.low} to {bounds.high} for {dim!r}.")
    return tuple(dict.fromkeys(asked))
