"""The far side: one process that runs one subject and answers commands over a pipe.

Each command is ``(name, *arguments)`` and has one answer: ``("ok", value)``, or ``(kind, sentence, trace)`` where the
kind is ``failed``, ``unavailable`` or ``usage``. While no command is under way the process is blocked on the pipe, so
that it costs whoever is being timed nothing. It is started as a plain ``python -c``, not by ``multiprocessing``, which
would import the caller's main module again, and run it where it has no guard.
"""

from __future__ import annotations

import contextlib
import gc
import math
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit.artifact import Artifact
from deploykit.backends import Runner, RunOptions
from deploykit.errors import BackendFailedError, BackendUnavailableError, DeploykitError, ModelError, UsageError
from deploykit.types import DimRange, ModelSpec, TensorSpec, ValueRange, dynamic_dims

if TYPE_CHECKING:
    from deploykit.types import Array, Feeds

COMMANDS = frozenset(
    {"open", "given", "describe", "feeds", "infer", "prepare", "window", "stream", "requests", "metric", "stats"}
)


@dataclass(frozen=True)
class Description:
    """What the reference knows of its model: all that the parent, which never imports PyTorch, needs of it."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    dims: Mapping[str, DimRange]
    weight_bytes: int | None
    metric: str | None
    higher_is_better: bool = False
    source_sha256: str | None = None
    ranges: Mapping[str, ValueRange] = field(default_factory=dict)

    @property
    def dynamic(self) -> tuple[str, ...]:
        """Names of all dynamic dims, in order of first appearance."""
        return dynamic_dims(self.inputs)


@dataclass(frozen=True)
class Stats:
    """``peak_memory_bytes`` is the whole process's: interpreter, libraries, weights and the inputs it was given.

    ``load_ms`` includes importing the backend's library; ``first_ms`` is the first inference after that.
    ``size_bytes`` and ``notes`` are what the runner says of itself.
    """

    peak_memory_bytes: int
    load_ms: float
    first_ms: float | None
    denormals: str
    size_bytes: int | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Timed:
    """Inferences that were timed: nanoseconds of each on the host, and what the GPU says of those it measured."""

    samples: list[int]
    device_ms: list[float]


def main() -> None:
    """Serve the connection whose file descriptor is the first argument, until it closes."""
    # Ctrl-C reaches the whole process group; the parent decides what becomes of its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _share_cores()
    with (
        Connection(int(sys.argv[1])) as connection,
        contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError),
    ):
        serve(connection)


def _share_cores() -> None:
    """Run on as many cores as there are threads, on the same ones as every other worker of this run.

    Only one worker runs at a time. Left to the scheduler, one may sit on a core that others keep busy, and the next on
    an idle one, for the whole run: then identical programs differ by several percent.
    """
    threads = int(os.environ.get("OMP_NUM_THREADS", "1"))
    if hasattr(os, "sched_setaffinity"):
        usable = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, usable[-threads:])


def serve(connection: Connection) -> None:
    """Answer commands until ``close``. An error of a command is its answer, and the next command is served."""
    server = Server(connection)
    while True:
        name, *arguments = connection.recv()
        if name == "close":
            server.close()
            connection.send(("ok", None))
            return
        connection.send(_answer(server, name, arguments))


def _answer(server: Server, name: str, arguments: Sequence[Any]) -> tuple[Any, ...]:
    if name not in COMMANDS:
        return ("failed", f"the worker knows no command {name!r}.", "")
    try:
        return ("ok", getattr(server, name)(*arguments))
    except BackendUnavailableError as error:
        return ("unavailable", str(error), traceback.format_exc())
    except DeploykitError as error:
        return ("usage" if isinstance(error, UsageError) else "failed", str(error), traceback.format_exc())
    except Exception as error:
        text = (str(error).strip().splitlines() or [""])[0].rstrip(". ")
        return ("failed", f"{type(error).__name__}{': ' if text else ''}{text}.", traceback.format_exc())


class Server:
    """The state of one worker: its runner and the input sets it is timed with."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._opened: Runner | None = None
        self._given: ModelSpec | None = None
        self._sets: dict[str, list[Feeds]] = {}
        self._next = 0
        self._timed: Callable[[Feeds], dict[str, Array]] | None = None
        self._stream: Callable[[Feeds], dict[str, Array]] | None = None
        self._load_ms = 0.0
        self._first_ms: float | None = None

    @property
    def _runner(self) -> Runner:
        if self._opened is None:
            raise BackendFailedError("nothing is open in this worker.")
        return self._opened

    def open(self, backend: str, artifact: Artifact, options: RunOptions) -> None:
        """Open the artifact.

        Raises:
            BackendUnavailableError: the backend cannot run here.
            BackendFailedError: it does not run this format, or cannot load the artifact.
        """
        from deploykit import registry

        begin = time.perf_counter_ns()
        found = registry.backend(backend)
        reason = found.available()
        if reason is not None:
            raise BackendUnavailableError(reason)
        if artifact.format not in found.accepts:
            raise BackendFailedError(
                f"the backend {backend!r} runs {', '.join(sorted(found.accepts))}, and this is {artifact.format}."
            )
        self._opened = found.open(artifact, options)
        self._load_ms = (time.perf_counter_ns() - begin) / 1e6

    def given(self, data: str | None, metric: str | None) -> None:
        """Take the user's inputs and metric in place of the model's own; their functions' code runs here."""
        from deploykit.given import applied

        self._given = applied(self._spec(), data, metric)

    def describe(self) -> Description:
        """What the model takes and is judged by."""
        from deploykit.loading import source_hash

        spec = self._spec()
        metric = spec.metric
        return Description(
            spec.inputs,
            spec.outputs,
            dict(spec.dims),
            _weight_bytes(spec.module),
            None if metric is None else metric.name,
            metric is not None and metric.higher_is_better,
            source_hash(spec.module) if hasattr(spec.module, "state_dict") else None,
            dict(spec.ranges),
        )

    def feeds(self, seed: int, sizes: Mapping[str, int]) -> dict[str, Array]:
        """Inputs of the user's function, else the model's own sample."""
        return self._spec().feeds(seed, **sizes)

    def infer(self, feeds: Feeds) -> dict[str, Array]:
        """One inference; the first one is timed for the report."""
        begin = time.perf_counter_ns()
        outputs = self._runner.infer(feeds)
        if self._first_ms is None:
            self._first_ms = (time.perf_counter_ns() - begin) / 1e6
        return _checked(outputs)

    def prepare(self, key: str, sets: list[Feeds], pairs: Mapping[str, str] | None = None) -> None:
        """Hold input sets to be timed with under ``key``; those of another key are let go.

        With ``pairs`` all that is timed is one stream: each inference has the states that the last one returned.
        """
        self._sets = {key: sets}
        self._next = 0
        self._timed = self._runner.carry(pairs) if pairs else self._runner.infer

    def window(self, key: str, seconds: float, least: int) -> Timed:
        """Time inferences, the input sets in rotation, for ``seconds`` and at least ``least`` times.

        One inference before them is not timed: it finds the caches full of what the other subjects left there. Garbage
        collection is off meanwhile, so that its pauses do not fall into whichever window is unlucky.
        """
        runner, sets, clock = self._runner, self._sets[key], time.perf_counter_ns
        infer = self._timed or runner.infer
        samples: list[int] = []
        device: list[float] = []
        gc.collect()
        gc.disable()
        try:
            infer(sets[self._next % len(sets)])
            deadline = clock() + int(seconds * 1e9)
            while len(samples) < least or clock() < deadline:
                feeds = sets[self._next % len(sets)]
                self._next += 1
                begin = clock()
                infer(feeds)
                samples.append(clock() - begin)
                if (took := runner.device_ms) is not None:
                    device.append(took)
        finally:
            gc.enable()
        return Timed(samples, _milliseconds(device))

    def stream(self, steps: list[Feeds], pairs: Mapping[str, str] | None) -> dict[str, Array]:
        """Outputs of further steps, stacked; ``pairs`` begins a new stream, from the states in its first feeds."""
        import numpy as np

        if pairs is not None:
            self._stream = self._runner.carry(pairs)
        if self._stream is None:
            raise BackendFailedError("no stream was begun in this worker.")
        found = [_checked(self._stream(feeds)) for feeds in steps]
        return {name: np.stack([outputs[name] for outputs in found]) for name in found[0]}

    def requests(self, key: str, rate: float, count: int, seed: int) -> Timed | None:
        """Time ``count`` requests from arrival to answer, ``rate`` of them a second; None: the queue ran away."""
        from deploykit.bench import load

        runner, infer, sets = self._runner, self._runner.infer, self._sets[key]
        device: list[float] = []

        def answered() -> None:
            if (took := runner.device_ms) is not None:
                device.append(took)

        gc.collect()
        gc.disable()
        try:
            infer(sets[0])
            times = load.arrivals(rate, count, seed)
            samples = load.serve(lambda number: infer(sets[number % len(sets)]), times, answered)
        finally:
            gc.enable()
        return None if samples is None else Timed(samples, _milliseconds(device))

    def metric(self, remote: bool) -> float:
        """The model's metric: of this worker's own runner, or of another that the parent asks in its place."""
        metric = self._spec().metric
        if metric is None:
            raise ModelError("the model has no metric.")
        return float(metric.evaluate(self._ask if remote else self._runner.infer))

    def stats(self) -> Stats:
        """Memory so far, the times of loading and of the first inference, and what the runner says of itself."""
        runner = self._runner
        return Stats(
            _peak_memory(), self._load_ms, self._first_ms, _denormals(), runner.size_bytes, tuple(runner.notes)
        )

    def close(self) -> None:
        """Close the runner."""
        if self._opened is not None:
            self._opened.close()

    def _spec(self) -> ModelSpec:
        spec = self._given or getattr(self._runner, "spec", None)
        if not isinstance(spec, ModelSpec):
            raise ModelError("this backend does not know its model's spec, so that it cannot be the reference.")
        return spec

    def _ask(self, feeds: Feeds) -> dict[str, Array]:
        self._connection.send(("ask", dict(feeds)))
        outputs: dict[str, Array] | None = self._connection.recv()
        if outputs is None:
            raise BackendFailedError("the backend under test failed during the metric.")
        return outputs


