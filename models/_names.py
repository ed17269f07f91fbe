"""Surnames and the language they come from: folders of name lists, splits, characters as numbers, spec.

Nothing of the data is in the repository. What a module must know of the names that it was trained on (the languages and
the characters) is its ``Layout``, which its weights file carries as metadata.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec
import numpy as np

from deploykit.errors import UsageError
from deploykit.types import DimRange, ModelSpec, TensorSpec, ValueRange

from ._facts import read_layout

if TYPE_CHECKING:
    from deploykit.types import Array, Feeds, Infer, Sampler

    from ._heads import Classifier

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")

SHARES = (0.70, 0.15)  # of training and validation; the test has the rest
PADDING, UNKNOWN = 0, 1  # ids; a known character has its place in the alphabet + 2
LONGEST = 64  # characters that the exported model is promised for
EVALUATION_BATCH = 256


class Layout(msgspec.Struct, frozen=True):
    """What a module takes and returns: ``alphabet`` in order of id, ``languages`` in order of class."""

    alphabet: str
    languages: tuple[str, ...]

    @property
    def vocabulary(self) -> int:
        return len(self.alphabet) + 2


# For a module that has met no names.
USUAL = Layout(" '-" + "".join(map(chr, (*range(65, 91), *range(97, 123)))), ("one", "other"))


@dataclass(frozen=True)
class Names:
    """Every name once a language: ``spellings`` and the ``labels`` beside them, places in ``languages``."""

    languages: tuple[str, ...]
    spellings: tuple[str, ...]
    labels: Array

    def chosen(self, places: Array) -> Names:
        return Names(self.languages, tuple(self.spellings[place] for place in places), self.labels[places])


@dataclass(frozen=True)
class Corpus:
    """Names in three parts, and how they came: ``lines`` read, ``repeated`` within a language, ``shared`` by several.

    A name of several languages has all its copies in one part, so that no name of the test was seen in training.
    """

    parts: dict[Split, Names]
    lines: int
    repeated: int
    shared: int

    @cached_property
    def layout(self) -> Layout:
        """The languages, and the characters of the training names alone."""
        names = self.parts["train"]
        return Layout("".join(sorted(set("".join(names.spellings)))), names.languages)


def read(folder: Path, seed: int) -> Corpus:
    """The names in ``folder``, a file ``LANGUAGE.txt`` each with a name a line, stratified by language.

    Names are taken in Unicode's composed form (NFC), without the white space around them.

    Raises:
        UsageError: the folder has fewer than two such files, or one that cannot be read or has too few names.
    """
    files = sorted(folder.glob("*.txt")) if folder.is_dir() else []
    if len(files) < 2:
        raise UsageError(
            f"{folder} must be a folder of two or more files LANGUAGE.txt, a name a line: it has {len(files)}."
        )
    listed = {file.stem: _lines(file) for file in files}
    once = {language: sorted(set(names)) for language, names in listed.items()}
    spellings = tuple(name for names in once.values() for name in names)
    labels = np.repeat(np.arange(len(once)), [len(names) for names in once.values()])
    names = Names(tuple(once), spellings, labels)
    lines = sum(map(len, listed.values()))
    shared = len(spellings) - len(set(spellings))
    return Corpus(_split(names, seed, folder), lines, lines - len(spellings), shared)


def encode(spellings: Sequence[str], layout: Layout) -> tuple[Array, Array]:
    """Ids int64 [batch, time], padded to the longest name, and lengths int64 [batch]; unknown characters share one."""
    ids = {character: place + 2 for place, character in enumerate(layout.alphabet)}
    lengths = np.array([len(name) for name in spellings], dtype=np.int64)
    text = np.full((len(spellings), int(lengths.max(initial=1))), PADDING, dtype=np.int64)
    for row, name in zip(text, spellings, strict=True):
        row[: len(name)] = [ids.get(character, UNKNOWN) for character in name]
    return text, lengths


def predictions(infer: Infer, text: Array, lengths: Array) -> Array:
    """The likeliest class of each row, int64 [n]: ``infer`` takes ``text`` and ``lengths``, and returns ``logits``."""
    parts = []
    for start in range(0, len(text), EVALUATION_BATCH):
        part = slice(start, start + EVALUATION_BATCH)
        longest = int(lengths[part].max())
        parts.append(infer({"text": text[part, :longest], "lengths": lengths[part]})["logits"].argmax(axis=1))
    return np.concatenate(parts)


def accuracy(infer: Infer, data: Feeds) -> float:
    """The share of ``data``'s names, ``text`` and ``lengths``, whose likeliest class is their ``label``."""
    return share(predictions(infer, data["text"], data["lengths"]), data["label"])


