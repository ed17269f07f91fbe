"""Train the family on one task, deploy it, measure it, and write what came out: ``python -m models.study traffic``.

Writes ``results.json``, ``study.md`` and ``study.svg`` to ``runs/study/<task>/``. ``report`` makes one document of
several tasks' results. ``evidence`` and ``costs`` make what ``deploykit advise`` rests on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deploykit.errors import DeploykitError, UnknownNameError, UsageError

if TYPE_CHECKING:
    from ._study.plan import Plan
    from ._study.tasks import StudyTask

#: What each task's --data is.
DATA = {
    "traffic": "a detector's CSV file",
    "names": "a folder of text files, one a language, a name a line",
    "charlm": "",
}


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Which recurrent network for which task: train the family alike, deploy it, measure it."""


def _options(command: Callable[..., None]) -> Callable[..., None]:
    folder = click.Path(file_okay=False, path_type=Path)
    for option in reversed(
        (
            click.option("--quick", is_flag=True, help="A few steps, to see that all works. Its numbers mean nothing."),
            click.option(
                "--seeds", type=click.IntRange(1), help="Runs of each architecture; the default is the plan's, 3."
            ),
            click.option("--budget", type=click.IntRange(1), metavar="PARAMS", help="Parameters of each whole model."),
            click.option(
                "--hours",
                type=click.FloatRange(0, min_open=True),
                help="Where the steps would take longer on this machine, fewer are made, by everybody alike. "
                "The plans of the three tasks have two hours together.",
            ),
            click.option("--architectures", metavar="A,B", help="Which of the family; all of it by default."),
            click.option("--ablation/--no-ablation", default=True, help="Each training method, with and without it."),
            click.option(
                "--windows/--no-windows", default=True, help="Short runs at several window lengths, where the plan has."
            ),
            click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="CPU threads."),
            click.option("--resume", is_flag=True, help="Go on where an interrupted study of these options ended."),
            click.option(
                "-o", "--output", "folder", type=folder, help="Folder to write to; runs/study/TASK by default."
            ),
        )
    ):
        command = option(command)
    return command


def _command(task: str) -> click.Command:
    @click.pass_context
    def study(context: click.Context, /, **options: Any) -> None:
        _guarded(context, lambda: _study(task, **{"data": None, **options}))

    study = _options(study)
    if DATA[task]:
        study = click.option("--data", type=click.Path(path_type=Path), help=f"The data: {DATA[task]}.")(study)
    return click.command(task, help=f"Study the {task} task.")(study)


for _task in DATA:
    main.add_command(_command(_task))


@main.command()
@click.argument("folders", nargs=-1, required=True, type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help="Folder to write study.md and the pictures to.",
)
@click.pass_context
def report(context: click.Context, folders: tuple[Path, ...], output: Path) -> None:
    """Write one document of the results in FOLDERS, without running anything."""

    def written() -> None:
        from ._study.results import read
        from ._study.text import write

        write([read(folder / "results.json") for folder in folders], output)
        click.echo(f"wrote {output / 'study.md'}")

    _guarded(context, written)


@main.command()
@click.argument("folders", nargs=-1, required=True, type=click.Path(file_okay=False, path_type=Path))
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), required=True, help="File to write.")
@click.pass_context
def evidence(context: click.Context, folders: tuple[Path, ...], output: Path) -> None:
    """Condense the results in FOLDERS to what `deploykit advise --evidence` takes: quality."""

    def written() -> None:
        from datetime import UTC, datetime

        from deploykit.advise.evidence import save

        from ._study.evidence import condensed
        from ._study.results import read

        found = condensed([read(folder / "results.json") for folder in folders], f"{datetime.now(UTC):%Y-%m-%d}")
        save(found, output)
        click.echo(f"wrote {output}: {len(found.qualities)} groups of runs")

    _guarded(context, written)


