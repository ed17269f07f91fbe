"""torch.compile of the model on the CPU, by Inductor.

Recurrent layers stay what they are: torch.compile skips a model that has one altogether, and told to take it, unrolls
it step by step, which takes minutes for a hundred steps and is done again for every length. So the layers run PyTorch's
own kernels here and what lies around them is compiled, and the row says so. The first inference compiles; so may later
ones at other sizes (1 is a size of its own to it). The bench times neither: each size is warmed up before.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path
from shutil import which
from typing import TYPE_CHECKING, Any

from deploykit.artifact import Artifact
from deploykit.backends import Backend, Runner, RunOptions
from deploykit.backends.torch import TorchRunner, loaded
from deploykit.errors import BackendUnavailableError

if TYPE_CHECKING:
    from torch import nn

    from deploykit.types import Array, Feeds, ModelSpec

# Beyond so many variants of one function torch.compile would run it uncompiled without a word: here that is a failure.
_VARIANTS = 64


class TorchCompileRunner(TorchRunner):
    """Compiles in its first inference at a size it has no code for. Counts what the compiler was given."""

    who = "the compiled model"

    def __init__(self, spec: ModelSpec, options: RunOptions) -> None:
        super().__init__(spec, options)
        _configure()
        plain = _plain(spec)
        self._graphs = 0
        self._kept = _leave_recurrent(plain)
        # In place, so that a spec's own way of calling its module is left as it is.
        plain.compile(backend=self._compile, dynamic=True)

    def infer(self, feeds: Feeds) -> dict[str, Array]:
        outputs = super().infer(feeds)
        if self._graphs == 0:
            raise BackendUnavailableError(
                "torch.compile compiles nothing of this model: there is nothing in it besides recurrent layers."
            )
        return outputs

    def _compile(self, graph: Any, inputs: list[Any]) -> Any:
        from torch._dynamo import lookup_backend

        self._graphs += 1
        kept = f" around {', '.join(self._kept)}, which PyTorch's own kernels run" if self._kept else ""
        self.notes = (f"{self._graphs} graphs were compiled for the sizes that it ran{kept}.",)
        return lookup_backend("inductor")(graph, inputs)


class TorchCompileBackend(Backend):
    """Not in the default set: compiling takes longer than all the rest of a bench."""

    accepts = frozenset({"torch"})
    summary = "torch.compile; recurrent layers keep PyTorch's kernels"

    def available(self) -> str | None:
        if find_spec("torch") is None:
            return "torch is not installed: run pip install torch."
        compiler = _compiler()
        if which(compiler) is None:
            return f"torch.compile needs a C++ compiler and there is no {compiler}: install one, or set CXX."
        # Inductor's kernels are Python modules.
        if not any(Path(sysconfig.get_path(kind), "Python.h").is_file() for kind in ("include", "platinclude")):
            return "torch.compile needs Python.h: install Python's headers (python3-dev)."
        return None

    def open(self, artifact: Artifact, options: RunOptions) -> Runner:
        reason = self.available()
        if reason is not None:
            raise BackendUnavailableError(reason)
        return TorchCompileRunner(loaded(artifact), options)


def _compiler() -> str:
    """What Inductor calls: the variable may hold arguments too."""
    default = "clang++" if sys.platform == "darwin" else "cl" if sys.platform == "win32" else "g++"
    return (os.environ.get("CXX", "").split() or [default])[0]


def _configure() -> None:
    import torch._dynamo.config
    import torch._inductor.config

    wanted: dict[str, int | bool] = {
        "recompile_limit": _VARIANTS,
        "fail_on_recompile_limit_hit": True,
        "allow_rnn": True,  # without it, torch.compile skips whatever function holds a recurrent layer
        "suppress_errors": False,
    }
    for name, value in wanted.items():
        if hasattr(torch._dynamo.config, name):  # not every release has all of them
            setattr(torch._dynamo.config, name, value)
    # In this process: a pool of compiling processes would stay, and be there while others are timed.
    torch._inductor.config.compile_threads = 1


def _plain(spec: ModelSpec) -> nn.Module:
    """The module to compile: of a streaming model the one inside, as the states are passed in from outside of it."""
    plain: ModelSpec = getattr(spec.module, "plain", spec)
    return plain.module


def _leave_recurrent(module: nn.Module) -> list[str]:
    """Keep the compiler out of each recurrent layer; returns their names."""
    import torch
    from torch import nn

    kept = []
    for name, layer in module.named_modules():
        if isinstance(layer, nn.RNNBase):
            layer.forward = torch.compiler.disable(layer.forward)  # type: ignore[no-untyped-call]
            kept.append(name or type(layer).__name__)
    return kept


BACKEND = TorchCompileBackend()
