"""Train a zoo model again: ``python -m models.train charlm-gru``, or ``traffic-gru --data FILE.csv``.

Writes the weights to ``models/weights/<name>.safetensors``, and log and checkpoint to ``runs/<name>/``.
"""

from __future__ import annotations

import os
import platform
import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deploykit import registry
from deploykit.errors import DeploykitError, OutputError
from deploykit.files import atomic_path

from . import _tasks
from ._reporting import reporter

if TYPE_CHECKING:
    from ._run import Result

# What decides nothing about the weights stays out of the command that the weights file remembers.
UNREMEMBERED = {"name", "output", "folder", "resume"}

# What only some tasks take: the others say so.
TASK_OPTIONS = ("target", "columns", "minutes", "daily", "balance")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("name", metavar="MODEL")
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Weights file to write, by default the zoo's own. Pays when you try something and want to keep those.",
)
@click.option(
    "--run",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of log and checkpoint, runs/MODEL by default. Pays when one model is trained in several ways.",
)
@click.option(
    "--steps",
    type=click.IntRange(1),
    help="Optimizer steps; the recipe's number takes 5 to 15 minutes on 2 free cores. More still pays.",
)
@click.option(
    "--seed",
    type=int,
    default=0,
    show_default=True,
    help="Seed of weights, dropout and the order of the text. Another one pays to see what is luck.",
)
@click.option(
    "--threads",
    type=click.IntRange(1),
    default=2,
    show_default=True,
    help="CPU threads. More than there are free cores never pay.",
)
@click.option(
    "--batch",
    type=click.IntRange(1),
    help="Sequences a step. More pays in throughput (the recurrence is one matrix product per step), fewer in updates.",
)
@click.option(
    "--time",
    type=click.IntRange(2),
    help="Bytes a sequence, after which back-propagation is cut. Longer pays only for far dependencies; memory grows.",
)
@click.option("--lr", type=click.FloatRange(0, min_open=True), help="Peak learning rate. Lower pays if loss jumps.")
@click.option(
    "--clip",
    type=click.FloatRange(0, min_open=True),
    help="Largest gradient norm. A lower one pays where the log's grad_norm has spikes; below its median it slows all.",
)
@click.option(
    "--patience",
    type=click.IntRange(1),
    help="End after so many validations in a row without a better one. Pays where a model overfits before its last "
    "step; the best weights are kept in any case.",
)
@click.option(
    "--batching",
    type=click.Choice(["stream", "bucketed", "shuffled"]),
    help="stream carries the state along contiguous text and has no padding: best for running text. bucketed puts "
    "sequences of like length together: pays when they are separate and differ in length. shuffled takes them as they "
    "come. Default: what suits the task.",
)
@click.option(
    "--amp",
    is_flag=True,
    help="bfloat16 autocast. Can pay only on CPUs with bfloat16 arithmetic (AVX512-BF16, AMX): with AVX2 alone a GRU "
    "step took 17 times as long, and the LSTM does not run at all.",
)
@click.option(
    "--checkpoint-chunks",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Cut time into N chunks and compute their activations again on the way back. Pays when --time is so long that "
    "memory runs out, else never: a GRU step took 1.4 times as long, and with 8 chunks of 64 steps 0.4 of the memory.",
)
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="What to train on, for models whose data are not in the zoo: a CSV file for traffic, a folder of LANGUAGE.txt "
    "files for names. Pays with your own: the weights file holds none of them.",
)
@click.option("--target", help="traffic: the column to forecast, flow by default. Pays where yours has another name.")
@click.option(
    "--columns",
    multiple=True,
    help="traffic: a column to forecast from, besides the target; repeatable. All by default; pays where some are no "
    "numbers, or no help.",
)
@click.option(
    "--minutes",
    type=click.FloatRange(0, min_open=True),
    help="traffic: minutes between two rows, 5 by default. Pays where yours are others: the time of day depends on it.",
)
@click.option(
    "--daily/--no-daily",
    default=None,
    help="traffic: whether the time of day is an input too, which is the default. Leaving it out pays where the first "
    "row's is not known when the model is used.",
)
@click.option(
    "--balance",
    type=click.FloatRange(0, 1),
    help="names: how much rare languages count in the loss, 0 as often as they come (the default), 1 all the same. "
    "Pays in accuracy averaged over languages, and costs some over names.",
)
@click.option("--resume", is_flag=True, help="Go on from an interrupted run's checkpoint. Pays when there is one.")
@click.pass_context
def main(context: click.Context, /, name: str, **options: Any) -> None:
    """Train the zoo's MODEL from scratch and write its weights."""
    try:
        _train(name, command=_command(context), **options)
    except DeploykitError as error:
        click.echo(f"error: {error}", err=True)
        context.exit(error.exit_code)


