"""TensorRT engines on an NVIDIA GPU."""

from __future__ import annotations

from typing import Literal

from deploykit.artifact import Artifact
from deploykit.backends import Backend, Runner, RunOptions
from deploykit.backends._files import loading
from deploykit.errors import BackendUnavailableError
from deploykit.trt import cuda, library


class TrtBackend(Backend):
    """Runs engines of ``deploykit build`` through pycuda; ``threads`` means nothing to a GPU."""

    accepts = frozenset({"trt-engine"})
    extra = "trt"
    made_by = "deploykit build"
    device = "gpu"
    summary = "TensorRT on an NVIDIA GPU"
    default: Literal["always", "available", "never"] = "always"

    def available(self) -> str | None:
        # Both look, and start nothing: an import of TensorRT would start the GPU's driver.
        return library.missing() or cuda.gpu_missing()

    def open(self, artifact: Artifact, options: RunOptions) -> Runner:
        reason = self.available()
        if reason is not None:
            raise BackendUnavailableError(reason)
        with loading(artifact.path, "TensorRT"):
            return self._runner(artifact)

    def _runner(self, artifact: Artifact) -> Runner:
        from deploykit.trt.runner import TrtRunner

        return TrtRunner(artifact)


BACKEND = TrtBackend()
