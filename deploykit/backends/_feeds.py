"""Checks inputs against their specs, in one sentence each, before a backend sees them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from deploykit.errors import BackendFailedError

if TYPE_CHECKING:
    from deploykit.types import Array, Feeds, TensorSpec


def check_feeds(feeds: Feeds, inputs: Sequence[TensorSpec]) -> dict[str, int]:
    """Bind the dynamic dims of ``inputs`` to the sizes found in ``feeds`` and return them by name.

    Raises:
        BackendFailedError: a name is missing or unknown, a dtype or a static dim differs, or one name has two sizes.
    """
    check_names(feeds, [spec.name for spec in inputs])
    sizes: dict[str, int] = {}
    for spec in inputs:
        _check_array(feeds[spec.name], spec, sizes)
    return sizes


def check_names(feeds: Feeds, names: Sequence[str]) -> None:
    """Refuse feeds that are not exactly the named inputs.

    Raises:
        BackendFailedError: a name is missing or unknown.
    """
    missing = [name for name in names if name not in feeds]
    if missing:
        raise BackendFailedError(f"the input {missing[0]!r} is missing: the model takes {', '.join(names)}.")
    unknown = [name for name in feeds if name not in names]
    if unknown:
        raise BackendFailedError(f"the model has no input {unknown[0]!r}: it takes {', '.join(names)}.")


def _check_array(array: Array, spec: TensorSpec, sizes: dict[str, int]) -> None:
    found = f"{array.dtype}[{','.join(map(str, array.shape))}]"
    if str(array.dtype) != spec.dtype or array.ndim != len(spec.dims):
        raise BackendFailedError(f"the input {spec.name!r} is {found}, and the model takes {spec}.")
    for size, dim in zip(array.shape, spec.dims, strict=True):
        expected = sizes.setdefault(dim, size) if isinstance(dim, str) else dim
        if size != expected:
            raise BackendFailedError(
                f"the input {spec.name!r} is {found}, where the model takes {spec} with {dim}={expected}."
            )