def _train(
    name: str,
    *,
    command: str,
    output: Path | None,
    folder: Path | None,
    data: Path | None,
    seed: int,
    threads: int,
    batching: str | None,
    amp: bool,
    checkpoint_chunks: int,
    resume: bool,
    **changes: Any,
) -> None:
    zoo = _tasks.zoo_module(name)
    output = output or registry.zoo_weights(name)
    _check_writable(output)

    import torch

    from ._training import infer_with, train

    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    given = {key: value for key, value in changes.items() if value is not None and value != ()}
    options = {key: given.pop(key) for key in TASK_OPTIONS if key in given}
    recipe = replace(zoo.TRAINING, **given)
    job = _tasks.job(zoo, name, recipe, seed, data=data, batching=batching, chunks=checkpoint_chunks, options=options)
    with reporter(name, recipe.steps) as report:
        result = train(
            job.module,
            job.task,
            recipe,
            folder=folder or Path("runs") / name,
            amp=amp,
            resume=resume,
            fingerprint=job.fingerprint,
            report=report,
        )
    job.module.load_state_dict(result.weights)
    value = job.metric.evaluate(infer_with(job.module.eval(), job.outputs))
    facts = {
        "model": name,
        "metric": job.metric.name,
        "value": f"{value:.6f}",
        "validation_value": f"{result.validation:.6f}",
        **job.task.facts(job.metric),
        **{key: f"{number:.6f}" for key, number in job.judge(job.module).items()},
        "parameters": str(sum(parameter.numel() for parameter in job.module.parameters())),
        "steps": str(recipe.steps),
        "best_step": str(result.step),
        "seed": str(seed),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "command": command,
    }
    _write(output, result, facts)
    pace = f"{result.seconds / 60:.1f} minutes at {result.targets_per_second:.0f} targets a second"
    against = f", baseline {float(facts['baseline']):.4f}" if "baseline" in facts else ""
    click.echo(f"{name}: {job.metric.name} {value:.4f}{against} after {pace}, wrote {output}")


def _check_writable(path: Path) -> None:
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise OutputError(f"cannot write {path}: {folder} is no folder that you may write to; choose another with -o.")


def _write(path: Path, result: Result, facts: Mapping[str, str]) -> None:
    from safetensors.torch import save

    with atomic_path(path) as temporary:
        temporary.write_bytes(save(result.weights, dict(facts)))


def _command(context: click.Context) -> str:
    words = ["python", "-m", "models.train", str(context.params["name"])]
    for parameter in context.command.params:
        key = parameter.name or ""
        given = context.get_parameter_source(key) is click.core.ParameterSource.COMMANDLINE
        if given and key not in UNREMEMBERED:
            value = context.params[key]
            words += _words(parameter.opts[-1], value)
    return shlex.join(words)


def _words(option: str, value: Any) -> list[str]:
    """The option as it was given, save that of a path only the name is kept: where data lie is nobody's business."""
    if isinstance(value, bool):
        return [option]
    if isinstance(value, tuple):
        return [word for one in value for word in (option, str(one))]
    return [option, value.name if isinstance(value, Path) else str(value)]


if __name__ == "__main__":
    main()
