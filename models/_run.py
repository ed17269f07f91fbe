"""A training run: how far it is, the best weights so far, and its way to disk and back."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from deploykit.errors import ModelError, WeightsError
from deploykit.files import atomic_path

if TYPE_CHECKING:
    from ._averaging import Average

State = Any  # a tensor, a tuple of tensors, or None; only the model knows


@dataclass(frozen=True)
class Result:
    """The best weights by validation, and at which step they were met."""

    weights: dict[str, Tensor]
    validation: float
    step: int
    seconds: float
    targets_per_second: float


@dataclass
class Progress:
    step: int = 0
    seconds: float = 0.0
    targets: int = 0
    best: float = math.inf
    best_step: int = 0
    stale: int = 0  # validations since the best one


class Run:
    """All that changes while training, and its way to disk and back."""

    def __init__(
        self,
        path: Path,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        scheduler: torch.optim.lr_scheduler.LambdaLR,
        fingerprint: str = "",
        average: Average | None = None,
    ) -> None:
        self.fingerprint, self.average = fingerprint, average
        self.path, self.module, self.optimizer, self.scheduler = path, module, optimizer, scheduler
        self.progress = Progress()
        self.state: State = None
        self.best: dict[str, Tensor] = {}

    def advance(self, targets: int, state: State, seconds: float) -> int:
        self.state = state
        self.progress.step += 1
        self.progress.targets += targets
        self.progress.seconds = seconds
        return self.progress.step

    def consider(self, validation: float) -> float:
        self.progress.stale += 1
        if validation < self.progress.best:
            self.progress.best, self.progress.best_step, self.progress.stale = validation, self.progress.step, 0
            self.best = copy.deepcopy(self.module.state_dict())
        return validation

    def result(self) -> Result:
        done = self.progress
        if not self.best:
            raise ModelError("the validation was never a number: train again with a lower --lr or --clip.")
        return Result(self.best, done.best, done.best_step, done.seconds, done.targets / max(done.seconds, 1e-9))

    def save(self) -> None:
        content = {
            "module": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.scheduler.last_epoch,
            "progress": vars(self.progress),
            "state": self.state,
            "best": self.best,
            "random": torch.get_rng_state(),
            "fingerprint": self.fingerprint,
            "average": None if self.average is None else self.average.state(),
        }
        with atomic_path(self.path) as temporary:
            torch.save(content, temporary)

    def load(self) -> None:
        if not self.path.is_file():
            raise WeightsError(f"there is no checkpoint at {self.path} to resume: train without --resume.")
        try:
            content = torch.load(self.path, weights_only=True)
            if content.get("fingerprint", "") != self.fingerprint:
                raise WeightsError(
                    f"{self.path} is a checkpoint of other data or options of the task: train without --resume."
                )
            self.module.load_state_dict(content["module"])
            self.optimizer.load_state_dict(content["optimizer"])
            if self.average is not None:
                self.average.load(content["average"])
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            raise WeightsError(f"{self.path} is not a checkpoint of this model: train without --resume.") from error
        self.scheduler.last_epoch = content["schedule"]
        self.progress = Progress(**content["progress"])
        self.state, self.best = content["state"], content["best"]
        torch.set_rng_state(content["random"])
