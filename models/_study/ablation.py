"""The ablation: each training method, with and without it, all else equal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from .plan import Job, Methods, Plan
from .results import GRU, LSTM, Pace
from .tasks import Shape, StudyTask

#: What has everything that the others leave out, and nothing that they add; by architecture.
BASE, TWO_LAYERS = "base", "two layers"
#: A method that makes a step so many times as long is timed, and not trained with.
TOO_SLOW = 3.0
DROPOUT = 0.2


@dataclass(frozen=True)
class Ablation:
    """One method. ``methods`` is the run that differs from ``base``, and ``adds`` says that it has what base lacks."""

    method: str
    variant: str
    architecture: str
    methods: Methods
    base: str = BASE
    adds: bool = False
    layers: int = 1
    dropout: float = 0.0


ALL = (
    Ablation("orthogonal recurrent weights", "no orthogonal", GRU, Methods(orthogonal=False)),
    Ablation("forget-gate bias 1", "no forget bias", LSTM, Methods(forget_bias=False)),
    Ablation("clipping by norm at 1", "no clipping", GRU, Methods(clipping=False)),
    Ablation("half the rate for the encoder", "one rate", GRU, Methods(layer_rates=False)),
    Ablation(
        "dropout between two layers", "dropout", GRU, Methods(dropout=True), TWO_LAYERS, True, layers=2, dropout=DROPOUT
    ),
    Ablation("bucketing by length", "no bucketing", GRU, Methods(bucketing=False)),
    Ablation("bfloat16 autocast (AMP)", "amp", GRU, Methods(amp=True), adds=True),
    Ablation("gradient checkpointing", "checkpointing", GRU, Methods(checkpointing=True), adds=True),
)


@dataclass(frozen=True)
class Planned:
    """The runs of a task's ablation, and for each the base that it is held against."""

    jobs: tuple[Job, ...]
    bases: Mapping[Job, Job] = field(default_factory=dict)


def applicable(task: StudyTask, architectures: Mapping[str, int]) -> Iterator[Ablation]:
    """Those that mean something here: bucketing where rows differ in length, checkpointing where time can be cut."""
    for one in ALL:
        fits = one.architecture in architectures
        if fits and (one.methods.bucketing or task.ragged) and (not one.methods.checkpointing or task.chunked):
            yield one


def planned(task: StudyTask, plan: Plan, hidden: Mapping[str, int], stacked: int | None) -> Planned:
    """Every run of the ablation, seed after seed; ``stacked`` is the hidden size of two layers within the budget."""
    bases: dict[Job, Job] = {}
    for seed in range(plan.seeds):
        for one in applicable(task, hidden):
            size = hidden[one.architecture] if one.layers == 1 else stacked
            if size is None:
                continue
            base = Job(
                "ablation", one.architecture, seed, one.base, plan.window, Shape(size, one.layers), plan.ablation_steps
            )
            bases.setdefault(base, base)
            changed = Shape(size, one.layers, one.dropout)
            bases[replace(base, variant=one.variant, shape=changed, methods=one.methods)] = base
    return Planned(tuple(bases), bases)


def too_slow(pace: Pace | None) -> str | None:
    """Why a method is not trained with here; None where it can be."""
    if pace is None:
        return "this CPU cannot train with it"
    if pace.ratio.median > TOO_SLOW:
        return f"a step takes {pace.ratio.median:.1f} times as long here, so it was timed and not trained"
    return None
