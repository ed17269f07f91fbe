"""Advice: which architecture, hidden size, precision and backend to deploy, from measurements.

Quality comes from the study (``python -m models.study``), costs from a grid of timed files; ``measure`` takes both
anew, here. What the answer does not rest on is part of it: ``Advice.thin``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit.advise import evidence as kept
from deploykit.advise.choose import Candidate, Choice, best_of_each, weigh
from deploykit.advise.cost import Costs, Group, More, groups
from deploykit.advise.evidence import Cost, Evidence, Quality, TaskInfo
from deploykit.advise.quality import GRU, Judge
from deploykit.advise.question import Question
from deploykit.errors import UnknownNameError, UsageError

if TYPE_CHECKING:
    from deploykit.advise.probes import Probe

__all__ = ["Advice", "Question", "Training", "advise"]

Tell = Callable[[str], None]

#: Networks that are measured at first, and in each of the rounds after, until the one that is taken was.
FIRST, AGAIN, ROUNDS = 6, 3, 4
#: Hidden sizes to measure where nothing is known of the device.
BLIND = (32, 128)
#: Networks that are trained on the user's own data, the GRU among them.
TRAINED = 5


@dataclass(frozen=True)
class Training:
    """Data of the user's own: each network that is measured is trained on it. ``steps``: of each run."""

    data: Path
    task: str
    steps: int = 400
    seeds: int = 3


@dataclass(frozen=True)
class Advice:
    """``thin``: sentences on what the answer does not rest on. ``failed``: what could not be measured, and why."""

    question: Question
    choice: Choice
    tasks: tuple[TaskInfo, ...]
    thin: tuple[str, ...]
    sources: tuple[Mapping[str, Any], ...]
    measured: int = 0
    failed: tuple[str, ...] = ()

    @property
    def each(self) -> list[Candidate]:
        """The best candidate of each architecture, the best first."""
        return best_of_each(self.choice, self.question.stat)


@dataclass
class _Found:
    """What was measured here."""

    costs: list[Cost] = field(default_factory=list)
    qualities: list[Quality] = field(default_factory=list)
    task: TaskInfo | None = None
    failed: list[str] = field(default_factory=list)
    networks: set[tuple[str, int]] = field(default_factory=set)


def advise(
    question: Question,
    evidences: Sequence[Evidence],
    environment: Mapping[str, Any],
    *,
    measure: bool = False,
    training: Training | None = None,
    tell: Tell = lambda _: None,
) -> Advice:
    """Weigh every network that something is known of. With ``measure`` those that matter are timed here, and with
    ``training`` trained too.

    Raises:
        UnknownNameError: there is no such architecture or task.
        UsageError: nothing is known that fits the question, and nothing shall be measured.
        BackendUnavailableError: no backend of the device can run here.
    """
    from deploykit.advise import probes

    known = probes.architectures()
    for name in question.architectures:
        if name not in known:
            raise UnknownNameError("architecture", name, known)
    chosen = _tasks(question, evidences)
    grid = _grid(question, evidences, environment, measure)
    more = _more(question, grid)
    causal = {name: probes.causal(name) for name in known} if question.causal else {}
    found = _Found()

    def weighed() -> Choice:
        tasks, sources = list(chosen), [*evidences]
        if found.task is not None:
            tasks, sources = [found.task], [Evidence(tasks=(found.task,), qualities=tuple(found.qualities))]
        return weigh(question, Costs(grid, found.costs, more), Judge(sources, tasks), causal)

    choice = weighed()
    if measure:
        for number in range(ROUNDS):
            wanted = _shortlist(question, choice, found, FIRST if number == 0 else AGAIN)
            if not wanted:
                break
            _measure(question, wanted, found, tell)
            if training is not None and number == 0:
                _train(question, training, wanted, found, tell)
            choice = weighed()
    judged = (found.task,) if found.task is not None else tuple(chosen)
    return Advice(
        question,
        choice,
        judged,
        tuple(_thin(question, choice, judged, grid, environment, own=found.task is not None)),
        tuple({"source": one.source, "date": one.date, "machine": dict(one.machine)} for one in evidences),
        len(found.networks),
        tuple(dict.fromkeys(found.failed)),
    )


def _tasks(question: Question, evidences: Sequence[Evidence]) -> list[TaskInfo]:
    known = kept.tasks(evidences)
    for name in question.tasks:
        if name not in known:
            raise UnknownNameError("task", name, known)
    return [task for name, task in known.items() if not question.tasks or name in question.tasks]


