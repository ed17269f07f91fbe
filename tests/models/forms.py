"""Every architecture of the family in every task's form, small: ``tests.models.forms:gru__tagger`` is a factory."""

from __future__ import annotations

from collections.abc import Callable

import torch

from deploykit.types import ModelSpec, TensorSpec, ValueRange
from models import family
from models._heads import Classifier, Forecaster, StepTagger
from models._initialization import initialize_recurrent

FORMS = ("tagger", "tied", "classifier", "forecaster")
VOCABULARY, WIDTH, HIDDEN, CLASSES = 20, 8, 12, 5

TEXT = TensorSpec("text", "int64", ("batch", "time"))
LENGTHS = TensorSpec("lengths", "int64", ("batch",))
RANGES = {"text": ValueRange(0, VOCABULARY - 1), "lengths": ValueRange(1, "time")}


def spec_of(architecture: str, form: str) -> ModelSpec:
    """The architecture in that form, with the first weights that training begins with."""
    torch.manual_seed(0)
    encoder = family.encoder(architecture)
    if form == "forecaster":
        module: torch.nn.Module = Forecaster(encoder(3, HIDDEN), 2)
        inputs: tuple[TensorSpec, ...] = (TensorSpec("x", "float32", ("batch", "time", 3)),)
    elif form == "classifier":
        module, inputs = Classifier(encoder(WIDTH, HIDDEN), VOCABULARY, CLASSES), (TEXT, LENGTHS)
    else:
        tied = form == "tied"
        module = StepTagger(encoder(WIDTH, HIDDEN), VOCABULARY, VOCABULARY if tied else CLASSES, tied=tied)
        inputs = (TEXT,)
    initialize_recurrent(module)
    ranges = {tensor.name: RANGES[tensor.name] for tensor in inputs if tensor.name in RANGES}
    return ModelSpec(module.eval(), inputs, ranges=ranges, name=f"{architecture}-{form}")


def __getattr__(name: str) -> Callable[[], ModelSpec]:
    architecture, _, form = name.partition("__")
    if form not in FORMS:
        raise AttributeError(name)
    return lambda: spec_of(architecture.replace("_", "-"), form)
