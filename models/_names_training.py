"""Names by language as a task for the training loop: names of like length together, cross entropy."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deploykit.errors import UsageError
from deploykit.types import Metric

from . import _names
from ._facts import write_layout
from ._methods import buckets_by_length
from ._names_ngram import MadeUp, baselines
from ._run import State
from ._training import Step, infer_with

if TYPE_CHECKING:
    from deploykit.types import Array


BLANK = 0.02


@dataclass(frozen=True)
class Batch:
    """``text`` int64 [batch, time], ``lengths`` and ``label`` int64 [batch]."""

    text: Tensor
    lengths: Tensor
    label: Tensor


@dataclass(frozen=True)
class NamesTask:
    """Names in batches of like length (``bucketed``) or as they come; accuracy chooses and judges.

    ``balance`` weighs a language of n names by n ** -balance in the loss: 0 not at all, 1 all languages the same. In
    training a character is taken for unknown with probability ``blank``, so that the model learns to do without.
    With ``made_up`` each epoch has as many names again, drawn anew from an n-gram model of the training names: few true
    names so teach what counting knows of them, and the network does not learn them by heart.
    """

    corpus: _names.Corpus
    batch: int
    seed: int
    layout: _names.Layout
    bucketed: bool = True
    balance: float = 0.0
    blank: float = BLANK
    made_up: bool = True

    #: What ``open`` reads, for whoever has to ask for it.
    DATA: ClassVar[str] = "a folder of files LANGUAGE.txt with a name a line"
    #: The options that ``open`` takes besides.
    OPTIONS: ClassVar[frozenset[str]] = frozenset({"balance"})
    BATCHING: ClassVar[tuple[str, ...]] = ("bucketed", "shuffled")
    OUTPUTS: ClassVar[tuple[str, ...]] = ("logits",)

    @classmethod
    def open(
        cls, data: Path, *, batch: int, time: int, seed: int, batching: str = "bucketed", balance: float = 0.0
    ) -> NamesTask:
        """The task of a folder's names; ``seed`` splits them too. ``time`` says nothing here: names are whole.

        Raises:
            UsageError: the folder cannot be read, or has too few names or languages.
        """
        corpus = _names.read(data, seed)
        return cls(corpus, batch, seed, corpus.layout, batching == "bucketed", balance)

    @classmethod
    def reopen(cls, data: Path, layout: _names.Layout, *, seed: int) -> NamesTask:
        """The task of a folder as weights of that ``layout``, trained with that ``seed``, take it.

        Raises:
            UsageError: as ``open``, or the languages are others.
        """
        corpus = _names.read(data, seed)
        if corpus.layout.languages != layout.languages:
            raise UsageError(
                f"{data} has the languages {', '.join(corpus.layout.languages)}, and the weights know "
                f"{', '.join(layout.languages)}: give the folder that they were trained on."
            )
        return cls(corpus, 128, seed, layout)

    @property
    def metric(self) -> Metric:
        """Accuracy on the test names."""
        return Metric("accuracy", higher_is_better=True, evaluate=lambda infer: _names.accuracy(infer, self.held_out()))

    @property
    def fingerprint(self) -> str:
        """What the training data are, in few characters: a run is only resumed with the same."""
        names = self.corpus.parts["train"]
        told = "\n".join(f"{label} {name}" for name, label in zip(names.spellings, names.labels, strict=True))
        return hashlib.sha256(told.encode()).hexdigest()

    def held_out(self) -> dict[str, Array]:
        """The test names as metrics take them: ``text`` [n, time], ``lengths`` and ``label`` [n]."""
        return self._arrays["test"]

    def steps(self) -> Iterator[Step[Batch]]:
        generator = np.random.default_rng(self.seed)
        data = self._arrays["train"]
        while True:
            epoch = self._with_made_up(data, generator)
            for places in self._epoch(epoch["lengths"], generator):
                lengths = epoch["lengths"][places]
                text = epoch["text"][places, : lengths.max()]
                if self.blank:
                    text = np.where(generator.random(text.shape) < self.blank, np.minimum(text, _names.UNKNOWN), text)
                yield Step(Batch(*map(torch.from_numpy, (text, lengths, epoch["label"][places]))), fresh=True)

    def loss(self, module: nn.Module, batch: Batch, state: State) -> tuple[Tensor, int, State]:
        logits = module(batch.text, batch.lengths)
        return F.cross_entropy(logits.float(), batch.label, self._weights), len(batch.label), None

    def validate(self, module: nn.Module) -> float:
        """The share of wrong answers; of rare languages as of frequent ones where the loss is balanced."""
        judge = _names.macro_accuracy if self.balance else _names.accuracy
        return 1 - judge(infer_with(module, self.OUTPUTS), self._arrays["validation"])

    def facts(self, metric: Metric) -> dict[str, str]:
        measured = baselines(self.corpus)
        return {
            "baseline": f"{measured['ngram']:.6f}",
            **{name: f"{value:.6f}" for name, value in measured.items()},
            "best_possible": f"{_names.best_possible(self.corpus.parts['test']):.6f}",
            "lines": str(self.corpus.lines),
            "repeated": str(self.corpus.repeated),
            "shared": str(self.corpus.shared),
            **{f"{split}_names": str(len(names.labels)) for split, names in self.corpus.parts.items()},
            **write_layout(self.layout),
        }

    def judge(self, module: nn.Module) -> dict[str, float]:
        """What else the finished module is told by: its accuracy averaged over languages."""
        return {"macro_accuracy": _names.macro_accuracy(infer_with(module, self.OUTPUTS), self.held_out())}

    def _with_made_up(self, data: dict[str, Array], generator: np.random.Generator) -> dict[str, Array]:
        if not self.made_up:
            return data
        spellings, labels = self._sampler.draw(int(generator.integers(2**31)), data["text"].shape[1])
        text, lengths = _names.encode(spellings, self.layout)
        padding = ((0, 0), (0, data["text"].shape[1] - text.shape[1]))
        more = {"text": np.pad(text, padding), "lengths": lengths, "label": labels.astype(np.int64)}
        return {key: np.concatenate((values, more[key])) for key, values in data.items()}

    def _epoch(self, lengths: Array, generator: np.random.Generator) -> list[list[int]]:
        if self.bucketed:
            return buckets_by_length(lengths.tolist(), self.batch, seed=int(generator.integers(2**31)))
        order = generator.permutation(len(lengths)).tolist()
        return [order[start : start + self.batch] for start in range(0, len(order), self.batch)]

    @cached_property
    def _sampler(self) -> MadeUp:
        return MadeUp(self.corpus.parts["train"])

    @cached_property
    def _arrays(self) -> dict[_names.Split, dict[str, Array]]:
        return {split: self._encoded(names) for split, names in self.corpus.parts.items()}

    def _encoded(self, names: _names.Names) -> dict[str, Array]:
        text, lengths = _names.encode(names.spellings, self.layout)
        return {"text": text, "lengths": lengths, "label": names.labels.astype(np.int64)}

    @cached_property
    def _weights(self) -> Tensor | None:
        if not self.balance:
            return None
        counts = np.bincount(self.corpus.parts["train"].labels, minlength=len(self.layout.languages))
        weights = torch.from_numpy(counts.astype(np.float32) ** -self.balance)
        mean = float((weights * torch.from_numpy(counts)).sum()) / counts.sum()
        return weights.div(mean)
