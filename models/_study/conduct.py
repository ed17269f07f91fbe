"""The order of a study: speeds, rates, the family, windows, ablation, latencies; saved after each."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from deploykit.bench.environment import environment
from deploykit.errors import DeploykitError

from .._methods import parameters
from . import ablation, deploy
from .pace import paces
from .plan import (
    BUDGET_SLACK,
    Job,
    Plan,
    encoder_counts,
    family_jobs,
    fit_hidden,
    rate_jobs,
    window_jobs,
)
from .results import CLAIMED, GRU, SAME_HIDDEN, Record, Results, read, require_same, save
from .runs import run
from .tasks import Shape, StudyTask
from .timing import latencies

#: Seconds that one model takes besides training, roughly: from weights to files and their metrics, and in the bench.
DEPLOY_SECONDS, TIMED_SECONDS = 8.0, 20.0
#: What validation, batches and the file system add to the steps alone.
OVERHEAD = 1.2

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Asked:
    """What the user wants besides the plan. ``data`` is a path, which no result holds."""

    architectures: tuple[str, ...]
    data: Path | None
    synthetic: bool
    threads: int
    ablation: bool


class Study:
    """One task's study in one folder. ``results`` is always what the file holds."""

    def __init__(self, task: StudyTask, plan: Plan, asked: Asked, folder: Path, tell: Tell) -> None:
        self.task, self.plan, self.asked, self.folder, self.tell = task, plan, asked, folder, tell
        self.path = folder / "results.json"
        self.hidden: dict[str, int] = {}
        self.sizes: dict[str, int] = {}
        for name in asked.architectures:
            self.hidden[name], self.sizes[name] = fit_hidden(task, name, plan.budget)
            if self.sizes[name] < (1 - BUDGET_SLACK) * plan.budget:
                tell(f"{name} has {self.sizes[name]:,} parameters, clearly under the budget of {plan.budget:,}")
        self.stacked = (
            fit_hidden(task, GRU, plan.budget, layers=2)[0] if asked.ablation and GRU in self.hidden else None
        )
        self.results = self._empty()

    def conduct(self, resume: bool) -> Results:
        """All that is not done yet. After an interruption the same call with ``resume`` goes on.

        Raises:
            UsageError: the folder holds results of other settings.
            DeploykitError: something failed that is not one model's own fault.
        """
        torch.set_num_threads(self.asked.threads)
        if resume and self.path.is_file():
            found = read(self.path)
            require_same(found, self.results, self.path)
            self.results = found
        self._time_training()
        self.plan = self.plan.scaled(self.results.share)
        self._train(rate_jobs(self.plan, self.hidden))
        self._train(family_jobs(self.plan, self.hidden))
        self._train(window_jobs(self.plan, self.hidden))
        if self.asked.ablation:
            self._train(self._ablation().jobs)
        self._time_inference()
        return self.results

    def _empty(self) -> Results:
        settings = {
            "architectures": self.asked.architectures,
            "synthetic": self.asked.synthetic,
            "threads": self.asked.threads,
            "ablation": self.asked.ablation,
            **self.plan.told(),
        }
        return Results(
            task=self.task.name,
            metric=self.task.metric,
            unit=self.task.unit,
            higher_is_better=self.task.higher_is_better,
            settings=settings,
            environment=environment(self.asked.threads, ()),
            data=self.task.facts(),
            baselines=self.task.baselines(self.plan.window),
            counts=encoder_counts([name for name in CLAIMED if name in self.hidden]),
        )

    def _keep(self, results: Results) -> None:
        self.results = results
        save(results, self.path)

    def _ablation(self) -> ablation.Planned:
        return ablation.planned(self.task, self.plan, self.hidden, self.stacked)

    def _time_training(self) -> None:
        if self.results.paces:
            return
        self.tell("timing training steps, all in turn")
        family = {
            name: Job("family", name, 0, "", self.plan.window, Shape(size), 1) for name, size in self.hidden.items()
        }
        gru = family.get(GRU, next(iter(family.values())))
        references = dict.fromkeys(family.values(), gru)
        for name in CLAIMED:
            if name in family and GRU in family:
                same = replace(family[name], variant=SAME_HIDDEN, shape=gru.shape)
                references[same] = gru
        if self.asked.ablation:
            bases = self._ablation().bases
            references |= {job: base for job, base in bases.items() if job.seed == 0}
        found = paces(self.task, self.plan, list(references), references)
        self._keep(replace(self.results, paces=tuple(found)))
        share = min(1.0, self._affordable())
        if share < 1:
            self.tell(f"all steps would not fit into {self.plan.hours:g} hours: {share:.0%} of them are made")
        self._keep(replace(self.results, share=share))

    def _affordable(self) -> float:
        """The share of the plan's steps that fits into the hours, from the speeds just measured."""
        jobs = [*rate_jobs(self.plan, self.hidden), *family_jobs(self.plan, self.hidden)]
        jobs += [*window_jobs(self.plan, self.hidden), *(self._ablation().jobs if self.asked.ablation else ())]
        seconds = sum(self._seconds(job) for job in jobs) * OVERHEAD
        deployed = self.plan.deployed * len(self.hidden) * DEPLOY_SECONDS
        timed = len(self.hidden) * TIMED_SECONDS
        return (self.plan.hours * 3600 - deployed - timed) / max(seconds, 1e-9)

    def _seconds(self, job: Job) -> float:
        pace = self.results.pace(job.architecture, job.variant if job.kind == "ablation" else "")
        if pace is None or (job.kind == "ablation" and ablation.too_slow(pace)):
            return 0.0
        return pace.seconds_per_step * job.steps * job.window / self.plan.window

    def _train(self, jobs: Iterable[Job]) -> None:
        for job in jobs:
            if not self.results.has(job.key):
                self._keep(self.results.with_record(self._record(job)))
                self._say(self.results.records[-1])

    def _record(self, job: Job) -> Record:
        total = parameters(self.task.module(job.architecture, job.shape))
        if job.kind == "ablation":
            reason = ablation.too_slow(self.results.pace(job.architecture, job.variant))
            if reason is not None:
                shape = job.shape
                return Record(
                    job.kind, job.architecture, job.seed, job.variant, job.window, shape.hidden, total, 0, reason=reason
                )
        done = run(self.task, self.plan, job, self._rate(job), total, self.folder)
        if done.weights is None or job.kind != "family" or job.seed >= self.plan.deployed:
            return done.record
        model = deploy.write_model(self.task.name, job, done.weights, self.asked.data, self.folder)
        deployed, _ = deploy.deploy(model, job, self.asked.threads)
        return replace(done.record, deployed=deployed)

    def _rate(self, job: Job) -> float:
        """The peak rate that validation chose for the architecture; the plan's first where there was no choice."""
        if job.kind == "rate":
            return float(job.variant)
        tried = [
            (one.validation, one.rate)
            for one in self.results.records
            if one.kind == "rate" and one.architecture == job.architecture and one.validation is not None
        ]
        if not tried:
            return self.plan.rates[0]
        return min(tried)[1]

    def _time_inference(self) -> None:
        if self.results.latencies:
            return
        files = [found for job in self._timed() if (found := self._files(job)) is not None]
        if files:
            rows = latencies(files, self.plan, self.asked.threads, self.tell)
            self._keep(self.results.with_latencies(itertools.chain.from_iterable(rows)))

    def _timed(self) -> list[Job]:
        jobs = list(family_jobs(replace(self.plan, seeds=1), self.hidden))
        if GRU in self.hidden and self.plan.same_hidden:
            same = Shape(self.hidden[GRU])
            jobs += [
                replace(job, variant=SAME_HIDDEN, shape=same)
                for job in jobs
                if job.architecture in CLAIMED and job.architecture != GRU
            ]
        return jobs

    def _files(self, job: Job) -> deploy.Files | None:
        """The job's files, made again where an interruption or another shape left none."""
        try:
            if not job.variant:
                return deploy.opened(self.task.name, job, self.folder)
            module = self.task.module(job.architecture, job.shape)
            model = deploy.write_model(self.task.name, job, module.state_dict(), self.asked.data, self.folder)
            return deploy.convert(model, job)
        except DeploykitError as error:
            self.tell(f"{job.architecture} is not timed: {error}")
            return None

    def _say(self, record: Record) -> None:
        name = " ".join(filter(None, (record.kind, record.architecture, record.variant, f"seed {record.seed}")))
        if record.reason is not None:
            self.tell(f"{name}: {record.reason}")
            return
        what, shown = (
            (self.task.metric, record.metric) if record.metric is not None else ("validation", record.validation)
        )
        self.tell(f"{name}: {what} {shown:.4f} after {record.seconds:.1f} s")
        if record.deployed is not None and record.deployed.reason is not None:
            self.tell(f"{name}: {record.deployed.reason}")
