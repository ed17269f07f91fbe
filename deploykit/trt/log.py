"""TensorRT's messages: kept, so that an error can carry TensorRT's own words, and never printed."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import ModuleType

    import tensorrt as trt

#: A long build may say a lot: only the last of each kind are kept.
_KEPT = 50


@dataclass(eq=False)
class Messages:
    """What TensorRT said, in its order: ``errors`` and ``warnings``, each once.

    ``stopped`` holds what was raised while it spoke (Ctrl-C, say), which must not arrive in TensorRT's C++.
    """

    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    stopped: list[BaseException] = field(default_factory=list)

    def told(self, otherwise: str) -> str:
        """The errors since the last call as one clause, without a full stop; ``otherwise`` where there were none."""
        said, self.errors = self.errors, []
        return "; ".join(said).rstrip(". ") or otherwise

    def take(self, message: str, into: list[str]) -> None:
        """Keep one message, in one line, if it is new."""
        text = " ".join(message.split())
        if text and text not in into:
            into.append(text)
            del into[:-_KEPT]


class _Own(threading.local):
    """Who listens in this thread, the one who began last at the end."""

    def __init__(self) -> None:
        self.listening: list[Messages] = []


_own, _all = _Own(), list[Messages]()


@contextlib.contextmanager
def hearing(messages: Messages) -> Iterator[None]:
    """Keep in ``messages`` what TensorRT says meanwhile, also in threads of its own; raise what it was stopped by."""
    _own.listening.append(messages)
    _all.append(messages)
    try:
        yield
    finally:
        _own.listening.pop()
        _all.remove(messages)
    if messages.stopped:
        raise messages.stopped.pop(0)


def logger() -> trt.ILogger:
    """The logger for all that TensorRT makes in this process.

    There is one, and it is never given up: TensorRT keeps a pointer to the first logger that it was given while
    anything made with it lives, and ignores others. So it speaks to whoever is ``hearing``.
    """
    import tensorrt as trt

    return _made(trt)


@lru_cache(maxsize=1)
def _made(_: ModuleType) -> trt.ILogger:
    import tensorrt as trt

    class Logger(trt.ILogger):  # type: ignore[misc,unused-ignore] # its base has no type where TensorRT has no stubs
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
            for messages in (_own.listening or _all)[-1:]:
                try:
                    if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
                        messages.take(msg, messages.errors)
                    elif severity == trt.ILogger.Severity.WARNING:
                        messages.take(msg, messages.warnings)
                except BaseException as error:
                    messages.stopped.append(error)

    return Logger()
