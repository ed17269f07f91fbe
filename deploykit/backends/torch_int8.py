"""PyTorch's own dynamic int8: torch.ao.quantization.quantize_dynamic, what a user of PyTorch alone would reach for."""

from __future__ import annotations

import warnings
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit.artifact import Artifact
from deploykit.backends import Backend, Runner, RunOptions
from deploykit.backends.torch import TorchRunner, loaded
from deploykit.errors import BackendFailedError, BackendUnavailableError, first_line

if TYPE_CHECKING:
    from torch import nn

    from deploykit.types import ModelSpec

_GONE = (
    "this release of torch has no torch.ao.quantization.quantize_dynamic (deprecated, and gone in some): use another."
)
_NOTHING = "PyTorch's dynamic int8 takes LSTM, GRU, cells (with biases) and Linear, and this model has none of them."


class TorchInt8Runner(TorchRunner):
    """Runs the quantized module; says which layers with weights stayed in float."""

    who = "the int8 PyTorch model"

    def __init__(self, spec: ModelSpec, options: RunOptions, left: list[str]) -> None:
        super().__init__(spec, options)
        self.size_bytes = _saved_size(spec.module)
        self.notes = (f"left in float: {', '.join(left)}.",) if left else ()


class TorchInt8Backend(Backend):
    """Takes the PyTorch model and quantizes it on opening; weights int8, activations quantized as they come."""

    accepts = frozenset({"torch"})
    summary = "PyTorch's dynamic int8 (torch.ao)"
    precision = "int8"

    def available(self) -> str | None:
        torch = find_spec("torch")
        if torch is None:
            return "torch is not installed: run pip install torch."
        # Looked for as a file: finding a module inside torch would import torch.
        folders = torch.submodule_search_locations or ()
        there = any(Path(folder, "ao", "quantization", "quantize.py").is_file() for folder in folders)
        return None if there else _GONE

    def open(self, artifact: Artifact, options: RunOptions) -> Runner:
        reason = self.available()
        if reason is not None:
            raise BackendUnavailableError(reason)
        spec, left = _quantized(loaded(artifact))
        return TorchInt8Runner(spec, options, left)


def _quantized(spec: ModelSpec) -> tuple[ModelSpec, list[str]]:
    """``spec`` with an int8 module, and the layers of it that have weights and stayed in float."""
    if hasattr(spec.module, "plain"):
        raise BackendUnavailableError(
            "PyTorch's int8 layers take no states from outside: a streaming model runs in other backends."
        )
    root = _root(spec.module)
    fitting = [name for name, layer in root.named_modules() if _fits(layer)]
    if not fitting:
        raise BackendUnavailableError(_NOTHING)
    try:
        module = _quantize(root, fitting)
    except ImportError as error:
        raise BackendUnavailableError(_GONE) from error
    except Exception as error:
        raise BackendFailedError(f"PyTorch cannot quantize this model: {first_line(error)}.") from error
    left = [
        f"{name.removeprefix('model.')} ({type(layer).__name__})"
        for name, layer in root.named_modules()
        if name not in fitting and next(layer.parameters(recurse=False), None) is not None
    ]
    call = spec.call
    run = None if call is None else lambda module, tensors: call(module.model, tensors)
    return replace(spec, module=module, call=run), left


def _root(module: nn.Module) -> nn.Module:
    """A module around it: quantize_dynamic replaces children, so that a model that is one layer would stay float."""
    from torch import nn

    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = module

        def forward(self, *inputs: Any) -> Any:
            return self.model(*inputs)

    return Root().eval()


def _fits(layer: nn.Module) -> bool:
    """Whether quantize_dynamic takes it and computes the same: it ignores ``proj_size``, and refuses missing biases."""
    from torch import nn

    # By exact class, as a subclass may compute something else.
    if type(layer) is nn.Linear:
        return True
    if type(layer) in (nn.LSTM, nn.GRU):
        return bool(layer.bias) and not layer.proj_size
    return type(layer) in (nn.LSTMCell, nn.GRUCell, nn.RNNCell) and bool(layer.bias)


def _quantize(root: nn.Module, names: list[str]) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that torch.ao is deprecated, once a layer
        from torch.ao.quantization import default_dynamic_qconfig, quantize_dynamic

        made: nn.Module = quantize_dynamic(root, dict.fromkeys(names, default_dynamic_qconfig), inplace=False)
    return made


def _saved_size(module: nn.Module) -> int:
    """Bytes of the saved state dict: packed int8 weights tell no size of their own."""
    import io

    import torch

    buffer = io.BytesIO()
    torch.save(module.state_dict(), buffer)
    return buffer.getbuffer().nbytes


BACKEND = TorchInt8Backend()
