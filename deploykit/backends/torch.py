"""The PyTorch model itself: the reference that every other backend is held against."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from deploykit.artifact import Artifact
from deploykit.backends import Backend, Runner, RunOptions
from deploykit.backends._feeds import check_feeds
from deploykit.backends._outputs import named_outputs
from deploykit.errors import BackendFailedError, DeploykitError, first_line

if TYPE_CHECKING:
    import torch

    from deploykit.types import Array, Feeds, ModelSpec


class TorchRunner(Runner):
    """Runs ``spec.module`` as it is. The thread counts are the whole process's, as PyTorch knows no others."""

    #: Who failed, in the sentence that says so.
    who = "the PyTorch model"

    def __init__(self, spec: ModelSpec, options: RunOptions) -> None:
        import torch

        torch.set_num_threads(options.threads)
        # One inference runs one operator at a time. PyTorch takes this number once in a process's life.
        with contextlib.suppress(RuntimeError):
            torch.set_num_interop_threads(1)
        self._spec: ModelSpec | None = spec

    @property
    def spec(self) -> ModelSpec:
        """What the model takes and is judged by; the harness asks the reference's runner for it."""
        if self._spec is None:
            raise BackendFailedError(f"{self.who} is closed: open it again.")
        return self._spec

    def infer(self, feeds: Feeds) -> dict[str, Array]:
        import torch

        check_feeds(feeds, self.spec.inputs)
        # torch.tensor copies, so that a module that works in place does not change its caller's arrays.
        outputs = self._run({name: torch.tensor(value) for name, value in feeds.items()})
        return {name: _array(name, tensor) for name, tensor in outputs.items()}

    def carry(self, pairs: Mapping[str, str]) -> Callable[[Feeds], dict[str, Array]]:
        """The states stay tensors."""
        import torch

        states: dict[str, torch.Tensor] = {}

        def step(feeds: Feeds) -> dict[str, Array]:
            if not states:
                check_feeds(feeds, self.spec.inputs)
            given = {name: torch.tensor(value) for name, value in feeds.items() if name not in states}
            outputs = self._run({**given, **states})
            # A copy, as in _array: the module may return a buffer of its own.
            states.update({name: outputs.pop(result).clone() for name, result in pairs.items()})
            return {name: _array(name, tensor) for name, tensor in outputs.items()}

        return step

    def _run(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        import torch

        spec = self.spec
        try:
            with torch.inference_mode():
                return named_outputs(spec, spec.run([inputs[tensor.name] for tensor in spec.inputs]))
        except DeploykitError:
            raise
        except Exception as error:
            raise BackendFailedError(f"{self.who} failed: {first_line(error)}.") from error

    def close(self) -> None:
        self._spec = None


class TorchBackend(Backend):
    """The reference. Denormals are left as PyTorch has them (kept): the report records it."""

    accepts = frozenset({"torch"})
    summary = "the PyTorch model itself: the reference"
    default = "always"

    def available(self) -> str | None:
        return None

    def open(self, artifact: Artifact, options: RunOptions) -> Runner:
        return TorchRunner(loaded(artifact), options)


def loaded(artifact: Artifact) -> ModelSpec:
    """The PyTorch model that the artifact stands for, built anew.

    Raises:
        BackendFailedError: the artifact does not say which.
    """
    from deploykit.loading import load

    if artifact.model is None:
        raise BackendFailedError(f"{artifact.path} does not say which PyTorch model it stands for: name the model.")
    return load(artifact.model)


def _array(name: str, tensor: torch.Tensor) -> Array:
    # A copy, as a module may return its own buffer or a view of it, which its next call would overwrite.
    try:
        return tensor.detach().cpu().numpy().copy()
    except TypeError as error:
        raise BackendFailedError(
            f"the output {name!r} is {tensor.dtype}, which NumPy does not have: cast it."
        ) from error


BACKEND = TorchBackend()
