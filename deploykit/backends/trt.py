"""TensorRT engines on an NVIDIA GPU."""

from __future__ import annotations

from importlib.util import find_spec

from deploykit.artifact import Artifact
from deploykit.backends import Backend, Runner, RunOptions
from deploykit.errors import BackendUnavailableError, missing_extra

_NOT_YET = "this version of deploykit cannot build or run TensorRT engines yet: use the ort backend."


class TrtBackend(Backend):
    """Says what TensorRT would need here. Engines cannot be run yet, and nothing here claims otherwise."""

    accepts = frozenset({"trt-engine"})
    extra = "trt"
    summary = "TensorRT on an NVIDIA GPU"
    default = "always"

    def available(self) -> str | None:
        # find_spec looks without importing: an import would start the GPU's driver.
        for module, package in (("tensorrt", "TensorRT"), ("pycuda", "pycuda")):
            if find_spec(module) is None:
                return missing_extra(package, "trt").rstrip(".") + " (it needs an NVIDIA GPU)."
        return _NOT_YET

    def open(self, artifact: Artifact, options: RunOptions) -> Runner:
        raise BackendUnavailableError(self.available() or _NOT_YET)


BACKEND = TrtBackend()
