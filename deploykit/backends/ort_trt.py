"""onnxruntime with TensorRT inside it. Written after onnxruntime's documentation; never run on a GPU yet.

Its engines are built when the file is opened, for the sizes that its dims allow. Where TensorRT takes only parts of the
graph it cannot be told those sizes, and builds again at each that lies outside of those it has seen; the bench's
warm-up takes that.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from deploykit.artifact import Artifact
from deploykit.backends import Backend, Runner, RunOptions
from deploykit.backends._ort_gpu import missing, open_on, wanted_tensorrt
from deploykit.backends.ort import OrtRunner
from deploykit.errors import BackendFailedError, BackendUnavailableError
from deploykit.trt import packages, profiles
from deploykit.trt.library import parse_version

if TYPE_CHECKING:
    from deploykit.types import Array, Feeds

    Shape = tuple[int, ...]
    Profile = Mapping[str, tuple[Shape, Shape, Shape]]

_PROVIDER = "TensorrtExecutionProvider"
_CUDA = {"CUDAExecutionProvider": {"device_id": "0", "use_tf32": "0"}}
_REBUILDS = (
    "TensorRT took only parts of the graph: it builds an engine again at each size that lies outside of those before."
)


class OrtTrtBackend(Backend):
    """What TensorRT does not take goes to CUDA, and what that does not take to the CPU, which the row says."""

    accepts = frozenset({"onnx", "onnx-qdq"})
    extra = "cuda"
    device = "gpu"
    summary = "onnxruntime with TensorRT on an NVIDIA GPU; untested"

    def available(self) -> str | None:
        return missing("tensorrt", "TensorRT") or other_tensorrt(
            wanted_tensorrt(), packages.version_of(packages.installed())
        )

    def open(self, artifact: Artifact, options: RunOptions) -> Runner:
        reason = self.available()
        if reason is not None:
            raise BackendUnavailableError(reason)
        if find_spec("tensorrt") is not None:
            with contextlib.suppress(Exception):
                import tensorrt  # noqa: F401 - loads the libraries of its pip package, which onnxruntime looks for
        profile = profile_of(artifact)

        def opened(profile: Profile) -> OrtRunner:
            providers = {_PROVIDER: trt_options(artifact, profile), **_CUDA}
            return open_on(_PROVIDER, providers, artifact, options, lambda session: ProfiledRunner(session, profile))

        try:
            return opened(profile)
        except BackendFailedError as error:
            # A part's inputs are tensors inside the graph, which the profile does not name: onnxruntime says so.
            if not profile or "profile" not in str(error):
                raise
        runner = opened({})
        runner.notes = (*runner.notes, _REBUILDS)
        return runner


class ProfiledRunner(OrtRunner):
    """Says which sizes the engines are built for, where TensorRT would only fail on others."""

    def __init__(self, session: Any, profile: Profile) -> None:
        super().__init__(session)
        self._profile = profile

    def infer(self, feeds: Feeds) -> dict[str, Array]:
        for name, (low, _, high) in self._profile.items():
            if name in feeds and not profiles.fits({name: (low, low, high)}, {name: feeds[name].shape}):
                raise BackendFailedError(
                    f"{name} has the shape {feeds[name].shape}, and the engine was built for {low} to {high}: stay "
                    "within, or export again with --dim, such as --dim time=1:4096."
                )
        return super().infer(feeds)


def other_tensorrt(wanted: int | None, installed: str | None) -> str | None:
    """Why onnxruntime cannot use the TensorRT that is installed; None where it can, or nobody knows."""
    found = () if installed is None else parse_version(installed)
    if wanted is None or not found or found[0] == wanted:
        return None
    return (
        f"this onnxruntime is built for TensorRT {wanted}, and {installed} is installed: run pip install "
        f"'tensorrt=={wanted}.*' in an environment of its own, or use the trt backend."
    )


def profile_of(artifact: Artifact) -> Profile:
    """Smallest, tuned and largest shape of each input that has a dynamic dim."""
    dynamic = [spec for spec in artifact.inputs if spec.dynamic]
    # onnxruntime reads them from one text, in which these have a meaning.
    if any(sign in spec.name for spec in dynamic for sign in ":,"):
        return {}
    return profiles.derive((), dynamic, artifact.dims)[0]


def trt_options(artifact: Artifact, profile: Profile) -> dict[str, str]:
    """TensorRT may use no less precision than the artifact has.

    Engines are kept in no cache: onnxruntime finds them again by the names in the graph, and a model that was trained
    further would get the engine of its old weights.
    """
    chosen = {
        "device_id": "0",
        "trt_fp16_enable": str(int(artifact.precision in ("float16", "fp16"))),
        "trt_int8_enable": str(int(artifact.format == "onnx-qdq")),
    }
    if artifact.precision == "bfloat16":
        chosen["trt_bf16_enable"] = "1"  # onnxruntime before 1.23 does not know it, and refuses what it does not know
    if profile:
        for index, end in enumerate(("min", "opt", "max")):
            shapes = (f"{name}:{'x'.join(map(str, three[index]))}" for name, three in profile.items())
            chosen[f"trt_profile_{end}_shapes"] = ",".join(shapes)
    return chosen


BACKEND = OrtTrtBackend()
