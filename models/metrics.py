"""Metrics of the zoo's tasks whose data are not in it, as ``--metric deploykit.models.metrics:NAME`` takes them.

Each is called with a model and the arrays of ``--data FILE.npz``, which ``python -m models.held_out`` writes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from deploykit.errors import UsageError

from . import _names, _traffic

if TYPE_CHECKING:
    from deploykit.types import Feeds, Infer


def mae(infer: Infer, data: Feeds) -> float:
    """Traffic: mean absolute error of the next step, in the target's own unit; lower is better (``mae:min``)."""
    _require(data, "x", "target")
    return _traffic.mae(infer, data)


def accuracy(infer: Infer, data: Feeds) -> float:
    """Names: share of right answers."""
    _require(data, "text", "lengths", "label")
    return _names.accuracy(infer, data)


def macro_accuracy(infer: Infer, data: Feeds) -> float:
    """Names: share of right answers within each language, averaged over languages."""
    _require(data, "text", "lengths", "label")
    return _names.macro_accuracy(infer, data)


def _require(data: Feeds, *names: str) -> None:
    missing = [name for name in names if name not in data]
    if missing:
        raise UsageError(f"the data have no array {missing[0]!r}: write them with python -m models.held_out.")
