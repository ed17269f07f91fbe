"""``deploykit advise``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deploykit.advise.question import FEATURES, OUTPUTS, STEPS
from deploykit.cli import _advice, _gates, _progress, _shared
from deploykit.errors import GateError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from deploykit.advise import Question, Training
    from deploykit.advise.evidence import Evidence

#: The study's task that stands for each kind of data.
_FILE_TASK, _FOLDER_TASK = "traffic", "names"


@click.command(
    short_help="Which network to deploy, from measurements.",
    help="""Which recurrent network to train and deploy: architecture, hidden size, precision and backend.

Weighs what deploykit has measured: how well each architecture does at several sizes on three tasks (docs/study.md), and
what it costs to run. With --measure the likely ones are built and timed on this machine, and with --data they are
trained on your data too. Says what was weighed, why, and where the evidence is thin.

Ends with 0, or with 3 where nothing keeps the limits.""",
)
@click.option("--steps", type=click.IntRange(1), default=STEPS, show_default=True, help="Time steps of one inference.")
@click.option("--batch", type=click.IntRange(1), default=1, show_default=True, help="Rows of one inference.")
@click.option(
    "--features", type=click.IntRange(1), default=FEATURES, show_default=True, help="Numbers that each step brings."
)
@click.option(
    "--outputs", type=click.IntRange(1), default=OUTPUTS, show_default=True, help="Numbers that one inference answers."
)
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="CPU threads of one inference.")
@click.option(
    "--latency",
    multiple=True,
    metavar="STAT=TIME",
    help="The most that p50, p90, p95, p99 or mean may be, like p99=2ms (us, ms, s); repeatable.",
)
@click.option("--size", metavar="SIZE", help="The most that the file may have, like 1MB (kB, MB, KiB, MiB).")
@click.option("--device", type=click.Choice(["cpu", "gpu"]), default="cpu", show_default=True, help="Where it runs.")
@click.option(
    "--task",
    "tasks",
    type=_shared.NameList(),
    help="Which of the study's tasks is like yours: traffic (a series' next value), names (classes of short texts), "
    "charlm (a text's next character); all by default.",
)
@click.option("--architectures", type=_shared.NameList(), help="Weigh these alone, like gru,lstm.")
@click.option("--backend", "backends", type=_shared.NameList(), help="Weigh these backends alone, like ort.")
@click.option("--precision", "precisions", type=_shared.NameList(), help="Weigh these alone: float32, int8.")
@click.option("--causal", is_flag=True, help="Only what answers a step without those after it, as streams need.")
@click.option(
    "--data",
    type=click.Path(exists=True, path_type=Path),
    help="Your data: a CSV file of a series, whose first column is forecast, or a folder of text files, one a class, a "
    "text a line. With --measure the likely networks are trained on it.",
)
@click.option(
    "--train-steps", type=click.IntRange(1), default=400, show_default=True, help="Of each training run on --data."
)
@click.option("--seeds", type=click.IntRange(1), default=3, show_default=True, help="Runs of each network on --data.")
@click.option("--measure", is_flag=True, help="Build and time the likely networks here and now.")
@click.option(
    "--evidence",
    "files",
    multiple=True,
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="More measurements: what python -m models.study evidence or costs wrote; repeatable.",
)
@_shared.json_option
def command(
    latency: tuple[str, ...],
    size: str | None,
    data: Path | None,
    train_steps: int,
    seeds: int,
    measure: bool,
    files: tuple[Path, ...],
    json_target: str | None,
    **asked: Any,
) -> None:
    from deploykit.advise import advise
    from deploykit.advise.evidence import packaged, read
    from deploykit.bench.environment import environment

    for path in files:
        _shared.require_apart(json_target, path)
    training = None if data is None else _training(data, asked["tasks"], train_steps, seeds)
    question = _question(latency, size, training, asked)
    evidences: Sequence[Evidence] = [*(read(path) for path in files), *packaged()]
    with _progress.steps("advising") as tell:
        found = advise(
            question,
            evidences,
            environment(question.threads, ()),
            measure=measure,
            training=training if measure else None,
            tell=tell,
        )
    if json_target != "-":
        _advice.show(found, trained=training is not None and measure, data=data)
    if json_target is not None:
        _shared.emit_json(_shared.as_json(_advice.as_data(found)), json_target)
    if found.choice.taken is None:
        raise GateError(_advice.none_fits(found))


def _question(latency: tuple[str, ...], size: str | None, training: Training | None, asked: dict[str, Any]) -> Question:
    from deploykit.advise import Question
    from deploykit.units import parse_size

    limits = dict(_gates.statistic("--latency", part) for text in latency for part in text.split(","))
    try:
        size_bytes = None if size is None else parse_size(size)
    except ValueError as error:
        raise UsageError(
            f"cannot read --size {size!r}: write a number with a unit, like 1MB (kB, MB, KiB, MiB)."
        ) from (error)
    named: dict[str, Any] = {
        name: tuple(asked.pop(name) or ()) for name in ("tasks", "architectures", "backends", "precisions")
    }
    if training is not None:
        named["tasks"] = (training.task,)
    return Question(latency=limits, size_bytes=size_bytes, **named, **asked)


def _training(data: Path, tasks: tuple[str, ...] | None, steps: int, seeds: int) -> Training:
    """The task that the data is of: a file is a series, a folder holds texts by class."""
    from deploykit.advise import Training

    task = _FOLDER_TASK if data.is_dir() else _FILE_TASK
    if tasks and tuple(tasks) != (task,):
        raise UsageError(f"--data {data} is of the task {task}: leave out --task {','.join(tasks)}.")
    return Training(data, task, steps, seeds)
