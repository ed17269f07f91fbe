from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from deploykit.errors import UsageError
from models import _names
from models._heads import Classifier
from models._names import Corpus, Layout, Names
from models._names_ngram import MadeUp, NaiveBayes, WittenBell, baselines, predict
from models._names_training import NamesTask
from models._training import Recipe, infer_with, train
from models.family.gru import Encoder

from .data import NAMES, data
from .synthetic import names


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return names(tmp_path / "names")


@pytest.fixture
def corpus(folder: Path) -> Corpus:
    return _names.read(folder, seed=0)


def whole(corpus: Corpus) -> list[tuple[str, int]]:
    return [
        (spelling, int(label))
        for part in corpus.parts.values()
        for spelling, label in zip(part.spellings, part.labels, strict=True)
    ]


def test_every_name_is_once_in_one_part(folder: Path, corpus: Corpus) -> None:
    listed = {
        (line, place)
        for place, file in enumerate(sorted(folder.glob("*.txt")))
        for line in file.read_text("utf-8").split()
    }
    assert sorted(whole(corpus)) == sorted(listed)
    assert corpus.repeated == 2
    assert corpus.lines == len(listed) + 2
    assert corpus.parts["train"].languages == ("Aish", "Onish")


def test_every_language_is_in_every_part_by_its_share(corpus: Corpus) -> None:
    for label in (0, 1):
        total = sum(one == label for _, one in whole(corpus))
        for part, share in zip(corpus.parts.values(), (0.7, 0.15, 0.15), strict=True):
            assert int((part.labels == label).sum()) == pytest.approx(total * share, abs=1.6)


@pytest.mark.parametrize("seed", range(6))
def test_a_name_of_two_languages_stays_together(folder: Path, seed: int) -> None:
    corpus = _names.read(folder, seed)
    assert corpus.shared == 1
    assert [part.spellings.count("Bothé") for part in corpus.parts.values() if "Bothé" in part.spellings] == [2]
    spellings = [set(part.spellings) for part in corpus.parts.values()]
    assert not spellings[0] & spellings[1] | spellings[1] & spellings[2] | spellings[0] & spellings[2]


def test_the_seed_makes_the_split(folder: Path, corpus: Corpus) -> None:
    same, other = _names.read(folder, 0), _names.read(folder, 1)
    assert same.parts["test"].spellings == corpus.parts["test"].spellings
    assert other.parts["test"].spellings != corpus.parts["test"].spellings


def test_a_name_is_one_however_its_accents_are_written(tmp_path: Path) -> None:
    folder = names(tmp_path / "names")
    with (folder / "Aish.txt").open("a", encoding="utf-8") as file:
        file.write("Bothe\u0301  \n\n")  # e and a combining accent; white space and empty lines are nothing
    assert _names.read(folder, 0).repeated == 3


def test_bad_folders_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"two or more files LANGUAGE\.txt.*it has 0"):
        _names.read(tmp_path / "none", 0)
    folder = names(tmp_path / "names")
    (folder / "Few.txt").write_text("One\nTwo\n")
    with pytest.raises(UsageError, match=r"2 different names in Few\.txt, too few"):
        _names.read(folder, 0)
    (folder / "Few.txt").write_bytes(b"\xff\n")
    with pytest.raises(UsageError, match=r"Few\.txt as text in UTF-8"):
        _names.read(folder, 0)


def test_characters_are_numbered_by_the_training_part_and_unknown_ones_are_one_id() -> None:
    parts = {
        split: Names(("a", "b"), (spelling,), np.array([0]))
        for split, spelling in (("train", "éab"), ("validation", "z"), ("test", "y"))
    }
    layout = Corpus(parts, 3, 0, 0).layout  # type: ignore[arg-type]
    assert (layout.alphabet, layout.vocabulary) == ("abé", 5)
    text, lengths = _names.encode(["bé", "zya"], layout)
    assert text.tolist() == [[3, 4, _names.PADDING], [_names.UNKNOWN, _names.UNKNOWN, 2]]
    assert lengths.tolist() == [2, 3]


