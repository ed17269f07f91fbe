"""What ``deploykit advise`` rests on, made of studies, and the training that it asks for on a user's own data."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import torch

from deploykit.advise.evidence import Evidence, Quality, TaskInfo
from deploykit.errors import UsageError

from .._methods import parameters
from .plan import FULL, Job
from .results import Record, Results
from .runs import run
from .tasks import Shape, StudyTask, study_task

#: What each task is, for whoever has to say which of them is like their own.
WHAT = {
    "traffic": "the next value of a series that is measured at even intervals",
    "names": "which class a short text of some 3 to 20 characters belongs to",
    "charlm": "the next character of a long text",
}
#: The peak rate of runs on a user's data: validation chose it for most architectures of the study.
RATE = 1e-2

Tell = Callable[[str], None]


def condensed(studies: Sequence[Results], date: str) -> Evidence:
    """The family's runs and those over windows, without the rest of a study.

    Raises:
        UsageError: there is no study, or one was too short to mean anything.
    """
    if not studies:
        raise UsageError("no study was given: name the folders that python -m models.study wrote.")
    for one in studies:
        if one.settings.get("synthetic"):
            raise UsageError("a study of made-up data tells nothing about quality: give it real data with --data.")
    by_task: dict[str, Results] = {}
    for one in sorted(studies, key=lambda one: -len(one.architectures)):
        by_task.setdefault(one.task, one)
    return Evidence(
        source="python -m models.study",
        date=date,
        tasks=tuple(_info(one) for one in by_task.values()),
        qualities=tuple(quality for one in studies for quality in _qualities(one)),
    )


def train_here(
    task: str,
    data: Path,
    networks: Sequence[tuple[str, int]],
    window: int,
    steps: int,
    seeds: int,
    tell: Tell = lambda _: None,
) -> tuple[TaskInfo, list[Quality]]:
    """Each of ``networks``, an architecture and its hidden size, trained on a user's data and judged on its test split.

    Raises:
        UsageError: the data cannot be read.
    """
    study = study_task(task, data)
    able = [network for network in networks if study.allows(network[0])]
    found = [_trained(study, network, window, steps, seeds, tell) for network in able]
    info = TaskInfo(
        "your data",
        WHAT[task],
        study.metric,
        study.unit,
        study.higher_is_better,
        window,
        steps,
        study.baselines(window),
    )
    return info, [one for one in found if one.metrics]


def _trained(study: StudyTask, network: tuple[str, int], window: int, steps: int, seeds: int, tell: Tell) -> Quality:
    architecture, hidden = network
    shape = Shape(hidden)
    total = parameters(study.module(architecture, shape))
    metrics = {}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # more of them slow models as small as these down
    try:
        with tempfile.TemporaryDirectory(prefix="deploykit-advise-") as folder:
            for seed in range(seeds):
                tell(f"training {architecture} {hidden} on your data, run {seed + 1} of {seeds}")
                job = Job("family", architecture, seed, "", window, shape, steps)
                record = run(study, FULL[study.name], job, RATE, total, Path(folder)).record
                if record.metric is not None:
                    metrics[seed] = record.metric
    finally:
        torch.set_num_threads(threads)
    return Quality("your data", "budget", architecture, hidden, total, window, metrics)


def _info(results: Results) -> TaskInfo:
    return TaskInfo(
        results.task,
        WHAT[results.task],
        results.metric,
        results.unit,
        results.higher_is_better,
        int(results.settings["window"]),
        round(int(results.settings["steps"]) * results.share),
        dict(results.baselines),
    )


def _qualities(results: Results) -> Iterator[Quality]:
    for architecture in results.architectures:
        pace = results.pace(architecture)
        yield from _quality(
            results,
            "budget",
            results.of("family", architecture).values(),
            None if pace is None else round(pace.ratio.median, 4),
        )
        for window in results.settings["windows"]:
            yield from _quality(results, "window", results.of("window", architecture, str(window)).values(), None)


def _quality(
    results: Results, kind: Literal["budget", "window"], records: Iterable[Record], ratio: float | None
) -> Iterator[Quality]:
    done = [one for one in records if one.metric is not None]
    if not done:
        return
    first = done[0]
    yield Quality(
        results.task,
        kind,
        first.architecture,
        first.hidden,
        first.parameters,
        first.window,
        {one.seed: round(one.metric, 5) for one in done if one.metric is not None},
        {
            one.seed: round(one.deployed.int8_metric, 5)
            for one in done
            if one.deployed is not None and one.deployed.int8_metric is not None
        },
        ratio,
    )
