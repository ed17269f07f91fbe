"""Classifiers of names that count: what a recurrent model has to beat, and learns from. Majority, naive Bayes, n-grams.

Each is fitted on the training names. Which n-gram model speaks for the baseline, how long its grams and how strong its
smoothing are, is chosen on the validation names.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Protocol

import numpy as np

from ._names import macro_share, share

if TYPE_CHECKING:
    from deploykit.types import Array

    from ._names import Corpus, Names

START, END = "\x02", "\x03"


class Counting(Protocol):
    """Log-probability up to a constant, for each language, that a name is of it."""

    def scores(self, name: str) -> Array: ...


def baselines(corpus: Corpus) -> dict[str, float]:
    """Accuracy and macro-averaged accuracy of each baseline on the test names; ``ngram`` validates best."""
    train, validation, test = (corpus.parts[split] for split in ("train", "validation", "test"))
    majority = np.full(len(test.labels), np.bincount(train.labels).argmax())
    found = _both("majority", majority, test.labels)
    chosen: list[tuple[float, dict[str, float]]] = []
    for name, models in _candidates(train).items():
        scored = [(share(predict(model, validation.spellings), validation.labels), model) for model in models]
        best, model = max(scored, key=lambda pair: pair[0])
        measured = _both(name, predict(model, test.spellings), test.labels)
        chosen.append((best, measured))
        found |= measured
    accuracy, macro = max(chosen, key=lambda pair: pair[0])[1].values()
    return {**found, "ngram": accuracy, "ngram_macro": macro}


def predict(model: Counting, spellings: Sequence[str]) -> Array:
    """The likeliest language of each name, int64 [n]."""
    return np.array([model.scores(name).argmax() for name in spellings])


@dataclass(frozen=True)
class NaiveBayes:
    """Grams of 1 to 3 characters as independent witnesses, with additive smoothing."""

    grams: dict[str, Array]
    unseen: Array
    prior: Array

    @classmethod
    def fit(cls, names: Names, smoothing: float) -> NaiveBayes:
        counts: dict[str, Array] = defaultdict(lambda: np.zeros(len(names.languages)))
        for name, label in zip(names.spellings, names.labels, strict=True):
            for gram in _grams(name):
                counts[gram][label] += 1
        total = np.log(sum(counts.values()) + smoothing * len(counts))
        known = {gram: np.log(count + smoothing) - total for gram, count in counts.items()}
        return cls(known, np.zeros(len(names.languages)), _prior(names))

    def scores(self, name: str) -> Array:
        found: Array = self.prior + sum(self.grams.get(gram, self.unseen) for gram in _grams(name))
        return found


@dataclass(frozen=True)
class WittenBell:
    """A character model for each language, ``order`` characters of context, as in ``_ngram.py``; Bayes' rule on top."""

    order: int
    counts: dict[str, Array]
    totals: dict[str, Array]
    followers: dict[str, Array]
    uniform: float
    prior: Array

    @classmethod
    def fit(cls, names: Names, order: int) -> WittenBell:
        zeros = lambda: np.zeros(len(names.languages))  # noqa: E731
        counts: dict[str, Array] = defaultdict(zeros)
        for name, label in zip(names.spellings, names.labels, strict=True):
            padded = START * order + name + END
            for place in range(order, len(padded)):
                for used in range(order + 1):
                    counts[padded[place - used : place + 1]][label] += 1
        totals: dict[str, Array] = defaultdict(zeros)
        followers: dict[str, Array] = defaultdict(zeros)
        for gram, count in counts.items():
            totals[gram[:-1]] += count
            followers[gram[:-1]] += count > 0
        characters = {gram for gram in counts if len(gram) == 1}
        return cls(order, dict(counts), dict(totals), dict(followers), 1 / (len(characters) + 1), _prior(names))

    def scores(self, name: str) -> Array:
        padded = START * self.order + name + END
        found = self.prior.copy()
        for place in range(self.order, len(padded)):
            found += np.log(self._probability(padded, place))
        return found

    def _probability(self, padded: str, place: int) -> Array:
        result = np.full(len(self.prior), self.uniform)
        for used in range(self.order + 1):
            context = padded[place - used : place]
            total = self.totals.get(context)
            if total is None:  # no longer context was met either
                break
            count, followers = self.counts.get(context + padded[place], 0.0), self.followers[context]
            mixed = (count + followers * result) / np.where(total > 0, total + followers, 1)
            result = np.where(total > 0, mixed, result)
        return result


class MadeUp:
    """Names that a language could have: drawn character by character from a Witten-Bell model of ``names``.

    A context's followers are drawn as often as they came, and with the weight that Witten-Bell smoothing gives it the
    next shorter context's. Below the empty one there is nothing: no character is made up that its language has not.
    """

    def __init__(self, names: Names, order: int = 3) -> None:
        self.labels, self.order = names.labels, order
        self.followers: dict[tuple[int, str], list[str]] = defaultdict(list)
        for name, label in zip(names.spellings, names.labels.tolist(), strict=True):
            padded = START * order + name + END
            for place in range(order, len(padded)):
                for used in range(order + 1):
                    self.followers[label, padded[place - used : place]].append(padded[place])
        # The chance that a context speaks for itself.
        self.own = {key: len(seen) / (len(seen) + len(set(seen))) for key, seen in self.followers.items()}

    def draw(self, seed: int, longest: int) -> tuple[list[str], Array]:
        """As many names as it was made of, in languages as frequent, each of 1 to ``longest`` characters."""
        generator = Random(seed)
        return [self._name(label, generator, longest) for label in self.labels.tolist()], self.labels

    def _name(self, label: int, generator: Random, longest: int) -> str:
        while True:
            padded = START * self.order
            while (character := self._next(label, padded, generator)) != END:
                padded += character
            if 0 < len(padded) - self.order <= longest:
                return padded[self.order :]

    def _next(self, label: int, padded: str, generator: Random) -> str:
        for used in range(self.order, -1, -1):
            key = label, padded[len(padded) - used :]
            seen = self.followers.get(key)
            if seen is not None and (used == 0 or generator.random() < self.own[key]):
                return generator.choice(seen)
        raise AssertionError("the empty context has followers in every language")


def _candidates(train: Names) -> dict[str, list[Counting]]:
    return {
        "naive_bayes": [NaiveBayes.fit(train, smoothing) for smoothing in (0.01, 0.03, 0.1, 0.3, 1.0)],
        "witten_bell": [WittenBell.fit(train, order) for order in (1, 2, 3, 4)],
    }


def _both(name: str, predicted: Array, labels: Array) -> dict[str, float]:
    return {name: share(predicted, labels), f"{name}_macro": macro_share(predicted, labels)}


def _prior(names: Names) -> Array:
    counts = np.bincount(names.labels, minlength=len(names.languages))
    prior: Array = np.log(counts / counts.sum())
    return prior


def _grams(name: str) -> list[str]:
    padded = START + name + END
    return [padded[low : low + n] for n in (1, 2, 3) for low in range(len(padded) - n + 1)]
