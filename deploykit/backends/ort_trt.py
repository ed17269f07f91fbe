"""onnxruntime with TensorRT inside it. Written after onnxruntime's documentation; never run on a GPU yet.

An engine is built in the first inference, and again when a size lies outside of those it has seen; the bench's warm-up
takes that.
"""

from __future__ import annotations

import contextlib
from importlib.util import find_spec

from deploykit.artifact import Artifact
from deploykit.backends import Backend, Runner, RunOptions
from deploykit.backends._ort_gpu import missing, open_on
from deploykit.errors import BackendUnavailableError

_PROVIDER = "TensorrtExecutionProvider"
_CUDA = {"CUDAExecutionProvider": {"device_id": "0", "use_tf32": "0"}}


class OrtTrtBackend(Backend):
    """What TensorRT does not take goes to CUDA, and what that does not take to the CPU, which the row says."""

    accepts = frozenset({"onnx", "onnx-qdq"})
    extra = "cuda"
    summary = "onnxruntime with TensorRT on an NVIDIA GPU; untested"

    def available(self) -> str | None:
        return missing("tensorrt", "TensorRT")

    def open(self, artifact: Artifact, options: RunOptions) -> Runner:
        reason = self.available()
        if reason is not None:
            raise BackendUnavailableError(reason)
        if find_spec("tensorrt") is not None:
            with contextlib.suppress(Exception):
                import tensorrt  # noqa: F401 - loads the libraries of its pip package, which onnxruntime looks for
        return open_on(_PROVIDER, {_PROVIDER: trt_options(artifact), **_CUDA}, artifact, options)


def trt_options(artifact: Artifact) -> dict[str, str]:
    """TensorRT may use no less precision than the artifact has."""
    return {
        "device_id": "0",
        "trt_fp16_enable": str(int(artifact.precision in ("float16", "fp16"))),
        "trt_int8_enable": str(int(artifact.format == "onnx-qdq")),
    }


BACKEND = OrtTrtBackend()
