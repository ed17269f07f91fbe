"""Finds what an ONNX file cannot do and a trace would drop without a word: random draws, kept state, written inputs."""

from __future__ import annotations

import contextlib
import copy
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from deploykit.backends._outputs import named_outputs
from deploykit.errors import DeploykitError, ModelError, first_line
from deploykit.types import ModelSpec, unknown_inputs
from deploykit.watching import copied, watched

if TYPE_CHECKING:
    from deploykit.types import Array


def checked_outputs(spec: ModelSpec, feeds: Mapping[str, Array], other: Mapping[str, Array]) -> dict[str, Tensor]:
    """What the model answers to ``feeds``, by name, once it is sure that it answers to its inputs alone.

    It runs on copies, which leaves the module itself as it was; ``other`` are further inputs of the same sizes.

    Raises:
        ModelError: it fails, draws random numbers, keeps state from one call to the next, or writes into its inputs.
    """
    used, fresh = copied(spec), copied(spec)
    drawn = _Drawn()
    first = _run(used, feeds, seed=1, drawn=drawn)
    if trained := [name for name, part in used.module.named_modules() if part.training and _depends_on_mode(part)]:
        raise ModelError(
            f"{spec.name} puts {trained[0]} into training mode in its forward, where it does not compute what it was "
            "trained for: leave it in eval mode."
        )
    if not _same(first, _run(fresh, feeds, seed=2)):
        raise ModelError(
            f"{spec.name} draws random numbers{_at(drawn.modules)}, and an ONNX file would not: take them as an input, "
            "or switch them off in eval mode."
        )
    # `used` and `fresh` have each seen `feeds`; one that has seen nothing yet is the judge.
    unused = copied(spec)
    before = _attributes(unused.module)
    if unused.module is not spec.module and not _same(_run(used, other, seed=1), _run(unused, other, seed=1)):
        kept = _changed(before, _attributes(used.module))
        raise ModelError(
            f"{spec.name} keeps state from one call to the next{_at(kept)}, and an ONNX file cannot: make that state "
            "an input and an output of forward (--streaming does it for the states of recurrent layers)."
        )
    if unused.module is spec.module and not _same(first, _run(used, feeds, seed=1)):
        raise ModelError(
            f"{spec.name} keeps state from one call to the next, and an ONNX file cannot: make that state an input and "
            "an output of forward."
        )
    return first


@dataclass
class _Drawn:
    """Paths of the modules in whose own code the generator moved."""

    modules: list[str] = field(default_factory=list)


def _run(spec: ModelSpec, feeds: Mapping[str, Array], seed: int, drawn: _Drawn | None = None) -> dict[str, Tensor]:
    inputs = [torch.tensor(feeds[tensor.name]) for tensor in spec.inputs]
    try:
        with _seeded(seed), torch.no_grad(), _noting_draws(spec.module, drawn):
            outputs = {name: tensor.clone() for name, tensor in named_outputs(spec, spec.run(inputs)).items()}
    except DeploykitError:
        raise
    # The module is the user's own code: whatever it raises is the answer.
    except Exception as error:
        shapes = ", ".join(map(str, spec.inputs))
        while error.__cause__ is not None and isinstance(error.__cause__, Exception):
            error = error.__cause__
        unknown = unknown_inputs(spec)
        hint = f"; {', '.join(unknown)} held 0 and 1 only: give real values with --example" if unknown else ""
        raise ModelError(f"{spec.name} fails in PyTorch on the inputs {shapes}: {first_line(error)}{hint}.") from error
    for tensor, value in zip(spec.inputs, inputs, strict=True):
        if not np.array_equal(value.numpy(), feeds[tensor.name], equal_nan=value.is_floating_point()):
            raise ModelError(
                f"{spec.name} writes into its input {tensor.name}, and an ONNX file cannot: work on a clone of it."
            )
    return outputs


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """All three generators that a module may draw from, set to ``seed`` and put back afterwards."""
    python, numpy, pytorch = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(pytorch)


def _noting_draws(module: nn.Module, drawn: _Drawn | None) -> contextlib.AbstractContextManager[None]:
    if drawn is None:
        return contextlib.nullcontext()
    entered: list[Tensor] = []

    def leave(path: str) -> None:
        # Inner modules are left first, so the first name that is noted is the innermost.
        if not torch.equal(entered.pop(), torch.get_rng_state()):
            drawn.modules.append(path)

    return watched(module, lambda _: entered.append(torch.get_rng_state()), leave)


def _depends_on_mode(part: nn.Module) -> bool:
    return isinstance(part, (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd))


def _at(paths: Sequence[str]) -> str:
    return f" (in {paths[0]})" if paths and paths[0] else ""


def _same(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        one.shape == second[name].shape and torch.allclose(one, second[name], rtol=1e-4, atol=1e-5, equal_nan=True)
        for name, one in first.items()
    )


def _attributes(module: nn.Module) -> dict[str, Any]:
    """Everything that a module could keep something in, by path, as it is now."""
    found: dict[str, Any] = {}
    for path, part in module.named_modules():
        own = {name: value for name, value in vars(part).items() if not name.startswith("_")}
        for name, value in (own | dict(part._buffers)).items():
            found[f"{path}.{name}".lstrip(".")] = value.clone() if isinstance(value, Tensor) else copy.copy(value)
    return found


def _changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    return [name for name, value in after.items() if not _equal(before.get(name), value)]


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and bool(torch.equal(one, other))
    if isinstance(one, (tuple, list)) and isinstance(other, (tuple, list)):
        return len(one) == len(other) and all(_equal(*pair) for pair in zip(one, other, strict=True))
    if isinstance(one, (int, float, str, bool, type(None))) or isinstance(other, (int, float, str, bool, type(None))):
        return type(one) is type(other) and bool(one == other)
    return type(one) is type(other)