def test_made_up_names_fit_the_model() -> None:
    layout = Layout("ABabcdeé", ("one", "other"))
    sample = _names.sampler(layout)
    made = sample(1, batch=50, time=9)
    text, lengths = made["text"], made["lengths"]
    assert text.shape == (50, 9)
    assert text.dtype == lengths.dtype == np.int64
    assert lengths[0] == 9
    assert 1 <= lengths.min() < lengths.max() == 9
    assert ((text == _names.PADDING) == (np.arange(9) >= lengths[:, None])).all()
    assert text.max() < layout.vocabulary
    assert all(np.array_equal(made[key], sample(1, batch=50, time=9)[key]) for key in made)
    assert sample(0, batch=1, time=1)["lengths"].tolist() == [1]


def test_accuracy_over_names_and_over_languages() -> None:
    predicted, labels = np.array([0, 0, 0, 0, 1]), np.array([0, 0, 0, 1, 1])
    assert _names.share(predicted, labels) == pytest.approx(0.8)
    assert _names.macro_share(predicted, labels) == pytest.approx((1 + 0.5) / 2)
    assert _names.best_possible(Names(("a", "b"), ("x", "x", "y"), np.array([0, 1, 0]))) == pytest.approx(2 / 3)


def test_naive_bayes_by_hand() -> None:
    model = NaiveBayes.fit(Names(("a", "b"), ("x", "y", "y"), np.array([0, 1, 1])), smoothing=1.0)
    # Grams of ^x$: ^ x $ ^x x$ ^x$, of which x, ^x, x$, ^x$ are a's own; there are ten different ones.
    ratio = model.scores("x")[0] - model.scores("x")[1]
    a, b = 6 + 10, 12 + 10
    expected = np.log(1 / 2) + 4 * (np.log(2 / a) - np.log(1 / b)) + 2 * (np.log(2 / a) - np.log(3 / b))
    assert ratio == pytest.approx(expected)


def test_witten_bell_is_a_probability() -> None:
    corpus = Names(("a", "b"), ("ab", "aba", "bb"), np.array([0, 0, 1]))
    model = WittenBell.fit(corpus, order=2)
    characters = "ab\x03?"  # ? stands for all that was never met
    for context in ("\x02\x02", "\x02a", "ab", "zz"):
        total = sum(model._probability(context + character, 2) for character in characters)
        np.testing.assert_allclose(total, 1)


def test_made_up_names_follow_the_n_grams_of_their_language() -> None:
    taught = Names(("a", "b"), ("ab", "ac", "ac", "ad", "xx"), np.array([0, 0, 0, 0, 1]))
    sampler = MadeUp(taught, order=1)
    drawn = [sampler.draw(seed, 6)[0] for seed in range(300)]
    assert drawn[0] == sampler.draw(0, 6)[0]
    assert {len(names) for names in drawn} == {5}
    of_a = [name for names in drawn for name in names[:4]]
    assert all(set(names[4]) == {"x"} and len(names[4]) <= 6 for names in drawn)
    assert set("".join(of_a)) == set("abcd")
    # At the start a came 4 times and nothing else: a by 4/5, else by its share of all 12, 4 of them ends, which a name
    # cannot begin with.
    first = sum(name[0] == "a" for name in of_a) / len(of_a)
    assert first == pytest.approx((4 / 5 + 1 / 5 * 4 / 12) / (1 - 1 / 5 * 4 / 12), abs=0.03)


def test_an_epoch_has_as_many_made_up_names_as_true_ones(corpus: Corpus) -> None:
    count = len(corpus.parts["train"].labels)
    steps = NamesTask(corpus, count, 0, corpus.layout, bucketed=False, blank=0).steps()
    first, second = ([next(steps).batch for _ in range(2)] for _ in range(2))
    text, lengths = _names.encode(corpus.parts["train"].spellings, corpus.layout)
    true = {tuple(row[:length].tolist()) for row, length in zip(text, lengths, strict=True)}
    seen = [
        {tuple(row[:n].tolist()) for one in epoch for row, n in zip(one.text, one.lengths, strict=True)}
        for epoch in (first, second)
    ]
    assert true <= seen[0] & seen[1]
    assert seen[0] != seen[1]
    assert sum(len(one.label) for one in first) == 2 * count


