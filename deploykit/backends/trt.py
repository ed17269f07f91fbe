"""TensorRT engines on an NVIDIA GPU."""

from __future__ import annotations

from deploykit.artifact import Artifact
from deploykit.backends import Backend, Runner, RunOptions
from deploykit.backends._files import loading
from deploykit.errors import BackendUnavailableError
from deploykit.trt import cuda, library


def unavailable() -> str | None:
    """Why engines cannot run here, in one sentence; None where they may. Looks, and starts nothing."""
    return library.missing() or cuda.gpu_missing()


class TrtBackend(Backend):
    """Runs engines of ``deploykit build`` through pycuda; ``threads`` means nothing to a GPU."""

    accepts = frozenset({"trt-engine"})
    extra = "trt"
    summary = "TensorRT on an NVIDIA GPU"
    default = "always"

    def available(self) -> str | None:
        return unavailable()

    def open(self, artifact: Artifact, options: RunOptions) -> Runner:
        reason = self.available()
        if reason is not None:
            raise BackendUnavailableError(reason)
        with loading(artifact.path, "TensorRT"):
            from deploykit.trt.runner import TrtRunner

            return TrtRunner(artifact)


BACKEND = TrtBackend()
