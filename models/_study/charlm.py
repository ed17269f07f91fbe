"""The charlm study: the next byte of Python source, in windows that each begin from an empty state."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deploykit.errors import UsageError
from deploykit.types import DimRange, Metric, ModelSpec, TensorSpec

from .. import _charlm
from .._charlm_training import Batch, CharTask
from .._heads import StepTagger
from .._ngram import baseline
from .._run import State
from .._training import Step
from .tasks import Shape, StudyTask

if TYPE_CHECKING:
    from pathlib import Path

    from deploykit.types import Array, Feeds

    from .._training import Task


class Study(StudyTask):
    """The next byte of Python source, in windows that each begin from an empty state, so that all architectures can."""

    name, metric, unit, higher_is_better, causal = "charlm", "bits_per_character", "bits", False, True
    chunked = True

    embedding_size = 32

    #: Bytes that the test and the validation score, in as many windows as that takes.
    test_bytes, validation_bytes = 32768, 8192

    def __init__(self, data: Path | None = None) -> None:
        if data is not None:
            raise UsageError("charlm reads the standard library of the Python that runs: leave out --data.")

    def module(self, architecture: str, shape: Shape) -> nn.Module:
        inner = shape.encoder(architecture, self.embedding_size)
        return StepTagger(inner, vocabulary=_charlm.VOCABULARY, classes=_charlm.VOCABULARY)

    def spec(self, module: nn.Module, window: int) -> ModelSpec:
        chosen = _charlm.windows("held-out", max(1, self.test_bytes // window), window)
        return ModelSpec(
            module=module,
            inputs=(TensorSpec("text", "int64", ("batch", "time")),),
            outputs=(TensorSpec("logits", "float32", ("batch", "time", _charlm.VOCABULARY)),),
            sample=_charlm.sample,
            name="charlm",
            dims={"time": DimRange(1, 1024)},
            metric=Metric(self.metric, False, lambda infer: _charlm.bits_per_character(infer, chosen)),
        )

    def training(self, batch: int, window: int, seed: int, *, bucketed: bool = True, chunks: int = 1) -> Task[Any]:
        return _CharWindows(batch, window, seed, self.validation_bytes, chunks)

    def baselines(self, window: int) -> dict[str, float]:
        chosen = _charlm.windows("held-out", max(1, self.test_bytes // window), window)
        return {"3-byte n-gram": _charlm.bits_per_character(baseline(3).infer, chosen)}

    def facts(self) -> dict[str, str | int]:
        return {"text": f"Python {platform.python_version()}'s standard library", "bytes": len(_charlm.text("train"))}


@dataclass(frozen=True)
class _CharWindows:
    """Windows of the training text from random places."""

    batch: int
    time: int
    seed: int
    validation_bytes: int
    chunks: int = 1

    def steps(self) -> Iterator[Step[Batch]]:
        generator = np.random.default_rng(self.seed)
        data = _charlm.text("train")
        while True:
            starts = generator.integers(0, len(data) - self.time, self.batch)
            chosen = torch.from_numpy(data[starts[:, None] + np.arange(self.time + 1)].astype(np.int64))
            yield Step(Batch(chosen[:, :-1], chosen[:, 1:]), fresh=True)

    def loss(self, module: nn.Module, batch: Batch, state: State) -> tuple[Tensor, int, State]:
        if self.chunks > 1:
            return CharTask(self.batch, self.time, self.seed, chunks=self.chunks).loss(module, batch, None)
        logits = module(batch.text).float()
        return F.cross_entropy(logits.flatten(0, 1), batch.target.flatten()), batch.target.numel(), None

    def validate(self, module: nn.Module) -> float:
        chosen = _charlm.windows("validation", max(1, self.validation_bytes // self.time), self.time)

        def infer(feeds: Feeds) -> dict[str, Array]:
            return {"logits": module(torch.from_numpy(feeds["text"])).float().numpy()}

        return _charlm.bits_per_character(infer, chosen)

    def facts(self, metric: Metric) -> dict[str, str]:
        return {}
