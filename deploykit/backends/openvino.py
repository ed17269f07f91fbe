"""OpenVINO on the CPU, straight from our ONNX files."""

from __future__ import annotations

import re
from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from deploykit import kernels
from deploykit.artifact import Artifact
from deploykit.backends import Backend, Runner, RunOptions
from deploykit.backends._feeds import check_feeds
from deploykit.backends._files import loading
from deploykit.errors import BackendFailedError, BackendUnavailableError, first_line, missing_extra

if TYPE_CHECKING:
    from deploykit.types import Array, Feeds, TensorSpec

# How OpenVINO names operators of other domains that it cannot read.
_UNKNOWN = re.compile(r"(?:com\.microsoft|ai\.deploykit|ai\.onnx\.\w+)\.\w+")
# Where, among its inputs, a recurrent layer finds the lengths of the batch's sequences.
_LENGTHS_AT = {"RNNSequence": 2, "GRUSequence": 2, "LSTMSequence": 3}
# Seen in 2026.4 on the CPU with RNN, GRU and LSTM, in one direction and in two.
_LENGTHS = (
    "OpenVINO runs every sequence of a packed batch to the end of the longest, so its answers would be wrong: "
    "use the ort backend."
)


class OpenVinoRunner(Runner):
    """One compiled model and one request, run synchronously."""

    def __init__(self, compiled: Any, artifact: Artifact) -> None:
        self._request: Any = compiled.create_infer_request()
        self._inputs = tuple(_apart(spec) for spec in artifact.inputs)
        self._halved = [spec.name for spec in artifact.inputs if spec.dtype == "float16"]
        # By place: OpenVINO may know one output by several names.
        self._outputs = [spec.name for spec in artifact.outputs]
        if len(compiled.outputs) != len(self._outputs):
            raise BackendFailedError(f"OpenVINO finds {len(compiled.outputs)} outputs, not {len(self._outputs)}.")

    def infer(self, feeds: Feeds) -> dict[str, Array]:
        if self._request is None:
            raise BackendFailedError("the OpenVINO model is closed: open the artifact again.")
        # As in onnxruntime's runner: who exported with float16 inputs is compared with a reference in float32.
        given = dict(feeds) | {name: feeds[name].astype("float16") for name in self._halved if name in feeds}
        check_feeds(given, self._inputs)  # OpenVINO would cast another dtype without a word
        try:
            values = self._request.infer(given)
            return {name: values[place] for place, name in enumerate(self._outputs)}
        except Exception as error:
            raise BackendFailedError(f"OpenVINO failed: {_why(error)}.") from error

    def close(self) -> None:
        self._request = None


class OpenVinoBackend(Backend):
    """Whatever the file's precision, arithmetic in float is float32's: OpenVINO would take bfloat16 where a CPU has it.

    int8 files run as far as OpenVINO reads onnxruntime's own operators; where it does not, their row says so.
    """

    accepts = frozenset({"onnx", "onnx-int8", "onnx-qdq"})
    extra = "openvino"
    summary = "OpenVINO on the CPU"
    default = "available"

    def available(self) -> str | None:
        return None if find_spec("openvino") else missing_extra("OpenVINO", "openvino")

    def open(self, artifact: Artifact, options: RunOptions) -> Runner:
        reason = self.available()
        if reason is not None:
            raise BackendUnavailableError(reason)
        with loading(artifact.path, "OpenVINO", _why):
            import openvino

            core = openvino.Core()
            try:
                model = core.read_model(artifact.path)
            except Exception as error:
                _refuse_operators(error)
                raise
            if _has_lengths(model):
                raise BackendUnavailableError(_LENGTHS)
            return OpenVinoRunner(core.compile_model(model, "CPU", _settings(options)), artifact)


def _settings(options: RunOptions) -> dict[str, Any]:
    return {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": "1",
        "INFERENCE_NUM_THREADS": str(options.threads),
        "INFERENCE_PRECISION_HINT": "f32",
        # No activations in int8 beside weights that are stored as int8: the file says what is quantized.
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
        # Threads of the other backends are not pinned to cores either.
        "ENABLE_CPU_PINNING": False,
    }


def _has_lengths(model: Any) -> bool:
    """Whether a recurrent layer gets lengths that are computed from an input's values, rather than from its shape."""
    return any(
        _depends_on_values(node.input_value(_LENGTHS_AT[node.get_type_name()]).get_node())
        for node in model.get_ops()
        if node.get_type_name() in _LENGTHS_AT
    )


def _depends_on_values(node: Any) -> bool:
    waiting, seen = [node], set()
    while waiting:
        node = waiting.pop()
        if node.get_type_name() == "Parameter":
            return True
        if node.get_type_name() != "ShapeOf" and node.get_name() not in seen:
            seen.add(node.get_name())
            waiting += [value.get_node() for value in node.input_values()]
    return False


def _refuse_operators(error: Exception) -> None:
    unknown = sorted(set(_UNKNOWN.findall(str(error))))
    if unknown:
        ours = any(name.startswith(kernels.DOMAIN) for name in unknown)
        step = "quantize with --kernels portable" if ours else "upgrade it"
        raise BackendUnavailableError(
            f"this release of OpenVINO does not know the operators {', '.join(unknown)}: {step}, or use ort."
        ) from error


def _why(error: Exception) -> str:
    """What OpenVINO says, without the places in its source that it says it from."""
    lines = [line.strip() for line in str(error).splitlines()]
    told = [line for line in lines if line and not line.startswith(("Exception from", "Check '", "FrontEnd API"))]
    return " ".join(told).rstrip(". ") or first_line(error)


def _apart(spec: TensorSpec) -> TensorSpec:
    """``spec`` whose dims without a name of their own need not be equal."""
    dims = (f"{spec.name}_{axis}" if dim == "unknown" else dim for axis, dim in enumerate(spec.dims))
    return replace(spec, dims=tuple(dims))


BACKEND = OpenVinoBackend()
