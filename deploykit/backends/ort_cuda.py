"""onnxruntime on an NVIDIA GPU, by CUDA. Written after onnxruntime's documentation; never run on a GPU yet."""

from __future__ import annotations

from deploykit.artifact import Artifact
from deploykit.backends import Backend, Runner, RunOptions
from deploykit.backends._ort_gpu import missing, open_on
from deploykit.errors import BackendUnavailableError

_PROVIDER = "CUDAExecutionProvider"


class OrtCudaBackend(Backend):
    """NumPy in and out: copies to the GPU and back are part of each inference, as they are of a caller's."""

    accepts = frozenset({"onnx", "onnx-int8", "onnx-qdq"})
    extra = "cuda"
    device = "gpu"
    summary = "onnxruntime on an NVIDIA GPU (CUDA); untested"

    def available(self) -> str | None:
        return missing("cuda", "CUDA")

    def open(self, artifact: Artifact, options: RunOptions) -> Runner:
        reason = self.available()
        if reason is not None:
            raise BackendUnavailableError(reason)
        return open_on(_PROVIDER, {_PROVIDER: {"device_id": "0", "use_tf32": "0"}}, artifact, options)


BACKEND = OrtCudaBackend()
