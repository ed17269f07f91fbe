"""Runs TensorRT engines: NumPy in and out, states kept on the GPU when streaming, the GPU's time told apart."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

from deploykit.artifact import Artifact
from deploykit.backends import Runner
from deploykit.backends._feeds import check_feeds
from deploykit.errors import BackendFailedError
from deploykit.trt.cuda import Device
from deploykit.trt.dtypes import store
from deploykit.trt.engine import Engine, specs
from deploykit.trt.lane import Held, Lane

if TYPE_CHECKING:
    from deploykit.trt.cuda import Memory
    from deploykit.types import Array, Feeds

    Shape = tuple[int, ...]

#: What the latency of an engine is, for whoever reads it.
END_TO_END = (
    "its latency is end to end, from NumPy arrays to NumPy arrays: the copies to the GPU and back are in it; the GPU's "
    "time alone is measured by events, without them."
)
_WARNINGS = 3


class TrtRunner(Runner):
    """One engine with one execution context. Calls from several threads take turns."""

    def __init__(self, artifact: Artifact) -> None:
        """Load the engine on the GPU.

        Raises:
            ArtifactError: the plan does not fit this TensorRT or GPU, or its manifest does not fit the plan.
            BackendUnavailableError: TensorRT, pycuda, the driver or the GPU cannot be used here.
            BackendFailedError: TensorRT refuses the plan.
        """
        self._lock = threading.RLock()
        self._device = Device()
        self._engine: Engine | None = None
        self._lanes: dict[tuple[object, ...], Lane] = {}
        try:
            with self._device.current():
                self._engine = Engine(artifact)
                self._inputs, outputs = specs(artifact, self._engine)
                self._dtypes = {spec.name: spec.dtype for spec in outputs}
                self._prepare()
        except BaseException:
            self.close()
            raise
        self.notes = tuple(self._say(artifact))

    def infer(self, feeds: Feeds) -> dict[str, Array]:
        with self._lock:
            self._opened()
            check_feeds(feeds, self._inputs)
            return self._infer(feeds, {})

    def carry(self, pairs: Mapping[str, str]) -> Callable[[Feeds], dict[str, Array]]:
        engine = self._opened()
        for name, result in pairs.items():
            one, other = engine.inputs.get(name), engine.outputs.get(result)
            if one is None or other is None or one.kind != other.kind or one.on_host or other.on_host:
                return super().carry(pairs)
        return _Stream(self, pairs)

    def close(self) -> None:
        with self._lock:
            if self._device.closed:
                return
            # The order is TensorRT's: contexts before their engine, and memory when nobody can use it any more.
            with self._device.pushed():
                with suppress(self._device.driver.Error):  # a lost GPU, which an earlier call has told
                    self._device.synchronize()
                self._release()
            self._device.close()

    def _release(self) -> None:
        for lane in self._lanes.values():
            lane.close()
        self._lanes.clear()
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    def _opened(self) -> Engine:
        if self._engine is None:
            raise BackendFailedError("the engine is closed: open the artifact again.")
        return self._engine

    def _prepare(self) -> None:
        """Make what every inference needs, so that a lack of memory shows when the engine is opened."""
        assert self._engine is not None
        self._lanes[()] = Lane(self._engine, self._device)

    def _infer(self, feeds: Feeds, held: Mapping[str, Held]) -> dict[str, Array]:
        """One run; the states that are ``held`` on the GPU are neither copied in nor returned."""
        engine = self._opened()
        shapes = {name: tuple(feeds[name].shape) for name in engine.inputs}
        profile = engine.profile(shapes)
        dtypes = {name: dtype for name, dtype in self._dtypes.items() if name not in held}
        with self._device.current(), engine.saying("TensorRT failed"):
            try:
                outputs = self._run(profile, shapes, feeds, held, dtypes)
            except BaseException:
                # Copies may be under way in memory that the next call writes to.
                with suppress(self._device.driver.Error):
                    self._device.synchronize()
                raise
            self.device_ms = self._device.elapsed()
        return outputs

    def _run(
        self,
        profile: int,
        shapes: Mapping[str, Shape],
        feeds: Feeds,
        held: Mapping[str, Held],
        dtypes: Mapping[str, str],
    ) -> dict[str, Array]:
        lane = self._lanes[()]
        lane.bind(profile, shapes, feeds, held)
        lane.run(feeds, held, lane.enqueue)
        return lane.results(dtypes)

    def _say(self, artifact: Artifact) -> Iterator[str]:
        engine = self._opened()
        yield END_TO_END
        yield f"ran in TensorRT {engine.version} on {engine.gpu.name}."
        if engine.profiles > 1:
            told = "; ".join(engine.told(number) for number in range(engine.profiles))
            yield f"each inference ran in the narrowest of its {engine.profiles} profiles that holds it: {told}."
        if engine.refitted:
            yield "its weights were taken from its ONNX file when it was opened: the plan holds none."
        ports = {**engine.inputs, **engine.outputs}
        for spec in (*artifact.inputs, *artifact.outputs):
            kind = ports[spec.name].spec.dtype
            if kind != spec.dtype:
                yield f"the engine has {spec.name} as {kind}, and it was converted from or to {spec.dtype}."
        for warning in engine.messages.warnings[:_WARNINGS]:
            yield f"TensorRT warned: {warning.rstrip('.')}."


class _Stream:
    """A stream whose states stay on the GPU, in two places each: one is read while the other is written."""

    def __init__(self, runner: TrtRunner, pairs: Mapping[str, str]) -> None:
        self._runner = runner
        self._pairs = dict(pairs)
        self._began: dict[str, Array] = {}
        self._memory: list[Memory] = []
        self._now = 0
        # Given back without a call of CUDA, which nobody may make at a moment that the garbage collector chooses.
        weakref.finalize(self, runner._device.give_back, self._memory)

    def __call__(self, feeds: Feeds) -> dict[str, Array]:
        runner = self._runner
        with runner._lock:
            runner._opened()
            given = {**feeds, **self._began} if self._began else feeds
            check_feeds(given, runner._inputs)
            if not self._began:
                self._begin(feeds)
            outputs = runner._infer(given, self._held())
            self._now = 1 - self._now
            return outputs

    def _begin(self, feeds: Feeds) -> None:
        """Take the states to begin with to the GPU."""
        import numpy as np

        device, engine = self._runner._device, self._runner._opened()
        with device.current():
            while len(self._memory) < 2 * len(self._pairs):
                self._memory.append(device.borrow())
            for number, name in enumerate(self._pairs):
                port = engine.inputs[name]
                staged = np.empty(feeds[name].shape, port.held)
                store(feeds[name], staged, port.kind, name)
                for memory in self._memory[2 * number : 2 * number + 2]:
                    memory.reserve(staged.nbytes)
                device.upload(self._memory[2 * number].address, staged)
                device.synchronize()
        # What stands for them from now on: their shape and dtype, and no memory.
        began = {name: np.broadcast_to(np.zeros((), feeds[name].dtype), feeds[name].shape) for name in self._pairs}
        self._began = began

    def _held(self) -> dict[str, Held]:
        found: dict[str, Held] = {}
        for number, (name, result) in enumerate(self._pairs.items()):
            places = self._memory[2 * number : 2 * number + 2]
            shape = tuple(self._began[name].shape)
            found[name] = Held(places[self._now].address, shape)
            found[result] = Held(places[1 - self._now].address, shape)
        return found
