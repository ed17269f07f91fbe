"""Loggers."""

from __future__ import annotations

import sys
from typing import Any

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


def error(logger: ILogger, message: str) -> None:
    logger.log(_Severity.ERROR, message)


def warn(logger: ILogger, message: str) -> None:
    logger.log(_Severity.WARNING, message)