def _grid(question: Question, evidences: Sequence[Evidence], environment: Mapping[str, Any], measure: bool) -> Group:
    """The costs that fit the question best: of its batch and threads, of this machine, of about as many features."""
    found = groups(evidences, environment) if question.device == "cpu" else []
    if not found:
        if measure:
            return Group()
        raise UsageError(f"nothing was measured on a {question.device} yet: add --measure, on a machine that has one.")

    def distance(group: Group) -> tuple[bool, bool, float]:
        batch, threads, features, _ = group.kind
        other = batch != question.batch or threads != question.threads
        return other, not group.here, abs(math.log(features / question.features))

    best = min(found, key=distance)
    batch, threads = best.kind[:2]
    if not measure and (batch, threads) != (question.batch, question.threads):
        raise UsageError(
            f"nothing was measured at batch {question.batch} with {question.threads} threads, only at batch {batch} "
            f"with {threads}: add --measure."
        )
    return best


def _more(question: Question, grid: Group) -> More | None:
    """None where the grid's networks are the question's."""
    if not grid.costs or grid.kind[2:] == (question.features, question.outputs):
        return None
    from deploykit.advise.probes import Probe, parameters

    features, outputs = grid.kind[2:]

    def more(architecture: str, hidden: int) -> int:
        own = parameters(Probe(architecture, hidden, question.features, question.outputs))
        return own - parameters(Probe(architecture, hidden, features, outputs))

    return more


def _shortlist(question: Question, choice: Choice, found: _Found, count: int) -> list[tuple[str, int]]:
    """Networks worth measuring, the most likely first; none once that which would be taken was measured."""
    if not choice.candidates:  # nothing is known of the device
        if found.networks:
            return []
        from deploykit.advise.probes import architectures

        names = question.architectures or architectures()
        return [(name, hidden) for name in names for hidden in BLIND]
    first = choice.taken or choice.nearest
    if first is None or (found.networks and first.network in found.networks):
        return []
    leader = (choice.leader,) if choice.leader else ()
    likely = [first, *leader, *best_of_each(choice, question.stat)]
    wanted = dict.fromkeys(one.network for one in likely)
    return [network for network in wanted if network not in found.networks][:count]


def _measure(question: Question, wanted: Sequence[tuple[str, int]], found: _Found, tell: Tell) -> None:
    from deploykit.advise.measure import Timing, measure

    timing = Timing((question.steps,), question.batch, question.threads, question.device, question.backends)
    done = measure([_probe(question, *network) for network in wanted], timing, tell)
    found.costs += done.costs
    found.failed += done.failed
    found.networks |= {*wanted}


def _probe(question: Question, architecture: str, hidden: int) -> Probe:
    from deploykit.advise.probes import Probe

    return Probe(architecture, hidden, question.features, question.outputs)


def _train(
    question: Question, training: Training, wanted: Sequence[tuple[str, int]], found: _Found, tell: Tell
) -> None:
    """Qualities of the user's own data, of the shortlist and of a GRU that they are held against."""
    from deploykit import registry

    networks = [*wanted][:TRAINED]
    if all(name != GRU for name, _ in networks):
        networks = [(GRU, networks[0][1]), *networks[: TRAINED - 1]]
    study = registry.zoo_part("_study.evidence")
    found.task, found.qualities = study.train_here(
        training.task, training.data, networks, question.steps, training.steps, training.seeds, tell
    )


def _thin(
    question: Question,
    choice: Choice,
    tasks: Sequence[TaskInfo],
    grid: Group,
    environment: Mapping[str, Any],
    *,
    own: bool,
) -> list[str]:
    """What the answer does not rest on: the machine, the data, and whatever the taken candidate's numbers lack."""
    one = choice.taken or choice.nearest
    said = []
    if one is not None and not one.estimate.measured and not grid.here:
        said.append(
            f"times are of {kept.told(grid.machine)}, and this is {kept.told(environment)}: add --measure to time them "
            "here"
        )
    if one is not None and not one.estimate.measured and grid.kind[2] != question.features:
        said.append(f"times are of {grid.kind[2]} features a step, not {question.features}: add --measure")
    if not own:
        names = ", ".join(task.name for task in tasks)
        said.append(f"quality is that of other data ({names}): yours may rank them differently")
    if one is not None:
        said += one.estimate.thin
        said += one.index.thin if one.index is not None else ()
    return list(dict.fromkeys(said))
