"""Training runs: one job in, one record and the best weights out."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from deploykit.errors import ModelError

from .._initialization import initialize_recurrent
from .._training import Recipe, train
from .plan import Job, Methods, Plan
from .results import Record
from .tasks import StudyTask

if TYPE_CHECKING:
    from .._training import Task

#: Looks at the validation split in one run: enough to find the best weights, few enough to cost little.
VALIDATIONS = 8
CHUNKS = 4
ENCODER_RATE = 0.5


@dataclass(frozen=True)
class Trained:
    """A record, and the weights with the best validation; None where training failed, which the record explains."""

    record: Record
    weights: dict[str, Tensor] | None


def build(task: StudyTask, job: Job) -> nn.Module:
    """The job's module with its seed's weights."""
    torch.manual_seed(job.seed)
    return task.module(job.architecture, job.shape)


def recipe(plan: Plan, job: Job, rate: float) -> Recipe:
    """One recipe for all architectures but for the peak rate, less what the job's methods leave out."""
    return Recipe(
        steps=job.steps,
        batch=plan.batch,
        time=job.window,
        lr=rate,
        clip=1.0 if job.methods.clipping else math.inf,
        lr_scale={"encoder": ENCODER_RATE} if job.methods.layer_rates else {},
    )


def training(task: StudyTask, plan: Plan, job: Job) -> Task[Any]:
    """The job's batches, loss and validation."""
    chunks = CHUNKS if job.methods.checkpointing else 1
    return task.training(plan.batch, job.window, job.seed, bucketed=job.methods.bucketing, chunks=chunks)


def initializer(methods: Methods) -> Callable[[nn.Module], None]:
    """What gives a module its first weights: the zoo's own way, less what is left out."""
    return partial(initialize_recurrent, orthogonal=methods.orthogonal, forget_bias=1.0 if methods.forget_bias else 0.0)


def run(task: StudyTask, plan: Plan, job: Job, rate: float, parameters: int, folder: Path) -> Trained:
    """Train the job's model and judge its best weights on the test split.

    Only the weights that validation chose ever see the test split, once. A run that diverges is a record that says so.

    Raises:
        OutputError: a file cannot be written.
    """
    module = build(task, job)
    record = Record(
        kind=job.kind,
        architecture=job.architecture,
        seed=job.seed,
        variant=job.variant,
        window=job.window,
        hidden=job.shape.hidden,
        parameters=parameters,
        steps=job.steps,
        rate=rate,
    )
    place = folder / "runs" / job.name
    began = time.process_time()
    try:
        found = train(
            module,
            training(task, plan, job),
            recipe(plan, job, rate),
            folder=place,
            amp=job.methods.amp,
            validations=VALIDATIONS,
            initialize=initializer(job.methods),
        )
    except ModelError as error:
        return Trained(replace(record, reason=str(error)), None)
    finally:
        shutil.rmtree(place, ignore_errors=True)  # a run is short, and is done again rather than resumed
    module.load_state_dict(found.weights)
    return Trained(
        replace(
            record,
            best_step=found.step,
            targets=round(found.seconds * found.targets_per_second),
            seconds=found.seconds,
            cpu_seconds=time.process_time() - began,
            validation=found.validation,
            metric=None if job.kind == "rate" else task.score(module, job.window),
        ),
        found.weights,
    )