def _checked(outputs: object) -> dict[str, Array]:
    import numpy as np

    if not isinstance(outputs, dict) or not all(isinstance(value, np.ndarray) for value in outputs.values()):
        raise BackendFailedError("the backend does not return NumPy arrays by output name.")
    return outputs


def _milliseconds(found: list[float]) -> list[float]:
    """What a runner says of its GPU, as plain numbers: a backend may be anybody's."""
    plain = [float(value) for value in found]
    if not all(0 <= value < math.inf for value in plain):
        raise BackendFailedError("the backend's device_ms is no time: it must be milliseconds, or None.")
    return plain


def _weight_bytes(module: object) -> int | None:
    state: Callable[[], Mapping[str, Any]] | None = getattr(module, "state_dict", None)
    if state is None:
        return None
    return sum(int(tensor.nbytes) for tensor in state().values())


def _peak_memory() -> int:
    """Peak resident set in bytes.

    Linux's ru_maxrss survives exec: started from a large process, it would tell the parent's size, so VmHWM it is.
    """
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _denormals() -> str:
    """Whether this thread keeps numbers below the smallest normal float32, or flushes them to zero."""
    import numpy as np

    small = np.full(1, 2.0**-126, np.float32) * np.float32(0.5)
    return "kept" if float(small[0]) > 0 else "flushed"


def environment(threads: int) -> dict[str, str]:
    """Environment variables of a worker: its thread counts, and threads that sleep rather than spin when idle."""
    paths = os.pathsep.join(path or str(Path.cwd()) for path in sys.path)
    count = str(threads)
    return {
        **os.environ,
        "PYTHONPATH": paths,
        "OMP_NUM_THREADS": count,
        "MKL_NUM_THREADS": count,
        "OPENBLAS_NUM_THREADS": count,
        "OMP_WAIT_POLICY": "PASSIVE",
        "KMP_BLOCKTIME": "0",
    }
