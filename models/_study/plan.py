"""What a study runs: sizes, steps and runs of each task, and the hidden size that fits a budget of parameters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from deploykit.errors import UsageError

from .._methods import hidden_size_for, parameters
from .results import CLAIMED, Key, Kind
from .tasks import Shape, StudyTask

#: Hidden sizes are multiples of this: attention divides them among its heads, and kernels like them.
MULTIPLE = 4
#: The hidden and input size that ``Results.counts`` counts the encoders' parameters at.
COUNTED = 64
#: A budget that is missed by more than this is no equal budget.
BUDGET_SLACK = 0.1


@dataclass(frozen=True)
class Methods:
    """The training methods, each of which an ablation switches: those on by default off, the others on."""

    orthogonal: bool = True
    forget_bias: bool = True
    clipping: bool = True
    layer_rates: bool = True
    bucketing: bool = True
    dropout: bool = False
    amp: bool = False
    checkpointing: bool = False


@dataclass(frozen=True)
class Job:
    """One training run, fully described."""

    kind: Kind
    architecture: str
    seed: int
    variant: str
    window: int
    shape: Shape
    steps: int
    methods: Methods = field(default_factory=Methods)

    @property
    def key(self) -> Key:
        return (self.kind, self.architecture, self.variant, self.seed)

    @property
    def name(self) -> str:
        """A name for files."""
        return "-".join(filter(None, (self.kind, self.architecture, self.variant.replace(" ", "-"), str(self.seed))))


@dataclass(frozen=True)
class Plan:
    """How much of a task is run.

    ``rates``: peak learning rates, of which validation chooses one per architecture, in runs of ``rate_steps``.
    ``deployed``: how many of the seeds' models become files; the first is also timed. ``same_hidden``: whether the
    architectures that the claims are about are timed at the GRU's hidden size too. ``hours``: where the steps would
    take longer on this machine, fewer are made, by everybody alike.
    """

    budget: int
    steps: int
    batch: int
    window: int
    seeds: int
    rates: tuple[float, ...]
    rate_steps: int
    windows: tuple[int, ...] = ()
    window_steps: int = 0
    ablation_steps: int = 0
    pace_rounds: int = 12
    bench_seconds: float = 1.0
    bench_rounds: int = 20
    deployed: int = 3
    same_hidden: bool = True
    hours: float = 0.7

    def told(self) -> dict[str, Any]:
        """The plan as settings of results."""
        return asdict(self)

    def scaled(self, share: float) -> Plan:
        """With so much of the steps, everywhere: what makes a study fit its hours."""

        def fewer(steps: int) -> int:
            return max(1, round(steps * share)) if steps else 0

        return replace(
            self,
            steps=fewer(self.steps),
            rate_steps=fewer(self.rate_steps),
            window_steps=fewer(self.window_steps),
            ablation_steps=fewer(self.ablation_steps),
        )


#: Three of these fit into two hours of two cores.
FULL = {
    "traffic": Plan(25_000, 1200, 64, 24, 3, (3e-3, 1e-2, 3e-2), 300, (10, 50, 150), 500, 500, hours=0.68),
    "names": Plan(60_000, 1200, 64, 20, 3, (3e-3, 1e-2, 3e-2), 300, (), 0, 450, hours=0.45),
    "charlm": Plan(100_000, 800, 32, 64, 3, (3e-3, 1e-2, 3e-2), 200, (10, 50, 150), 300, 300, hours=0.87),
}
#: As much as shows that all of it works, and nothing else.
QUICK = {
    "traffic": Plan(4_000, 40, 32, 12, 2, (3e-3,), 0, (10, 50), 10, 10, 3, 0.1, 5, 1, False),
    "names": Plan(8_000, 40, 32, 20, 2, (3e-3,), 0, (), 0, 10, 3, 0.1, 5, 1, False),
    "charlm": Plan(24_000, 30, 8, 24, 2, (3e-3,), 0, (10, 50), 8, 8, 3, 0.1, 5, 1, False),
}
#: Whom a quick study takes, where nobody is named: the three that all know, and the hybrid.
QUICK_ARCHITECTURES = (*CLAIMED, "gru-selfattention")


def fit_hidden(task: StudyTask, architecture: str, budget: int, layers: int = 1) -> tuple[int, int]:
    """The largest hidden size whose whole model has at most ``budget`` parameters, by bisection, and how many it has.

    Raises:
        UsageError: even the smallest model has more.
    """
    with torch.random.fork_rng(devices=()):
        smallest = parameters(task.module(architecture, Shape(MULTIPLE, layers)))
        if smallest > budget:
            raise UsageError(
                f"{architecture} has {smallest:,} parameters at least, more than --budget {budget:,}: give a larger "
                "budget."
            )
        units = hidden_size_for(lambda size: task.module(architecture, Shape(size * MULTIPLE, layers)), budget)
        hidden = units * MULTIPLE
        return hidden, parameters(task.module(architecture, Shape(hidden, layers)))


def encoder_counts(architectures: Sequence[str]) -> dict[str, int]:
    """Parameters of each encoder alone, at one hidden and input size."""
    with torch.random.fork_rng(devices=()):
        return {name: parameters(Shape(COUNTED).encoder(name, COUNTED)) for name in architectures}


def family_jobs(plan: Plan, hidden: dict[str, int]) -> Iterator[Job]:
    """Seed after seed rather than architecture after architecture, so that an interrupted study has pairs."""
    for seed in range(plan.seeds):
        for name, size in hidden.items():
            yield Job("family", name, seed, "", plan.window, Shape(size), plan.steps)


def rate_jobs(plan: Plan, hidden: dict[str, int]) -> Iterator[Job]:
    """Short runs on a seed of their own, one for each rate, where there is a choice."""
    if len(plan.rates) > 1:
        for name, size in hidden.items():
            for rate in plan.rates:
                yield Job("rate", name, plan.seeds, f"{rate:g}", plan.window, Shape(size), plan.rate_steps)


def window_jobs(plan: Plan, hidden: dict[str, int]) -> Iterator[Job]:
    for seed in range(plan.seeds):
        for window in plan.windows:
            for name in CLAIMED:
                if name in hidden:
                    yield Job("window", name, seed, str(window), window, Shape(hidden[name]), plan.window_steps)
