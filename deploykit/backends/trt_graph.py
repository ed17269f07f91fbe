"""TensorRT engines replayed from a CUDA graph, which spares the work of launching each kernel."""

from __future__ import annotations

from deploykit.artifact import Artifact
from deploykit.backends import Runner
from deploykit.backends.trt import TrtBackend


class TrtGraphBackend(TrtBackend):
    """Refuses an engine that cannot be recorded, rather than run it in another way."""

    summary = "TensorRT on an NVIDIA GPU, replayed from a CUDA graph"
    default = "never"

    def _runner(self, artifact: Artifact) -> Runner:
        from deploykit.trt.graph_runner import GraphRunner

        return GraphRunner(artifact)


BACKEND = TrtGraphBackend()
