"""TensorRT's messages: kept, so that an error can carry TensorRT's own words, and never printed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import tensorrt as trt

#: A long build may say a lot: only the last of each kind are kept.
_KEPT = 50


@dataclass
class Messages:
    """What TensorRT said, in its order: ``errors`` and ``warnings``, each once."""

    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

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


def logger(messages: Messages) -> trt.ILogger:
    """A logger of TensorRT that keeps its errors and warnings in ``messages``."""
    import tensorrt as trt

    class Logger(trt.ILogger):  # type: ignore[misc,unused-ignore] # its base has no type where TensorRT has no stubs
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
            if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
                messages.take(msg, messages.errors)
            elif severity == trt.ILogger.Severity.WARNING:
                messages.take(msg, messages.warnings)

    return Logger()
