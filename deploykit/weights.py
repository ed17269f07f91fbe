"""Weights files: safetensors, or pickles of plain tensors. A pickle that wants to run code is refused unread."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit.errors import WeightsError

if TYPE_CHECKING:
    from torch import Tensor, nn

# Where training scripts put the state dict that is meant, should there be others (averaged weights, say) beside it.
_USUAL = ("state_dict", "model_state_dict", "model")
# What wrappers put before every key: DataParallel and torch.compile.
_PREFIXES = ("module.", "_orig_mod.")


def read_state(path: Path) -> dict[str, Tensor]:
    """The state dict in ``path``: safetensors, or whatever ``torch.load(weights_only=True)`` accepts.

    A checkpoint that holds a dict of named tensors is unwrapped, and the prefixes that
    DataParallel and torch.compile put before every key are taken off.

    Raises:
        WeightsError: the file is missing or damaged, holds no tensors, or is a pickle that wants to run code.
    """
    if not path.is_file():
        raise WeightsError(f"no weights file at {path}: check the path given with --weights.")
    state = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    nested = {key: value for key, value in state.items() if _tensors(value)} if isinstance(state, Mapping) else {}
    nested = next(({key: nested[key]} for key in _USUAL if key in nested), nested)
    if len(nested) > 1:
        named = ", ".join(map(str, nested))
        raise WeightsError(f"{path} holds several state dicts ({named}): save the one that is meant by itself.")
    tensors = _tensors(next(iter(nested.values()), state))
    if not tensors:
        raise WeightsError(f"{path} holds no tensors by name: save it with torch.save(model.state_dict(), ...).")
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def fit(module: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Load ``state`` into ``module``; every key must be there, with its shape, and no other.

    Raises:
        WeightsError: a key is missing, unexpected, of another shape, or holds NaN or Inf; the message names the keys.
    """
    import torch

    expected = module.state_dict()
    problems = [
        _listed("missing", sorted(expected.keys() - state.keys())),
        _listed("unexpected", sorted(state.keys() - expected.keys())),
        _listed(
            "of another shape",
            [
                f"{name} {tuple(state[name].shape)} for {tuple(tensor.shape)}"
                for name, tensor in expected.items()
                if name in state and state[name].shape != tensor.shape
            ],
        ),
    ]
    if any(problems):
        told = "; ".join(filter(None, problems))
        raise WeightsError(f"{path} does not fit {type(module).__name__}: {told}.")
    parameters = {name for name, _ in module.named_parameters()}  # in a buffer -inf may be a mask
    broken = [name for name, tensor in state.items() if name in parameters and not torch.isfinite(tensor).all()]
    if broken:
        raise WeightsError(f"{path} holds NaN or Inf in {_first(broken)}: train or save the model again.")
    module.load_state_dict(state)


def _read_safetensors(path: Path) -> Any:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} is no readable safetensors file: {error}.") from error


def _read_pickle(path: Path) -> Any:
    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path} is refused, and nothing of it was run: it is damaged, or a pickle of more than plain tensors "
            f"({_refusal(str(error))}); save it again as torch.save(model.state_dict(), ...) or as safetensors."
        ) from error
    # torch.load meets a damaged file with whatever its zip and pickle readers happen to raise.
    except Exception as error:
        raise WeightsError(f"{path} is no readable weights file: {_line(error)}.") from error


def _refusal(text: str) -> str:
    """What torch's unpickler stumbled over, out of its advice on how to run the pickle all the same."""
    match = re.search(r"GLOBAL [\w.]+", text) or re.search(r"Unsupported [\w ]+", text)
    return match[0].strip() if match else text.strip().split("\n", 1)[0].rstrip(".")


def _tensors(state: object) -> dict[str, Tensor]:
    import torch

    if not isinstance(state, Mapping):
        return {}
    return {str(name): value for name, value in state.items() if isinstance(value, torch.Tensor)}


def _listed(what: str, names: list[str]) -> str:
    return f"{what}: {_first(names)}" if names else ""


def _first(names: list[str], count: int = 4) -> str:
    rest = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + rest


def _line(error: Exception) -> str:
    """The first sentence of what a reader said, with the kind of error, which alone often says it."""
    said = str(error).strip().split("\n", 1)[0].split(". ", 1)[0].rstrip(".")
    return f"{type(error).__name__}: {said}" if said else type(error).__name__