def macro_accuracy(infer: Infer, data: Feeds) -> float:
    """Accuracy within each language, averaged over languages: rare ones count as much as frequent ones."""
    return macro_share(predictions(infer, data["text"], data["lengths"]), data["label"])


def share(predicted: Array, labels: Array) -> float:
    return float((predicted == labels).mean())


def macro_share(predicted: Array, labels: Array) -> float:
    return float(np.mean([(predicted[labels == label] == label).mean() for label in np.unique(labels)]))


def best_possible(names: Names) -> float:
    """The accuracy of always naming the right language, where a name of several languages can have but one answer."""
    return len(set(names.spellings)) / len(names.spellings)


def names_spec(name: str, build: Callable[[Layout], Classifier], weights: Path | None) -> ModelSpec:
    """The spec of a classifier for the languages that ``weights`` were trained on, with fresh weights."""
    layout = read_layout(weights, Layout) or USUAL
    return ModelSpec(
        module=build(layout).eval(),
        inputs=(TensorSpec("text", "int64", ("batch", "time")), TensorSpec("lengths", "int64", ("batch",))),
        outputs=(TensorSpec("logits", "float32", ("batch", len(layout.languages))),),
        sample=sampler(layout),
        name=name,
        dims={"time": DimRange(1, LONGEST)},
        ranges={"text": ValueRange(0, layout.vocabulary - 1), "lengths": ValueRange(1, "time")},
    )


def sampler(layout: Layout) -> Sampler:
    """Made-up names by seed: ``{"text": int64 [batch, time], "lengths": int64 [batch]}``, one row of full length.

    A capital, then consonants and vowels in turn, now and then any other character of the alphabet: this is for
    comparing backends, not for judging a model.
    """
    capitals = _ids(layout, str.isupper)
    vowels = _ids(layout, lambda character: character in "aeiouy")
    consonants = _ids(layout, lambda character: character in "bcdfghjklmnpqrstvwxz")
    whole = np.arange(UNKNOWN, layout.vocabulary)

    def sample(seed: int, *, batch: int, time: int) -> dict[str, Array]:
        generator = np.random.default_rng(seed)
        lengths = generator.integers(max(1, time // 3), time + 1, batch)
        lengths[0] = time
        text = np.empty((batch, time), dtype=np.int64)
        for step in range(time):
            usual = capitals if step == 0 else (vowels, consonants)[step % 2 == 0]
            text[:, step] = generator.choice(usual if len(usual) else whole, batch)
        text = np.where(generator.random(text.shape) < 0.1, generator.choice(whole, text.shape), text)
        text[np.arange(time) >= lengths[:, None]] = PADDING
        return {"text": text, "lengths": lengths.astype(np.int64)}

    return sample


def _ids(layout: Layout, wanted: Callable[[str], bool]) -> Array:
    return np.array([place + 2 for place, character in enumerate(layout.alphabet) if wanted(character)], dtype=np.int64)


def _lines(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {path} as text in UTF-8: {error}.") from error
    return [unicodedata.normalize("NFC", line.strip()) for line in text.splitlines() if line.strip()]


def _split(names: Names, seed: int, folder: Path) -> dict[Split, Names]:
    generator = np.random.default_rng(seed)
    places = _places(names.spellings)
    # A name of several languages goes where its rarest language sends it, which has the fewest to lose.
    sizes = np.bincount(names.labels)
    strata: dict[int, list[str]] = {label: [] for label in range(len(names.languages))}
    for spelling, where in places.items():
        strata[min((int(names.labels[place]) for place in where), key=lambda label: (sizes[label], label))].append(
            spelling
        )
    parts: dict[Split, list[int]] = {split: [] for split in SPLITS}
    for label, spellings in strata.items():
        ends = [round(len(spellings) * part) for part in (SHARES[0], sum(SHARES))]
        if not 0 < ends[0] < ends[1] < len(spellings):
            raise UsageError(
                f"{folder} has {len(spellings)} different names in {names.languages[label]}.txt, too few for a "
                "training, a validation and a test part: give more, or take the file away."
            )
        order = generator.permutation(len(spellings))
        for split, chosen in zip(SPLITS, np.split(order, ends), strict=True):
            parts[split] += [place for one in chosen for place in places[spellings[one]]]
    return {split: names.chosen(np.array(sorted(chosen))) for split, chosen in parts.items()}


def _places(spellings: Iterable[str]) -> dict[str, list[int]]:
    places: dict[str, list[int]] = {}
    for place, spelling in enumerate(spellings):
        places.setdefault(spelling, []).append(place)
    return places
