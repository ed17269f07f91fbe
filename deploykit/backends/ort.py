"""onnxruntime on the CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from deploykit.artifact import Artifact
from deploykit.backends import Backend, Runner, RunOptions
from deploykit.backends._feeds import check_names
from deploykit.backends._files import loading
from deploykit.errors import BackendFailedError
from deploykit.runtime import sentence, session

if TYPE_CHECKING:
    from deploykit.types import Array, Feeds


class OrtRunner(Runner):
    """One session. Its threads sleep between runs: spinning ones would slow down whatever is timed next."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self._inputs = [value.name for value in session.get_inputs()]
        self._halved = [value.name for value in session.get_inputs() if value.type == "tensor(float16)"]
        self._outputs = [value.name for value in session.get_outputs()]

    def infer(self, feeds: Feeds) -> dict[str, Array]:
        if self._session is None:
            raise BackendFailedError("the onnxruntime session is closed: open the artifact again.")
        check_names(feeds, self._inputs)
        try:
            # Who exported with float16 inputs has them; the reference, and so whoever compares, has float32.
            given = {**feeds, **{name: feeds[name].astype("float16") for name in self._halved}}
            values = self._session.run(self._outputs, given)
        except Exception as error:
            raise BackendFailedError(f"onnxruntime failed: {sentence(error)}.") from error
        return dict(zip(self._outputs, values, strict=True))

    def close(self) -> None:
        self._session = None


def fused(artifact: Artifact) -> tuple[str, ...]:
    """A sentence on the operators that the session needed a library for; none where it needed none."""
    return tuple(f"runs operators of {domain}, version {version}." for domain, version in artifact.operators.items())


class OrtBackend(Backend):
    """onnxruntime's CPU execution provider."""

    accepts = frozenset({"onnx", "onnx-int8", "onnx-qdq"})
    summary = "onnxruntime on the CPU"
    default = "always"

    def available(self) -> str | None:
        from importlib.util import find_spec

        return None if find_spec("onnxruntime") else "onnxruntime is not installed: run pip install onnxruntime."

    def open(self, artifact: Artifact, options: RunOptions) -> Runner:
        with loading(artifact.path, "onnxruntime"):
            runner = OrtRunner(session(artifact.path, options.threads))
        runner.notes = fused(artifact)
        return runner


BACKEND = OrtBackend()
