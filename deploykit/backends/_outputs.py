"""What a module returns, flattened and named: the one rule that export and the PyTorch reference share."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from deploykit.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor

    from deploykit.types import ModelSpec


def flatten_outputs(value: Any) -> list[Tensor]:
    """All tensors in nested tuples, lists, dicts and dataclasses, depth first and in order; None is passed over.

    Raises:
        ModelError: something else than tensors is in there.
    """
    return [tensor for _, tensor in _leaves(value, ())]


def named_outputs(spec: ModelSpec, value: Any) -> dict[str, Tensor]:
    """The tensors that the model returned, by name: the spec's names, else made from where each one was.

    The keys of dicts and the fields of named tuples and dataclasses are names; a tensor that lies in plain tuples alone
    is ``output``, or ``output_0``, ``output_1`` and on by its place among all.

    Raises:
        ModelError: something else than tensors was returned, or another number than the spec names.
    """
    leaves = list(_leaves(value, ()))
    if not leaves:
        raise ModelError(f"{spec.name} returns no tensors: there is nothing to compare.")
    tensors = [tensor for _, tensor in leaves]
    if spec.outputs:
        if len(spec.outputs) != len(tensors):
            raise ModelError(
                f"{spec.name} returns {len(tensors)} outputs, its spec names {len(spec.outputs)}: make them agree."
            )
        names = [output.name for output in spec.outputs]
    else:
        names = [_name(path, index, len(leaves)) for index, (path, _) in enumerate(leaves)]
        names = _distinct(names, {tensor.name for tensor in spec.inputs})
    return dict(zip(names, tensors, strict=True))


def _leaves(value: Any, path: tuple[str | int, ...]) -> Iterator[tuple[tuple[str | int, ...], Tensor]]:
    import torch

    if value is None:
        return
    if isinstance(value, torch.Tensor):
        yield path, value
    elif isinstance(value, torch.nn.utils.rnn.PackedSequence):
        raise ModelError("the model returns a PackedSequence: return what pad_packed_sequence makes of it.")
    elif (parts := _parts(value)) is not None:
        for key, part in parts:
            yield from _leaves(part, (*path, key))
    else:
        raise ModelError(
            f"the model returns a {type(value).__name__}: an output must be a tensor, or tuples, lists, dicts and "
            "dataclasses of them."
        )


def _parts(value: Any) -> list[tuple[str | int, Any]] | None:
    if isinstance(value, Mapping):
        return [(str(key), part) for key, part in value.items()]
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return list(zip(value._fields, value, strict=True))
    if isinstance(value, (tuple, list)):
        return list(enumerate(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [(one.name, getattr(value, one.name)) for one in dataclasses.fields(value)]
    return None


def _name(path: tuple[str | int, ...], index: int, count: int) -> str:
    named = next((at for at, key in enumerate(path) if isinstance(key, str)), None)
    if named is not None:
        return "_".join(map(str, path[named:]))
    return "output" if count == 1 else f"output_{index}"


def _distinct(names: list[str], taken: set[str]) -> list[str]:
    """No two alike, and none that an input has, which a graph does not allow."""
    found: list[str] = []
    for name in names:
        candidate, number = name if name not in taken else f"{name}_out", 1
        while candidate in taken or candidate in found:
            number += 1
            candidate = f"{name}_{number}"
        found.append(candidate)
    return found
