"""What a module returns, flattened and named: the one rule that export and the PyTorch reference share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from deploykit.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor

    from deploykit.types import ModelSpec


def flatten_outputs(value: Any) -> list[Tensor]:
    """All tensors in nested tuples, lists and dicts, depth first and in order; None is passed over.

    Raises:
        ModelError: something else than tensors is in there.
    """
    import torch

    if value is None:
        return []
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (tuple, list)):
        return [tensor for part in value for tensor in flatten_outputs(part)]
    raise ModelError(
        f"the model returns a {type(value).__name__}: an output must be a tensor, or tuples, lists and dicts of them."
    )


def output_names(spec: ModelSpec, count: int) -> tuple[str, ...]:
    """The names of ``count`` outputs: the spec's own, else ``output``, or ``output_0``, ``output_1`` and on.

    Raises:
        ModelError: the spec names another number of outputs than the model returns.
    """
    if not count:
        raise ModelError(f"{spec.name} returns no tensors: there is nothing to compare.")
    if spec.outputs:
        if len(spec.outputs) != count:
            raise ModelError(
                f"{spec.name} returns {count} outputs, its spec names {len(spec.outputs)}: make them agree."
            )
        return tuple(tensor.name for tensor in spec.outputs)
    return ("output",) if count == 1 else tuple(f"output_{index}" for index in range(count))
