"""A task as the study sees it: modules to train, data to train them on, and a spec to deploy them with."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from deploykit.errors import UnknownNameError

from ..family import Recurrent, encoder

if TYPE_CHECKING:
    from deploykit.types import Array, Feeds, Infer, ModelSpec

    from .._training import Task


#: Each has a file of its own here, which defines ``Study``.
TASKS = ("traffic", "names", "charlm")


@dataclass(frozen=True)
class Shape:
    """How a model is built: its hidden size, and whether layers are stacked, with how much dropout between them."""

    hidden: int
    layers: int = 1
    dropout: float = 0.0

    def encoder(self, architecture: str, input_size: int) -> Recurrent:
        """The encoder of that name; layers and dropout are named only where they are asked for."""
        options: dict[str, Any] = {} if self.layers == 1 else {"num_layers": self.layers, "dropout": self.dropout}
        return encoder(architecture)(input_size, self.hidden, **options)


class StudyTask(ABC):
    """One task with its data. ``window`` is always the steps of one sequence, or the longest of them."""

    name: ClassVar[str]
    metric: ClassVar[str]
    unit: ClassVar[str]
    higher_is_better: ClassVar[bool]
    #: Whether a step's answer must not depend on later steps, which leaves bidirectional encoders out.
    causal: ClassVar[bool]
    #: Whether rows differ in length, so that bucketing means something.
    ragged: ClassVar[bool] = False
    #: Whether time can be cut into pieces whose activations are computed again on the way back.
    chunked: ClassVar[bool] = False

    @abstractmethod
    def module(self, architecture: str, shape: Shape) -> nn.Module:
        """The architecture with this task's head, freshly initialized."""

    @abstractmethod
    def spec(self, module: nn.Module, window: int) -> ModelSpec:
        """What to deploy, with the metric of the test split at that window."""

    @abstractmethod
    def training(self, batch: int, window: int, seed: int, *, bucketed: bool = True, chunks: int = 1) -> Task[Any]:
        """Batches, loss and validation. ``chunks`` above 1: activations are computed again on the way back."""

    @abstractmethod
    def baselines(self, window: int) -> dict[str, float]:
        """The metric on the test split of what needs no network."""

    @abstractmethod
    def facts(self) -> dict[str, str | int]:
        """What the data is, so that two studies can be told apart; no paths."""

    def score(self, module: nn.Module, window: int) -> float:
        """The metric of the test split."""
        spec = self.spec(module.eval(), window)
        assert spec.metric is not None
        return spec.metric.evaluate(infer_with(spec))

    def allows(self, architecture: str) -> bool:
        """Whether the architecture can do the task without looking ahead."""
        return encoder(architecture).causal or not self.causal


def infer_with(spec: ModelSpec) -> Infer:
    """The spec's module as metrics call it: NumPy arrays by name in and out."""

    def infer(feeds: Feeds) -> dict[str, Array]:
        with torch.inference_mode():
            found = spec.run([torch.from_numpy(feeds[tensor.name]) for tensor in spec.inputs])
        outputs = found if isinstance(found, tuple) else (found,)
        return {tensor.name: value.float().numpy() for tensor, value in zip(spec.outputs, outputs, strict=True)}

    return infer


def study_task(name: str, data: Path | None) -> StudyTask:
    """The task of that name on the data at ``data``.

    Raises:
        UnknownNameError: there is no such task.
        UsageError: it needs data, or the data cannot be read.
    """
    if name not in TASKS:
        raise UnknownNameError("task", name, TASKS)
    found: StudyTask = import_module(f".{name}", __package__).Study(data)
    return found
