"""The near side of a worker: starts its process, asks it, and ends it whatever happens."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from deploykit.bench.worker import environment
from deploykit.errors import BackendFailedError, BackendUnavailableError, UsageError

if TYPE_CHECKING:
    from deploykit.types import Array, Feeds

_LOG = logging.getLogger("deploykit.bench")
_START = "from deploykit.bench.worker import main; main()"
_GRACE_S = 5.0
_ERRORS = {"unavailable": BackendUnavailableError, "failed": BackendFailedError, "usage": UsageError}


class Worker:
    """One process for one subject. A context manager; on leaving it the process is gone."""

    def __init__(self, threads: int, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._connection, theirs = multiprocessing.Pipe()
        with theirs:
            # What a user's factory prints goes to stderr: stdout is for data (`--json -`).
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _START, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env=environment(threads),
                stdin=subprocess.DEVNULL,
                stdout=2,
                process_group=0,  # Ctrl-C is the parent's, which ends its workers
            )

    def call(self, command: str, *arguments: Any, answer: Callable[[Feeds], dict[str, Array]] | None = None) -> Any:
        """Send a command and return its value; ``answer`` runs what the worker asks to have inferred elsewhere.

        Raises:
            BackendUnavailableError: the backend cannot run here.
            BackendFailedError: the command failed, or the process died, or it did not answer in time and was ended.
            UsageError: the model or backend is described in a way that cannot mean anything.
        """
        try:
            self._connection.send((command, *arguments))
            kind, *rest = self._receive(command)
            while kind == "ask":
                self._reply(rest[0], answer)
                kind, *rest = self._receive(command)
        except (OSError, EOFError) as error:
            raise BackendFailedError(self._death()) from error
        if kind == "ok":
            return rest[0]
        sentence, trace = rest
        _LOG.debug("%s failed in a worker:\n%s", command, trace)
        raise _ERRORS[kind](sentence)

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether there is still somebody to ask."""
        return not self._connection.closed and self._process.poll() is None

    def close(self) -> None:
        """Ask the process to end, and end it if it does not. Calling it twice does no harm."""
        if self._connection.closed:
            return
        with contextlib.suppress(OSError, EOFError):
            if self._process.poll() is None:
                self._connection.send(("close",))
                self._connection.poll(_GRACE_S)
        self.kill()

    def kill(self) -> None:
        """End the process now."""
        self._connection.close()
        self._process.kill()
        self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.kill()

    def _receive(self, command: str) -> tuple[Any, ...]:
        if not self._connection.poll(self._timeout_s):
            self.kill()
            raise BackendFailedError(
                f"its process did not answer {command!r} within {self._timeout_s:g} s and was ended."
            )
        received: tuple[Any, ...] = self._connection.recv()
        return received

    def _reply(self, feeds: Feeds, answer: Callable[[Feeds], dict[str, Array]] | None) -> None:
        if answer is None:
            raise BackendFailedError("the worker asked for an inference elsewhere, and there is nobody to do it.")
        with self._refusing():
            self._connection.send(answer(feeds))

    @contextlib.contextmanager
    def _refusing(self) -> Iterator[None]:
        # The asking worker must hear of a failure elsewhere, or it would wait for ever; it then ends its own command.
        try:
            yield
        except (BackendFailedError, BackendUnavailableError, UsageError):
            self._connection.send(None)
            while self._receive("metric")[0] == "ask":
                self._connection.send(None)
            raise

    def _death(self) -> str:
        if self._connection.closed:
            return "its process has ended already."
        try:
            code = self._process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            self.kill()
            return "its process closed its pipe and was ended."
        self._connection.close()
        if code < 0:
            name = signal.Signals(-code).name
            return f"its process was ended by {name}{' (out of memory?)' if code == -signal.SIGKILL else ''}."
        return f"its process ended by itself with exit code {code}."
