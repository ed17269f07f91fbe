"""The driver's functions for CUDA graphs, played for the stand-in: what is recorded runs when the graph is launched."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import pytest

from deploykit.trt import graphs


class Recording:
    """Takes the place of libcuda in ``deploykit.trt.graphs``."""

    def __init__(self) -> None:
        #: What ends a capture with an error, by CUDA's number for it.
        self.refuses = 0
        #: What a graph is recorded from may not change as long as it is launched.
        self.broken: list[str] = []
        self.live: Counter[str] = Counter()
        self.captures = self.launches = 0
        self.order: list[str] = []
        self._capturing: dict[int, list[Any]] = {}
        self._held: dict[int, list[Any]] = {}
        self._handles = itertools.count(1000)
        self.execute: Any = None

    def enqueue(self, context: Any, stream: int) -> bool:
        """In the place of the context's execution."""
        if stream not in self._capturing:
            return bool(self.execute(context, stream))
        self._capturing[stream].append((context, dict(context._addresses), dict(context._shapes)))
        return True

    def cuStreamBeginCapture_v2(self, stream: int, mode: int) -> int:
        assert mode == 1
        assert stream not in self._capturing
        self._capturing[stream] = []
        self.captures += 1
        return 0

    def cuStreamEndCapture(self, stream: int, graph: Any) -> int:
        work = self._capturing.pop(stream)
        if self.refuses:
            return self.refuses
        graph._obj.value = self._keep("graph", work)
        return 0

    def cuGraphInstantiateWithFlags(self, executable: Any, graph: Any, flags: int) -> int:
        assert flags == 0
        executable._obj.value = self._keep("executable", self._held[graph.value])
        return 0

    def cuGraphLaunch(self, executable: int, stream: int) -> int:
        self.launches += 1
        for context, addresses, shapes in self._held[executable]:
            if (context._addresses, context._shapes) != (addresses, shapes):
                self.broken.append("a context changed after it was recorded")
            if not self.execute(context, stream):
                return 719
        return 0

    def cuGraphExecDestroy(self, executable: int) -> int:
        return self._drop("executable", executable)

    def cuGraphDestroy(self, graph: Any) -> int:
        return self._drop("graph", graph.value)

    def cuGetErrorString(self, code: int, text: Any) -> int:
        text._obj.value = {900: b"operation not permitted when stream is capturing"}.get(code, b"unknown error")
        return 0

    def _keep(self, kind: str, work: list[Any]) -> int:
        handle = next(self._handles)
        self._held[handle] = work
        self.live[kind] += 1
        return handle

    def _drop(self, kind: str, handle: int) -> int:
        del self._held[handle]
        self.live[kind] -= 1
        self.order.append(kind)
        return 0


def install(monkeypatch: pytest.MonkeyPatch, tensorrt: Any) -> Recording:
    """Let the stand-in's contexts be recorded."""
    played = Recording()
    played.execute = tensorrt.IExecutionContext.execute_async_v3
    monkeypatch.setattr(graphs, "_library", lambda: played)
    monkeypatch.setattr(
        tensorrt.IExecutionContext,
        "execute_async_v3",
        lambda self, stream: played.enqueue(self, stream),  # noqa: PLW0108
    )
    return played
