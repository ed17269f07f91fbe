"""Computes nothing: zeros of the right shapes, to test the harness and to measure what the harness itself costs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deploykit.artifact import Artifact
from deploykit.backends import Backend, Runner, RunOptions
from deploykit.backends._feeds import check_feeds
from deploykit.errors import BackendFailedError

if TYPE_CHECKING:
    from deploykit.types import Array, Feeds


class NullRunner(Runner):
    """Zeros by the specs of the artifact's outputs, their dynamic dims bound to the sizes of the feeds."""

    def __init__(self, artifact: Artifact) -> None:
        self._artifact = artifact

    def infer(self, feeds: Feeds) -> dict[str, Array]:
        import numpy as np

        sizes = check_feeds(feeds, self._artifact.inputs)
        return {spec.name: np.zeros(spec.shape(sizes), spec.dtype) for spec in self._artifact.outputs}


class NullBackend(Backend):
    """Needs an artifact that carries the specs of its inputs and outputs; no file is read."""

    accepts = frozenset({"torch"})
    summary = "returns zeros; for tests of the harness"
    hidden = True

    def available(self) -> str | None:
        return None

    def open(self, artifact: Artifact, options: RunOptions) -> Runner:
        bound = {dim for spec in artifact.inputs for dim in spec.dynamic}
        if not artifact.outputs or not all(bound.issuperset(spec.dynamic) for spec in artifact.outputs):
            raise BackendFailedError("the null backend needs outputs whose dims are numbers or dims of the inputs.")
        return NullRunner(artifact)


BACKEND = NullBackend()
