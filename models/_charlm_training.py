"""Character language modelling as a task for the training loop: streams, buckets, loss, validation."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from . import _charlm
from ._ngram import baseline
from ._run import State
from ._training import Step, infer_with

if TYPE_CHECKING:
    from deploykit.types import Array, Metric


@dataclass(frozen=True)
class Batch:
    """``text`` and ``target`` int64 [batch, time]; ``mask`` bool of the same shape, or None where all targets count."""

    text: Tensor
    target: Tensor
    mask: Tensor | None = None


class Streaming(Protocol):
    """A model that goes on from a state: every ``charlm`` model."""

    def stream(self, text: Tensor, state: State) -> tuple[Tensor, State]: ...


@dataclass(frozen=True)
class CharTask:
    """The training text in contiguous streams, or by top-level segments of like length (``bucketed``).

    ``chunks`` above 1 cuts time into as many pieces whose activations are computed again on the way back.
    """

    batch: int
    time: int
    seed: int
    bucketed: bool = False
    chunks: int = 1

    def steps(self) -> Iterator[Step[Batch]]:
        make = bucketed if self.bucketed else streams
        return make(self.batch, self.time, self.seed)

    def loss(self, module: nn.Module, batch: Batch, state: State) -> tuple[Tensor, int, State]:
        model = cast(Streaming, module)
        total = torch.zeros(())
        for text, target, mask in _cut(batch, self.chunks):
            if self.chunks > 1:
                part, state = checkpoint(_summed_loss, model, text, target, mask, state, use_reentrant=False)
            else:
                part, state = _summed_loss(model, text, target, mask, state)
            total = total + part
        count = batch.target.numel() if batch.mask is None else int(batch.mask.sum())
        return total / count, count, state

    def validate(self, module: nn.Module) -> float:
        chosen = _charlm.windows("validation", _charlm.VALIDATION_WINDOWS, _charlm.WINDOW)
        return _charlm.bits_per_character(infer_with(module), chosen)

    def facts(self, metric: Metric) -> dict[str, str]:
        ngram = f"{metric.evaluate(baseline(3).infer):.6f}"
        return {
            "baseline": ngram,
            "ngram_order3": ngram,
            "train_bytes": str(len(_charlm.text("train"))),
        }


def streams(batch: int, time: int, seed: int) -> Iterator[Step[Batch]]:
    """The text, its modules shuffled, as ``batch`` streams side by side; each step goes on where the last one ended."""
    generator = np.random.default_rng(seed)
    texts = list(_charlm.sources("train").values())
    while True:
        order = generator.permutation(len(texts))
        data = np.frombuffer(b"".join(texts[index] for index in order), dtype=np.uint8)
        lane = (len(data) - 1) // batch
        starts = np.arange(batch) * lane
        for offset in range(0, lane - time + 1, time):
            chosen = data[(starts + offset)[:, None] + np.arange(time + 1)]
            yield Step(_batch(chosen), fresh=offset == 0)


def bucketed(batch: int, time: int, seed: int) -> Iterator[Step[Batch]]:
    """Top-level segments, padded to the longest of their batch, which holds up to ``batch * time`` bytes.

    Segments of like length share a batch, so little is padding; the order of the batches is random.
    """
    generator = np.random.default_rng(seed)
    parts = _training_segments(min(8, batch) * time)
    while True:
        batches = buckets(parts, batch * time, generator)
        for index in generator.permutation(len(batches)):
            yield Step(pad(batches[index]), fresh=True)


@functools.cache
def _training_segments(longest: int) -> list[bytes]:
    return [part for source in _charlm.sources("train").values() for part in segments(source, longest)]


def segments(source: bytes, longest: int) -> list[bytes]:
    """A module cut before each top-level function and class and after it; pieces of 2 to ``longest`` + 1 bytes.

    Longer segments are cut further, with one byte of overlap, since a piece's first byte is never predicted.
    """
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return _pieces(source, longest)
    lines = source.splitlines(keepends=True)
    cuts = {0, len(lines)}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            cuts.update((first - 1, node.end_lineno or first))
    bounds = sorted(cuts)
    whole = [b"".join(lines[low:high]) for low, high in pairwise(bounds)]
    return [piece for segment in whole for piece in _pieces(segment, longest)]


def buckets(parts: list[bytes], budget: int, generator: np.random.Generator) -> list[list[bytes]]:
    """Batches of segments that differ little in length, each at most ``budget`` bytes when padded (or one segment)."""
    jitter = generator.uniform(0.9, 1.1, len(parts))  # so that not the same segments meet in every epoch
    order = np.argsort(np.array([len(part) for part in parts]) * jitter)
    batches: list[list[bytes]] = []
    current: list[bytes] = []
    longest = 0
    for index in order:
        longest = max(longest, len(parts[index]))
        if current and longest * (len(current) + 1) > budget:
            batches.append(current)
            current, longest = [], len(parts[index])
        current.append(parts[index])
    return [*batches, current] if current else batches


def pad(parts: list[bytes]) -> Batch:
    """Segments as one batch, zeros behind the shorter ones, which the mask leaves out of the loss."""
    lengths = np.array([len(part) for part in parts])
    chosen = np.zeros((len(parts), lengths.max()), dtype=np.uint8)
    for row, part in zip(chosen, parts, strict=True):
        row[: len(part)] = np.frombuffer(part, dtype=np.uint8)
    mask = np.arange(1, lengths.max()) < lengths[:, None]
    return _batch(chosen, torch.from_numpy(mask))


def _batch(chosen: Array, mask: Tensor | None = None) -> Batch:
    data = torch.from_numpy(chosen.astype(np.int64))
    return Batch(data[:, :-1], data[:, 1:], mask)


def _pieces(segment: bytes, longest: int) -> list[bytes]:
    return [segment[low : low + longest + 1] for low in range(0, len(segment) - 1, longest)]


def _cut(batch: Batch, chunks: int) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    text, target = batch.text.chunk(chunks, dim=1), batch.target.chunk(chunks, dim=1)
    mask = [None] * len(text) if batch.mask is None else batch.mask.chunk(chunks, dim=1)
    yield from zip(text, target, mask, strict=True)


def _summed_loss(
    model: Streaming, text: Tensor, target: Tensor, mask: Tensor | None, state: State
) -> tuple[Tensor, State]:
    logits, state = model.stream(text, state)
    losses = F.cross_entropy(logits.float().flatten(0, 1), target.flatten(), reduction="none")
    return (losses if mask is None else losses[mask.flatten()]).sum(), state