def test_counting_beats_the_majority(corpus: Corpus) -> None:
    found = baselines(corpus)
    assert found["majority_macro"] == 0.5
    assert found["ngram"] in {found["naive_bayes"], found["witten_bell"]}
    assert found["ngram"] > 0.8 > found["majority"]
    assert predict(WittenBell.fit(corpus.parts["train"], 2), ["Kola", "Kolo"]).tolist() == [0, 1]


def test_bucketing_lowers_padding_and_an_epoch_has_every_name(corpus: Corpus) -> None:
    padding = {}
    for bucketed in (True, False):
        task = NamesTask(corpus, 8, 0, corpus.layout, bucketed, blank=0, made_up=False)
        count = len(corpus.parts["train"].labels)
        epoch = [step.batch for step in islice(task.steps(), -(-count // 8))]
        seen = sorted(
            tuple(row[:length].tolist()) for one in epoch for row, length in zip(one.text, one.lengths, strict=True)
        )
        text, lengths = _names.encode(corpus.parts["train"].spellings, corpus.layout)
        assert seen == sorted(tuple(row[:length].tolist()) for row, length in zip(text, lengths, strict=True))
        padding[bucketed] = sum(int((one.text == _names.PADDING).sum()) for one in epoch)
    assert padding[True] < 0.5 * padding[False]


def test_blanks_are_unknown_characters_and_no_padding(corpus: Corpus) -> None:
    plain, blanked = (
        next(NamesTask(corpus, 30, 0, corpus.layout, blank=p, made_up=False).steps()).batch for p in (0.0, 0.5)
    )
    assert torch.equal(plain.lengths, blanked.lengths)
    changed = plain.text != blanked.text
    assert (blanked.text[changed] == _names.UNKNOWN).all()
    assert float(changed.sum() / plain.lengths.sum()) == pytest.approx(0.5, abs=0.15)
    assert torch.equal(plain.text == _names.PADDING, blanked.text == _names.PADDING)


def test_balancing_weighs_languages_alike(corpus: Corpus) -> None:
    part = corpus.parts["train"].chosen(np.arange(30))  # nearly all of the first language
    few = Corpus({**corpus.parts, "train": part}, 0, 0, 0)
    counts = np.bincount(part.labels, minlength=2)
    assert counts.min() < counts.max() / 4
    weights = NamesTask(few, 4, 0, few.layout, balance=1.0)._weights
    assert weights is not None
    assert weights[0] * counts[0] == pytest.approx(float(weights[1] * counts[1]), rel=1e-5)
    assert float((weights * torch.from_numpy(counts)).sum() / counts.sum()) == pytest.approx(1)
    assert NamesTask(few, 4, 0, few.layout)._weights is None


def test_training_learns_the_last_letter(corpus: Corpus, tmp_path: Path) -> None:
    task = NamesTask(corpus, batch=16, seed=0, layout=corpus.layout)
    torch.manual_seed(0)
    module = Classifier(Encoder(8, 8), task.layout.vocabulary, 2)
    recipe = Recipe(steps=60, batch=16, time=64, lr=3e-2)
    module.load_state_dict(train(module, task, recipe, folder=tmp_path).weights)
    infer = infer_with(module.eval())
    assert task.metric.evaluate(infer) > 0.9
    assert task.judge(module)["macro_accuracy"] == pytest.approx(_names.macro_accuracy(infer, task.held_out()))
    # Padding is nothing: the same name in longer rows has the same answer.
    text, lengths = _names.encode(["Kola"], task.layout)
    longer = np.concatenate((text, np.full((1, 5), 3)), axis=1)
    one, other = (infer({"text": rows, "lengths": lengths})["logits"] for rows in (text, longer))
    np.testing.assert_allclose(one, other, atol=1e-6)


def test_the_true_names_are_counted_as_they_are() -> None:
    corpus = _names.read(data(NAMES), seed=0)
    assert len(corpus.parts["train"].languages) == 18
    assert (corpus.lines, corpus.repeated, corpus.shared) == (20050, 2038, 562)
    assert [len(part.labels) for part in corpus.parts.values()] == pytest.approx([12600, 2700, 2700], abs=30)
