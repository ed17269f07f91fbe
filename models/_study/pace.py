"""Training speed on a machine that others use too: everybody takes turns, and only turns of one round are compared."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from deploykit.bench import stats
from deploykit.errors import ModelError

from .._methods import parameter_groups
from .._training import update
from .plan import Job, Plan
from .results import Pace
from .runs import build, initializer, recipe, training
from .statistics import Interval
from .tasks import StudyTask

#: Steps of one turn, and turns before those that count.
STEPS, WARM = 2, 1
_SHUFFLE_SEED = 0


@dataclass
class Runner:
    """One job that can be stepped. ``steps`` makes so many and returns each one's nanoseconds per 1000 targets."""

    job: Job
    module: nn.Module
    optimizer: torch.optim.Optimizer
    task: Any
    batches: Iterator[Any]
    clip: float
    seconds: list[float] = field(default_factory=list)

    def kept_bytes(self) -> int:
        """What one forward pass keeps for the way back, without the parameters; each storage counts once."""
        own = {parameter.untyped_storage().data_ptr() for parameter in self.module.parameters()}
        kept: dict[int, int] = {}

        def note(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with (
            torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
            torch.autocast("cpu", torch.bfloat16, enabled=self.job.methods.amp),
        ):
            self.task.loss(self.module, next(self.batches).batch, None)
        return sum(kept.values())

    def steps(self, count: int, clock: Callable[[], int]) -> list[int]:
        found = []
        for _ in range(count):
            batch = next(self.batches).batch
            began = clock()
            with torch.autocast("cpu", torch.bfloat16, enabled=self.job.methods.amp):
                loss, targets, _ = self.task.loss(self.module, batch, None)
            update(self.module, self.optimizer, loss, self.clip)
            taken = clock() - began
            self.seconds.append(taken / 1e9)
            found.append(round(taken * 1000 / targets))
        return found


def paces(
    task: StudyTask,
    plan: Plan,
    jobs: Sequence[Job],
    references: Mapping[Job, Job],
    clock: Callable[[], int] = time.perf_counter_ns,
) -> list[Pace]:
    """The training speed of every job, with its ratio to the job that ``references`` names for it.

    One process, one model each, the same batches: in each of ``plan.pace_rounds`` rounds every job makes ``STEPS``
    steps, in an order drawn anew. The ratio is the median over the rounds of the ratios within a round, with its
    bootstrap interval (``deploykit.bench.stats``). A job that cannot train here is left out.
    """
    runners: dict[Job, Runner] = {}
    kept: dict[Job, int] = {}
    windows: dict[Job, list[list[int]]] = {}
    for job in dict.fromkeys(jobs):
        runner = _runner(task, plan, job)
        try:
            kept[job] = runner.kept_bytes()
            for _ in range(WARM):
                runner.steps(STEPS, clock)
        except (RuntimeError, ModelError):  # bfloat16 has no kernel for every layer on every CPU
            continue
        runners[job], windows[job] = runner, []
    order = list(runners)
    shuffle = random.Random(_SHUFFLE_SEED).shuffle
    for _ in range(plan.pace_rounds):
        shuffle(order)
        for job in order:
            windows[job].append(runners[job].steps(STEPS, clock))
    return [
        replace(
            _pace(job, windows[job], windows[references[job]]),
            seconds_per_step=median(runners[job].seconds),
            kept_bytes=kept[job],
        )
        for job in jobs
        if job in windows and references[job] in windows
    ]


def _runner(task: StudyTask, plan: Plan, job: Job) -> Runner:
    module = build(task, job)
    initializer(job.methods)(module)
    how = recipe(plan, job, plan.rates[0])
    groups = parameter_groups(module, how.lr, lr_scale=how.lr_scale, weight_decay=how.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=how.lr, betas=(0.9, 0.98))
    batches = training(task, plan, job)
    return Runner(job, module.train(), optimizer, batches, iter(batches.steps()), how.clip)


def _pace(job: Job, mine: Sequence[Sequence[int]], reference: Sequence[Sequence[int]]) -> Pace:
    ratio = stats.speedup(mine, reference, vs="", seed=0)
    seconds = median(median(window) for window in mine) / 1e9
    return Pace(
        job.architecture,
        job.variant,
        job.shape.hidden,
        seconds,
        Interval(ratio.median, ratio.low, ratio.high),
    )
