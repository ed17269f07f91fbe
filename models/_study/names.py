"""The names study: which language a name is of, read character by character."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from torch import nn

from deploykit.errors import UsageError
from deploykit.types import DimRange, ModelSpec, TensorSpec, ValueRange

from .. import _names
from .._heads import Classifier
from .._names_ngram import baselines
from .._names_training import NamesTask
from .tasks import Shape, StudyTask

if TYPE_CHECKING:
    from pathlib import Path

    from .._training import Task

#: Every run has the same split: the study's seeds are of weights and batches.
SPLIT_SEED = 0


class Study(StudyTask):
    """Accuracy over the test names. The window is the longest name that is timed, and cuts none."""

    name, metric, unit, higher_is_better, causal = "names", "accuracy", "share of names", True, False
    ragged = True

    embedding_size = 24

    def __init__(self, data: Path | None = None) -> None:
        if data is None:
            raise UsageError(
                "the names study needs a folder of files LANGUAGE.txt, a name a line: name it with --data."
            )
        self._corpus = _names.read(data, SPLIT_SEED)

    def module(self, architecture: str, shape: Shape) -> nn.Module:
        layout = self._corpus.layout
        return Classifier(shape.encoder(architecture, self.embedding_size), layout.vocabulary, len(layout.languages))

    def spec(self, module: nn.Module, window: int) -> ModelSpec:
        layout = self._corpus.layout
        return ModelSpec(
            module=module,
            inputs=(TensorSpec("text", "int64", ("batch", "time")), TensorSpec("lengths", "int64", ("batch",))),
            outputs=(TensorSpec("logits", "float32", ("batch", len(layout.languages))),),
            sample=_names.sampler(layout),
            name="names",
            dims={"time": DimRange(1, _names.LONGEST)},
            metric=self._task(1, 0).metric,
            ranges={"text": ValueRange(0, layout.vocabulary - 1), "lengths": ValueRange(1, "time")},
        )

    def training(self, batch: int, window: int, seed: int, *, bucketed: bool = True, chunks: int = 1) -> Task[Any]:
        return self._task(batch, seed, bucketed)

    def baselines(self, window: int) -> dict[str, float]:
        return {name.replace("_", " "): value for name, value in baselines(self._corpus).items()}

    def facts(self) -> dict[str, str | int]:
        parts = self._corpus.parts
        told = "\n".join(name for split in _names.SPLITS for name in parts[split].spellings)
        return {
            "languages": len(self._corpus.layout.languages),
            **{f"{split} names": len(names.spellings) for split, names in parts.items()},
            "sha256": hashlib.sha256(told.encode()).hexdigest(),
        }

    def _task(self, batch: int, seed: int, bucketed: bool = True) -> NamesTask:
        return NamesTask(self._corpus, batch, seed, self._corpus.layout, bucketed)
