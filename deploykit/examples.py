"""Real inputs of a model from a user's function, and how they are handed to it: nested, by keyword, with constants."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deploykit.data import Recorded
from deploykit.errors import UsageError
from deploykit.types import DTYPES, TensorSpec, ValueRange

if TYPE_CHECKING:
    from torch import Tensor, nn

    from deploykit.types import Array, Call


@dataclass(frozen=True)
class Example:
    """The inputs of one call, flattened: their specs with every dim static, their values, and the way back."""

    inputs: tuple[TensorSpec, ...]
    values: Mapping[str, Array]
    call: Call


@dataclass(frozen=True)
class _Slot:
    """Stands for the input at ``index`` in a template of arguments."""

    index: int


def example(value: Any, module: nn.Module, told: str) -> Example:
    """What the function ``told`` returned for ``module``: its positional arguments, or its arguments by name.

    Raises:
        UsageError: it holds no tensors, or something that is neither a tensor nor a plain constant.
    """
    if not isinstance(value, (tuple, list, Mapping)):
        value = (value,)
    leaves: list[tuple[str, Array]] = []
    if isinstance(value, Mapping):
        keywords = {str(name): _template(part, str(name), leaves, told) for name, part in value.items()}
        positional: tuple[Any, ...] = ()
    else:
        names = _argument_names(module, len(value))
        positional = tuple(_template(part, name, leaves, told) for name, part in zip(names, value, strict=True))
        keywords = {}
    if not leaves:
        raise UsageError(f"{told} returned no tensors: it must return the model's inputs.")
    names = [name for name, _ in leaves]
    if len(set(names)) < len(names):
        raise UsageError(f"two inputs that {told} returned have one name: {', '.join(names)}.")
    inputs = tuple(TensorSpec(name, str(array.dtype), tuple(array.shape)) for name, array in leaves)
    return Example(inputs, dict(leaves), _calling(positional, keywords))


def arrays(value: Any, inputs: Sequence[TensorSpec], told: str) -> dict[str, Array]:
    """What the function ``told`` returned for a graph: its inputs in their order, or by name.

    Raises:
        UsageError: there are not as many tensors as inputs, or one has another name.
    """
    leaves: list[tuple[str, Array]] = []
    if isinstance(value, Mapping):
        for name, part in value.items():
            _template(part, str(name), leaves, told)
    else:
        for index, part in enumerate(value if isinstance(value, (tuple, list)) else (value,)):
            _template(part, f"input_{index}", leaves, told)
        if len(leaves) == len(inputs):
            leaves = [(spec.name, array) for spec, (_, array) in zip(inputs, leaves, strict=True)]
    found = dict(leaves)
    require_all(found, inputs, told)
    return {spec.name: found[spec.name] for spec in inputs}


def require_all(found: Mapping[str, Array], inputs: Sequence[TensorSpec], told: str) -> None:
    """Refuse what the function ``told`` returned if an input is not among it.

    Raises:
        UsageError: names what was returned, and what the model takes.
    """
    missing = [str(spec) for spec in inputs if spec.name not in found]
    if missing:
        raise UsageError(
            f"{told} returned {', '.join(found) or 'no tensors'}, and the model takes {', '.join(missing)}."
        )


def sample(
    told: str, inputs: Sequence[TensorSpec], values: Mapping[str, Array], ranges: Mapping[str, ValueRange]
) -> Callable[..., dict[str, Array]]:
    """A sample of ``inputs`` cut from ``values``, which ``told`` gave; lengths never beyond the piece cut."""
    recorded = Recorded(values, inputs, told, ranges)

    def cut(seed: int, **sizes: int) -> dict[str, Array]:
        return recorded.feeds(seed, sizes)

    return cut


def with_axes(inputs: Sequence[TensorSpec], axes: Sequence[str]) -> tuple[TensorSpec, ...]:
    """``inputs`` with dims named by texts like ``x=batch,time,_``, where ``_`` keeps the size.

    Raises:
        UsageError: a text has another form, names no input, or has not as many dims as the input.
    """
    if not axes:
        return tuple(inputs)
    found = {tensor.name: tensor for tensor in inputs}
    for text in axes:
        name, equals, dims = text.partition("=")
        tensor = found.get(name.strip())
        if not equals or tensor is None:
            raise UsageError(f"cannot read --dims {text!r}: write INPUT=batch,time,_ for one of {', '.join(found)}.")
        given = [part.strip() for part in dims.split(",")]
        if len(given) != len(tensor.dims) or not all(part == "_" or part.isidentifier() for part in given):
            raise UsageError(f"--dims {text!r} does not fit {tensor}: name each of its {len(tensor.dims)} dims, or _.")
        named = tuple(size if part == "_" else part for part, size in zip(given, tensor.dims, strict=True))
        found[tensor.name] = TensorSpec(tensor.name, tensor.dtype, named)
    return tuple(found.values())


def call_by_name(inputs: Sequence[TensorSpec], module: nn.Module) -> Call | None:
    """How ``module`` is called with inputs of these names; None for positionally, in their order.

    ``state.0`` and ``state.1`` are the tuple that the argument ``state`` takes, ``batch.text`` is the entry ``text`` of
    a dict. Where all names are parameters of ``forward``, they are handed over by name, in whatever order they come.
    """
    parameters = inspect.signature(module.forward).parameters
    tops = list(dict.fromkeys(tensor.name.split(".")[0] for tensor in inputs))
    by_name = all(
        top in parameters
        and parameters[top].kind in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        for top in tops
    )
    if not by_name and all("." not in tensor.name for tensor in inputs):
        return None
    slots: dict[str, Any] = {}
    for index, tensor in enumerate(inputs):
        _put(slots, tensor.name.split("."), _Slot(index))
    arguments = {top: _as_sequence(slots[top]) for top in tops}
    return _calling((), arguments) if by_name else _calling(tuple(arguments.values()), {})


def _put(slots: dict[str, Any], path: Sequence[str], slot: _Slot) -> None:
    if len(path) == 1:
        slots[path[0]] = slot
    else:
        _put(slots.setdefault(path[0], {}), path[1:], slot)


def _as_sequence(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    parts = {key: _as_sequence(part) for key, part in value.items()}
    return tuple(parts.values()) if all(key.isdecimal() for key in parts) else parts


def _calling(positional: tuple[Any, ...], keywords: Mapping[str, Any]) -> Call:
    def call(module: nn.Module, tensors: Sequence[Tensor]) -> Any:
        return module(*_filled(positional, tensors), **_filled(dict(keywords), tensors))

    return call


def _filled(template: Any, tensors: Sequence[Tensor]) -> Any:
    if isinstance(template, _Slot):
        return tensors[template.index]
    if isinstance(template, dict):
        return {key: _filled(part, tensors) for key, part in template.items()}
    if isinstance(template, (tuple, list)):
        return type(template)(_filled(part, tensors) for part in template)
    return template


def _template(value: Any, name: str, leaves: list[tuple[str, Array]], told: str) -> Any:
    import numpy as np
    import torch

    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray):
        if str(value.dtype) not in DTYPES:
            raise UsageError(f"{told} returned {name} as {value.dtype}: use one of {', '.join(DTYPES)}.")
        leaves.append((name, value))
        return _Slot(len(leaves) - 1)
    if isinstance(value, Mapping):
        return {key: _template(part, f"{name}_{key}", leaves, told) for key, part in value.items()}
    if isinstance(value, (tuple, list)):
        parts = [_template(part, f"{name}_{index}", leaves, told) for index, part in enumerate(value)]
        return parts if isinstance(value, list) else tuple(parts)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise UsageError(f"{told} returned a {type(value).__name__} as {name}: inputs are tensors and plain constants.")


def _argument_names(module: nn.Module, count: int) -> list[str]:
    names: list[str] = []
    for parameter in inspect.signature(module.forward).parameters.values():
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            names += [f"{parameter.name}_{index}" for index in range(count - len(names))]
        elif parameter.kind is not inspect.Parameter.VAR_KEYWORD:
            names.append(parameter.name)
    return [*names, *(f"input_{index}" for index in range(len(names), count))][:count]
