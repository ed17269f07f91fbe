"""Export of models as users have them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file

from deploykit import examples, probing
from deploykit.export import to_onnx
from deploykit.types import ModelSpec, TensorSpec
from tests.export.agree import assert_agrees, operators, recurrent
from tests.export.corpus import CORPUS, NameClassifier

NAMES = Path(__file__).parents[3] / "shared" / "data" / "names"
WEIGHTS = Path(__file__).parent / "name_classifier.safetensors"


def spec_of(name: str) -> ModelSpec:
    entry = CORPUS[name]
    torch.manual_seed(0)
    module = entry.make().eval().requires_grad_(False)
    inputs = tuple(TensorSpec.parse(text) for text in entry.inputs)
    spec = ModelSpec(module, inputs, name=name, call=examples.call_by_name(inputs, module))
    return probing.with_ranges(spec)


@pytest.mark.parametrize("name", CORPUS)
def test_a_users_model_is_exported_and_answers_as_in_pytorch(name: str) -> None:
    entry = CORPUS[name]
    low = entry.least_time
    made = assert_agrees(spec_of(name), shapes=((1, low), (3, 40), (4, low + 2)))
    assert len(recurrent(made)) == entry.operators
    assert ("Scan" in Counter(operators(made.model.graph))) == entry.scan
    assert [dims.low for dims in made.dims.values()] == ([] if low == 1 else [low])
    assert [output.name for output in made.outputs] == list(entry.outputs)


def read_names() -> tuple[list[str], list[int]]:
    files = sorted(path for path in NAMES.glob("*.txt"))
    names, labels = [], []
    for label, path in enumerate(files):
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.strip():
                names.append(line.strip())
                labels.append(label)
    return names, labels


def encoded(names: list[str]) -> dict[str, np.ndarray]:
    lengths = np.array([len(name) for name in names], np.int64)
    text = np.zeros((len(names), lengths.max()), np.int64)
    for row, name in enumerate(names):
        text[row, : len(name)] = [min(ord(letter), 127) for letter in name]
    return {"text": text, "lengths": lengths}


def test_a_trained_classifier_of_names_decides_the_same() -> None:
    module = NameClassifier()
    module.load_state_dict(load_file(WEIGHTS))
    inputs = tuple(TensorSpec.parse(text) for text in CORPUS["name-classifier"].inputs)
    made = to_onnx(probing.with_ranges(ModelSpec(module.eval().requires_grad_(False), inputs)))
    session = onnxruntime.InferenceSession(made.model.SerializeToString(), providers=["CPUExecutionProvider"])
    few = ["Nguyen", "Kowalski", "O'Sullivan", "Takahashi", "Papadopoulos", "Wu"]
    for names in (few, ["Li"], few[::-1]):
        feeds = encoded(names)
        expected = module(*map(torch.from_numpy, feeds.values())).numpy()
        found = session.run(None, feeds)[0]
        assert np.abs(found - expected).max() < 2e-5
        assert (found.argmax(-1) == expected.argmax(-1)).all()


@pytest.mark.skipif(not NAMES.is_dir(), reason="the names data set is not here")
def test_the_trained_classifier_knows_its_names() -> None:
    module = NameClassifier()
    module.load_state_dict(load_file(WEIGHTS))
    names, labels = read_names()
    with torch.no_grad():
        logits = module.eval()(*map(torch.from_numpy, encoded(names).values()))
    assert (logits.argmax(-1).numpy() == np.array(labels)).mean() > 0.75
