"""Every error that deploykit raises on purpose: one tree, one sentence each, one exit code each.

The message names the thing and the next step. Exit codes: 1 error, 2 usage, 3 ran, but outside a tolerance or a gate.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class DeploykitError(Exception):
    """Base of the tree. ``exit_code`` is what the command line ends with."""

    exit_code = 1


class UsageError(DeploykitError):
    """An argument, option or configuration value that cannot mean anything."""

    exit_code = 2


class UnknownNameError(UsageError):
    """A name that nothing answers to; offers the nearest ones."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        names = sorted(known)
        close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(names) or 'none'}."
        super().__init__(f"unknown {kind} {name!r}: {hint}")


class ModelError(DeploykitError):
    """A model that cannot be found, built or run in PyTorch."""


class WeightsError(DeploykitError):
    """A weights file that is missing, unreadable, unsafe, or does not fit its module."""


class ArtifactError(DeploykitError):
    """An artifact or manifest that is missing, damaged, or not what its manifest says."""


class ExportError(DeploykitError):
    """A model that cannot be exported, with the module and operator where known."""


class QuantizationError(DeploykitError):
    """A graph that cannot be quantized as asked."""


class KernelsError(DeploykitError):
    """The library of fused int8 operators is not there, or does not fit this deploykit."""


class BuildError(DeploykitError):
    """An engine that cannot be built as asked."""


class BackendUnavailableError(DeploykitError):
    """A backend that cannot run on this machine; the message says what to install."""


class BackendFailedError(DeploykitError):
    """A backend that was there and failed while running."""


class WrongAnswerError(BackendFailedError):
    """A backend that ran and answered what cannot be compared: NaN, Inf, another shape, or no such output."""


class OutputError(DeploykitError):
    """A file that could not be written."""


class GateError(DeploykitError):
    """The work was done, and its result lies outside a tolerance or a gate."""

    exit_code = 3


def missing_extra(package: str, extra: str) -> str:
    """The sentence for a package that an extra of deploykit installs."""
    return f"{package} is not installed: run pip install 'deploykit[{extra}]'."


def first_line(error: BaseException) -> str:
    """The first line of what an exception says, without its full stop; its class where it says nothing."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__).rstrip(".")
