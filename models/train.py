"""Train a zoo model again: ``python -m models.train charlm-gru``.

Writes the weights to ``models/weights/<name>.safetensors``, and log and checkpoint to ``runs/<name>/``.
"""

from __future__ import annotations

import os
import platform
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import click

from deploykit import registry
from deploykit.errors import DeploykitError, OutputError, UnknownNameError, UsageError
from deploykit.files import atomic_path

if TYPE_CHECKING:
    from deploykit.types import Metric, ModelSpec

    from ._run import Result

PLAIN_EVERY = 100  # steps between two plain log lines

# What decides nothing about the weights stays out of the command that the weights file remembers.
UNREMEMBERED = {"name", "output", "folder", "resume"}


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
    "--batching",
    type=click.Choice(["stream", "bucketed"]),
    default="stream",
    show_default=True,
    help="stream carries the state along contiguous text and has no padding: best for running text. bucketed takes "
    "whole functions and classes, padded among their like: pays when sequences are separate and differ in length.",
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
    seed: int,
    threads: int,
    batching: str,
    amp: bool,
    checkpoint_chunks: int,
    resume: bool,
    **changes: float | None,
) -> None:
    module = _zoo_module(name)
    output = output or registry.zoo_weights(name)
    _check_writable(output)

    import torch

    from ._training import infer_with, train

    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    spec: ModelSpec = module.spec()
    metric = _metric(spec)
    recipe = replace(module.TRAINING, **{key: value for key, value in changes.items() if value is not None})
    if checkpoint_chunks > 1 and not recipe.chunkable:
        raise UsageError(f"{name} looks back over all steps, so time cannot be cut: leave out --checkpoint-chunks.")
    task = module.TASK(recipe.batch, recipe.time, seed, bucketed=batching == "bucketed", chunks=checkpoint_chunks)
    with _reporter(name, recipe.steps) as report:
        result = train(
            spec.module, task, recipe, folder=folder or Path("runs") / name, amp=amp, resume=resume, report=report
        )
    spec.module.load_state_dict(result.weights)
    value = metric.evaluate(infer_with(spec.module.eval()))
    facts = {
        "model": spec.name,
        "metric": metric.name,
        "value": f"{value:.6f}",
        "validation_value": f"{result.validation:.6f}",
        **task.facts(metric),
        "parameters": str(sum(parameter.numel() for parameter in spec.module.parameters())),
        "steps": str(recipe.steps),
        "best_step": str(result.step),
        "seed": str(seed),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "command": command,
    }
    _write(output, result, facts)
    pace = f"{result.seconds / 60:.1f} minutes at {result.targets_per_second:.0f} targets a second"
    click.echo(f"{name}: {metric.name} {value:.4f} after {pace}, wrote {output}")


def _zoo_module(name: str) -> ModuleType:
    known = registry.zoo_names()
    if name not in known:
        raise UnknownNameError("model", name, known)
    module = import_module(f".{name.replace('-', '_')}", __package__)
    if not (hasattr(module, "TRAINING") and hasattr(module, "TASK")):
        raise UsageError(f"{name} has no recipe: give its file a TRAINING and a TASK, as models/charlm_gru.py has.")
    return module


def _metric(spec: ModelSpec) -> Metric:
    if spec.metric is None:
        raise UsageError(f"{spec.name} has no metric to train for: give its spec one, as models/charlm_gru.py has.")
    return spec.metric


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
            words += [parameter.opts[-1]] if value is True else [parameter.opts[-1], str(value)]
    return shlex.join(words)


@contextmanager
def _reporter(name: str, steps: int) -> Iterator[Callable[[Mapping[str, float]], None]]:
    """Reports on stderr: a progress bar on a terminal, else a plain line now and then."""
    if not sys.stderr.isatty():
        yield lambda record: _plain(name, record, steps)
        return

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    with Progress(TextColumn(name), *columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task("", total=steps)
        validation = ""

        def show(record: Mapping[str, float]) -> None:
            nonlocal validation
            if "validation" in record:
                validation = f"validation {record['validation']:.3f}"
            progress.update(bar, completed=record["step"], description=f"loss {record['loss']:.3f} {validation}")

        yield show


def _plain(name: str, record: Mapping[str, float], steps: int) -> None:
    if "validation" in record or record["step"] % PLAIN_EVERY == 0:
        shown = " ".join(f"{key}={value:.4g}" for key, value in record.items() if key != "step")
        click.echo(f"{name} {record['step']:.0f}/{steps} {shown}", err=True)


if __name__ == "__main__":
    main()
