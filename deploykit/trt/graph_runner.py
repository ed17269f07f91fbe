"""Runs an engine from CUDA graphs: one for each set of input shapes, recorded once and replayed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deploykit.errors import BackendUnavailableError
from deploykit.trt import graphs, library
from deploykit.trt.lane import Held, Lane
from deploykit.trt.runner import TrtRunner

if TYPE_CHECKING:
    from deploykit.artifact import Artifact
    from deploykit.trt.graphs import Graph
    from deploykit.types import Array, Feeds

    Shape = tuple[int, ...]

#: Graphs that are kept. Each has an execution context of its own, whose memory is that of one run.
KEPT = 8
#: Before this version two contexts of an engine could not share a profile.
_SHARED = (10, 0)


@dataclass
class _Recorded:
    lane: Lane
    graph: Graph


class GraphRunner(TrtRunner):
    """A TrtRunner that replays. A graph stays true only while its context does not change: each has its own."""

    def __init__(self, artifact: Artifact) -> None:
        """Load the engine, and record it once for the shapes it was tuned for.

        Raises:
            ArtifactError: the plan does not fit this TensorRT or GPU, or its manifest does not fit the plan.
            BackendUnavailableError: TensorRT, pycuda, the driver or the GPU cannot be used here, or the engine cannot
                be recorded.
            BackendFailedError: TensorRT refuses the plan.
        """
        self._recorded: dict[tuple[object, ...], _Recorded] = {}
        super().__init__(artifact)
        self.notes = (
            *self.notes,
            "it replayed a CUDA graph: the first inference of each new set of shapes recorded one, and took longer.",
        )

    def _prepare(self) -> None:
        import numpy as np

        engine = self._opened()
        graphs.require(engine.gpu.driver)
        if any(port.on_host for port in engine.inputs.values()):
            return  # their values decide the shapes, and zeros may be none that can be: the first inference tells
        feeds = {name: np.zeros(port.ranges[0][1], port.spec.dtype) for name, port in engine.inputs.items()}
        self._record((), 0, {name: array.shape for name, array in feeds.items()}, feeds, {})
        self._forget(0)

    def _run(
        self,
        profile: int,
        shapes: Mapping[str, Shape],
        feeds: Feeds,
        held: Mapping[str, Held],
        dtypes: Mapping[str, str],
    ) -> dict[str, Array]:
        engine = self._opened()
        values = tuple(feeds[name].tobytes() for name, port in engine.inputs.items() if port.on_host)
        addresses = tuple((name, one.address) for name, one in sorted(held.items()))
        key = (profile, *sorted(shapes.items()), *addresses, *values)
        recorded = self._recorded.pop(key, None)
        if recorded is None:
            recorded = self._record(key, profile, shapes, feeds, held)
        self._recorded[key] = recorded  # the one used last is the last to be forgotten
        lane, graph = recorded.lane, recorded.graph
        lane.run(feeds, held, lambda: graph.launch(self._device.stream))
        return lane.results(dtypes)

    def _record(
        self,
        key: tuple[object, ...],
        profile: int,
        shapes: Mapping[str, Shape],
        feeds: Feeds,
        held: Mapping[str, Held],
    ) -> _Recorded:
        engine = self._opened()
        self._forget(KEPT - 1 if library.parse_version(engine.version) >= _SHARED else 0)
        lane = Lane(engine, self._device)
        try:
            lane.bind(profile, shapes, feeds, held)
            _need_fixed(lane.open_sizes)
            # Once without: TensorRT does some of its work in the first run after the shapes were set.
            lane.run(feeds, held, lane.enqueue)
            self._device.synchronize()
            graph = graphs.capture(self._device.stream, lane.enqueue)
        except BaseException:
            lane.close()
            raise
        self._recorded[key] = _Recorded(lane, graph)
        return self._recorded[key]

    def _forget(self, kept: int) -> None:
        """Release the graphs that were not used for longest, until ``kept`` are left."""
        while len(self._recorded) > kept:
            self._drop(next(iter(self._recorded)))

    def _drop(self, key: tuple[object, ...]) -> None:
        recorded = self._recorded.pop(key)
        recorded.graph.close()
        recorded.lane.close()

    def _release(self) -> None:
        self._forget(0)
        super()._release()


def _need_fixed(open_sizes: list[str]) -> None:
    if open_sizes:
        raise BackendUnavailableError(
            f"the data decides the size of the output {open_sizes[0]!r}, and a CUDA graph has fixed sizes: use the "
            "backend trt."
        )
