"""TensorRT engines replayed from a CUDA graph, which spares the work of launching each kernel."""

from __future__ import annotations

from deploykit.artifact import Artifact
from deploykit.backends import Backend, Runner, RunOptions
from deploykit.backends._files import loading
from deploykit.backends.trt import unavailable
from deploykit.errors import BackendUnavailableError


class TrtGraphBackend(Backend):
    """Refuses an engine that cannot be recorded, rather than run it in another way."""

    accepts = frozenset({"trt-engine"})
    extra = "trt"
    summary = "TensorRT on an NVIDIA GPU, replayed from a CUDA graph"
    default = "never"

    def available(self) -> str | None:
        return unavailable()

    def open(self, artifact: Artifact, options: RunOptions) -> Runner:
        reason = self.available()
        if reason is not None:
            raise BackendUnavailableError(reason)
        with loading(artifact.path, "TensorRT"):
            from deploykit.trt.graph_runner import GraphRunner

            return GraphRunner(artifact)


BACKEND = TrtGraphBackend()
