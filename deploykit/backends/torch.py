"""The PyTorch model itself: the reference that every other backend is held against."""

from __future__ import annotations

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
    """Runs ``spec.module`` as it is. The thread count is the whole process's, as PyTorch knows no other."""

    def __init__(self, spec: ModelSpec, options: RunOptions) -> None:
        import torch

        torch.set_num_threads(options.threads)
        #: What the model takes and is judged by; the harness asks the reference's runner for it.
        self.spec = spec

    def infer(self, feeds: Feeds) -> dict[str, Array]:
        import torch

        check_feeds(feeds, self.spec.inputs)
        # torch.tensor copies, so that a module that works in place does not change its caller's arrays.
        inputs = [torch.tensor(feeds[spec.name]) for spec in self.spec.inputs]
        try:
            with torch.inference_mode():
                outputs = named_outputs(self.spec, self.spec.run(inputs))
        except DeploykitError:
            raise
        except Exception as error:
            raise BackendFailedError(f"the PyTorch model failed: {first_line(error)}.") from error
        return {name: _array(name, tensor) for name, tensor in outputs.items()}


class TorchBackend(Backend):
    """The reference. Denormals are left as PyTorch has them (kept): the report records it."""

    accepts = frozenset({"torch"})
    summary = "the PyTorch model itself: the reference"

    def available(self) -> str | None:
        return None

    def open(self, artifact: Artifact, options: RunOptions) -> Runner:
        from deploykit.loading import load

        if artifact.model is None:
            raise BackendFailedError(f"{artifact.path} does not say which PyTorch model it stands for: name the model.")
        return TorchRunner(load(artifact.model), options)


def _array(name: str, tensor: torch.Tensor) -> Array:
    # A copy, as a module may return its own buffer or a view of it, which its next call would overwrite.
    try:
        return tensor.detach().cpu().numpy().copy()
    except TypeError as error:
        raise BackendFailedError(
            f"the output {name!r} is {tensor.dtype}, which NumPy does not have: cast it."
        ) from error


BACKEND = TorchBackend()
