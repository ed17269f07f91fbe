"""Loggers."""

from __future__ import annotations

import sys
import weakref
from typing import Any, ClassVar

from ._api import Bound, exposed
from ._enums import Severity as _Severity


@exposed
class ILogger(Bound):
    """What a logger of one's own derives from."""

    def __init__(self) -> None:
        self._begin()

    def log(self, severity: Any, msg: str) -> None:
        raise RuntimeError('Tried to call pure virtual function "ILogger::log"')


@exposed
class Logger(ILogger):
    """Writes what is at least as severe as ``min_severity`` to stderr."""

    min_severity: Any

    def __init__(self, min_severity: Any = _Severity.WARNING) -> None:
        self._begin()
        self.min_severity = min_severity

    def log(self, severity: Any, msg: str) -> None:
        if int(severity) <= int(self.min_severity):
            print(f"[TRT] [{severity.name[0]}] {msg}", file=sys.stderr)  # noqa: T201 - as the true one does


ILogger.Severity = _Severity  # type: ignore[attr-defined]
for _name, _member in _Severity.__members__.items():
    setattr(ILogger, _name, _member)
    setattr(Logger, _name, _member)


class Owner(Bound):
    """What takes a logger: a builder, a runtime, a refitter.

    The true library keeps a plain pointer to the first logger while any of these lives, ignores others with a warning
    in the first one's ears, and would crash once that one is gone.
    """

    _living: ClassVar[weakref.WeakSet[Any]] = weakref.WeakSet()
    _first: ClassVar[Any] = None

    def _register(self, logger: ILogger, function: str) -> None:
        if not Owner._living:
            Owner._first = weakref.ref(logger)
        elif Owner._first() is not logger:
            warn(
                f"The logger passed into {function} differs from one already registered for an existing builder, "
                "runtime, or refitter. So the current new logger is ignored, and TensorRT will use the existing one"
            )
        Owner._living.add(self)
        self._logger = logger  # kept alive by what it was given to, and no longer

    def __del__(self) -> None:
        in_context(self)


def in_context(what: object) -> None:
    """Note where a thing that holds memory of the GPU goes while no context of CUDA is current."""
    state, stack = (getattr(sys.modules.get("pycuda._state"), name, None) for name in ("STATE", "stack"))
    if state is not None and stack is not None and state.made["context"] and not stack():
        state.adrift.append(type(what).__name__)


def _speak(severity: Any, message: str) -> None:
    logger = Owner._first()
    if logger is None:
        raise SystemError("here the true TensorRT crashes: the first logger is gone, and what was made with it is not")
    logger.log(severity, message)


def error(message: str) -> None:
    _speak(_Severity.ERROR, message)


def warn(message: str) -> None:
    _speak(_Severity.WARNING, message)