@main.command()
@click.option("--architectures", metavar="A,B", help="Which of the family; all of it by default.")
@click.option("--hidden", default="16,32,64,128,256", show_default=True, help="Hidden sizes.")
@click.option("--steps", default="10,50,200", show_default=True, help="Numbers of time steps.")
@click.option("--batch", type=click.IntRange(1), default=1, show_default=True, help="Rows of one inference.")
@click.option("--features", type=click.IntRange(1), default=16, show_default=True, help="Numbers in each step.")
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="CPU threads.")
@click.option("--backend", metavar="A,B", help="Which backends; by default the usual ones of a CPU.")
@click.option("--seconds", type=click.FloatRange(0, min_open=True), default=1.0, show_default=True, help="Of each.")
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), required=True, help="File to write.")
@click.pass_context
def costs(
    context: click.Context,
    architectures: str | None,
    hidden: str,
    steps: str,
    batch: int,
    features: int,
    threads: int,
    backend: str | None,
    seconds: float,
    output: Path,
) -> None:
    """Time every architecture at several sizes on this machine: what `deploykit advise --evidence` takes as costs."""

    def written() -> None:
        from datetime import UTC, datetime

        from deploykit.advise.evidence import Evidence, machine, save
        from deploykit.advise.measure import Timing, measure
        from deploykit.advise.probes import Probe
        from deploykit.bench.environment import environment

        from . import family

        names = _names(architectures) or family.names()
        timing = Timing(_numbers("--steps", steps), batch, threads, backends=_names(backend), seconds=seconds)
        probes = [Probe(name, size, features, 1) for size in _numbers("--hidden", hidden) for name in names]
        found = measure(probes, timing, lambda said: click.echo(said, err=True))
        for said in found.failed:
            click.echo(f"not measured: {said}", err=True)
        here = machine(environment(threads, ()))
        source = "python -m models.study costs"
        save(
            Evidence(source=source, date=f"{datetime.now(UTC):%Y-%m-%d}", machine=here, costs=tuple(found.costs)),
            output,
        )
        click.echo(f"wrote {output}: {len(found.costs)} latencies")

    _guarded(context, written)


def _names(text: str | None) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part.strip() for part in (text or "").split(",") if part.strip()))


def _numbers(option: str, text: str) -> tuple[int, ...]:
    try:
        found = tuple(int(part) for part in text.split(","))
    except ValueError:
        found = ()
    if not found or min(found) < 1:
        raise UsageError(f"{option} {text!r} is no list of whole numbers above 0: write it like 16,64.")
    return found


def _guarded(context: click.Context, work: Callable[[], None]) -> None:
    try:
        work()
    except DeploykitError as error:
        click.echo(f"error: {error}", err=True)
        context.exit(error.exit_code)


def _study(
    name: str,
    *,
    data: Path | None,
    quick: bool,
    seeds: int | None,
    budget: int | None,
    hours: float | None,
    architectures: str | None,
    ablation: bool,
    windows: bool,
    threads: int,
    resume: bool,
    folder: Path | None,
) -> None:
    folder = folder or Path("runs/study") / name
    if not resume and (folder / "results.json").exists():
        raise UsageError(f"{folder} has results already: go on with --resume, or name another folder with -o.")
    from ._study.conduct import Asked, Study
    from ._study.plan import FULL, QUICK, QUICK_ARCHITECTURES
    from ._study.tasks import study_task
    from ._study.text import write

    synthetic = name == "traffic" and data is None and quick
    if synthetic:
        data = _made_up(folder)
    plan: Plan = (QUICK if quick else FULL)[name]
    plan = replace(plan, seeds=seeds or plan.seeds, budget=budget or plan.budget, hours=hours or plan.hours)
    plan = plan if windows else replace(plan, windows=())
    task = study_task(name, data)
    if architectures is None and quick:
        architectures = ",".join(QUICK_ARCHITECTURES)
    asked = Asked(_chosen(task, architectures), data, synthetic, threads, ablation)
    results = Study(task, plan, asked, folder, lambda said: click.echo(said, err=True)).conduct(resume)
    write([results], folder)
    click.echo(f"wrote {folder / 'study.md'}, {folder / f'{name}.svg'} and {folder / 'results.json'}")


def _made_up(folder: Path) -> Path:
    from ._study.traffic import make_up

    path = folder / "made-up.csv"
    make_up(path)
    click.echo(f"no --data: studying a made-up series, {path}", err=True)
    return path


def _chosen(task: StudyTask, named: str | None) -> tuple[str, ...]:
    from . import family
    from ._study.results import GRU

    able = tuple(name for name in family.names() if task.allows(name))
    if named is None:
        return able
    wanted = _names(named)
    for name in wanted:
        if name not in family.names():
            raise UnknownNameError("architecture", name, family.names())
        if name not in able:
            raise UsageError(f"{name} looks ahead, and {task.name} must not: leave it out of --architectures.")
    if GRU not in wanted:
        raise UsageError(f"every ratio is to the GRU's: add {GRU} to --architectures.")
    return wanted


if __name__ == "__main__":
    main()
