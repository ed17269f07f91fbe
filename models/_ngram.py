"""The baseline that a recurrent model has to beat: a byte n-gram model with Witten-Bell smoothing.

P(w|h) = (c(hw) + N(h) P(w|h')) / (c(h) + N(h)), where c counts, N(h) is how many different bytes followed the context
h, and h' is h without its oldest byte; below the empty context lies the uniform 1/256. This is the interpolated form in
Chen and Goodman, "An Empirical Study of Smoothing Techniques for Language Modeling" (1998), section 2.4.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ._charlm import VOCABULARY, text

if TYPE_CHECKING:
    from deploykit.types import Array, Feeds

    from ._charlm import Bytes


@dataclass(frozen=True)
class _Counts:
    """The n-grams of one length, ascending, as numbers in base 256 (oldest byte first), and how often each came."""

    grams: Array
    counts: Array


@dataclass(frozen=True)
class NGram:
    """``order`` bytes of context, 1 or more, all shorter ones interpolated."""

    order: int
    tables: tuple[_Counts, ...]

    @classmethod
    def fit(cls, data: Bytes, order: int = 3) -> NGram:
        """Count the n-grams of 1 to ``order`` + 1 bytes in ``data``, uint8 [bytes]."""
        return cls(order, tuple(_Counts(*np.unique(_grams(data, n), return_counts=True)) for n in range(1, order + 2)))

    def probabilities(self, context: Bytes) -> Array:
        """P(next byte) for each row of contexts, uint8 [rows, length]: float64 [rows, 256]; length 0 to ``order``."""
        keys = np.zeros(len(context), dtype=np.int64)
        result = self._interpolate(np.full((len(context), VOCABULARY), 1 / VOCABULARY), keys, self.tables[0])
        for used in range(1, context.shape[1] + 1):
            keys = keys + context[:, -used].astype(np.int64) * VOCABULARY ** (used - 1)
            result = self._interpolate(result, keys, self.tables[used])
        return result

    def infer(self, feeds: Feeds) -> dict[str, Array]:
        """The model as the metric calls it: its logits are log-probabilities, with no context but the window's own."""
        window = feeds["text"].astype(np.uint8)
        batch, time = window.shape
        logits = np.empty((batch, time, VOCABULARY))
        for step in range(min(self.order - 1, time)):
            logits[:, step] = np.log(self.probabilities(window[:, : step + 1]))
        if time >= self.order:
            context = np.lib.stride_tricks.sliding_window_view(window, self.order, axis=1)
            distinct, where = np.unique(context.reshape(-1, self.order), axis=0, return_inverse=True)
            full = np.log(self.probabilities(distinct))[where.reshape(-1)]
            logits[:, self.order - 1 :] = full.reshape(batch, -1, VOCABULARY)
        return {"logits": logits}

    def _interpolate(self, shorter: Array, keys: Array, table: _Counts) -> Array:
        wanted = keys[:, None] * VOCABULARY + np.arange(VOCABULARY)
        place = np.minimum(np.searchsorted(table.grams, wanted), len(table.grams) - 1)
        counts = np.where(table.grams[place] == wanted, table.counts[place], 0)
        total = counts.sum(axis=1, keepdims=True)
        followers = (counts > 0).sum(axis=1, keepdims=True)
        seen = total > 0
        mixed = (counts + followers * shorter) / np.where(seen, total + followers, 1)
        result: Array = np.where(seen, mixed, shorter)
        return result


@functools.cache
def baseline(order: int = 3) -> NGram:
    """The n-gram model of the text that the recurrent models are trained on."""
    return NGram.fit(text("train"), order)


def _grams(data: Bytes, n: int) -> Array:
    keys = np.zeros(len(data) - n + 1, dtype=np.int64)
    for place in range(n):
        keys = keys * VOCABULARY + data[place : place + len(keys)]
    return keys
