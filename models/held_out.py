"""The part of your data that a zoo model is judged on, as an .npz file: ``python -m models.held_out traffic-gru``.

The inputs and the right answers by name, for ``--data`` of bench, validate and ship and ``--calibration`` of quantize,
with a metric of ``deploykit.models.metrics``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from deploykit import registry
from deploykit.errors import DeploykitError, OutputError, UsageError
from deploykit.files import atomic_path

from . import _tasks
from ._facts import read_facts, read_layout

METRICS = {"mae": "mae:min", "accuracy": "accuracy"}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("name", metavar="MODEL")
@click.option("--data", type=click.Path(path_type=Path), required=True, help="What the model was trained on.")
@click.option(
    "--weights",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Weights that say how the data were read and split; the zoo's own by default.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The file to write; MODEL.npz by default.",
)
@click.pass_context
def main(context: click.Context, /, name: str, **options: Any) -> None:
    """Write the test part of the data of MODEL, in the units that the model takes."""
    try:
        _write(name, **options)
    except DeploykitError as error:
        click.echo(f"error: {error}", err=True)
        context.exit(error.exit_code)


def _write(name: str, *, data: Path, weights: Path | None, output: Path | None) -> None:
    import numpy as np

    zoo = _tasks.zoo_module(name)
    if not hasattr(zoo.TASK, "DATA"):
        raise UsageError(f"{name} has its own text and metric: run deploykit bench {name} without --data.")
    path = weights or registry.zoo_weights(name)
    facts = read_facts(path)
    layout = read_layout(path, zoo.LAYOUT)
    if layout is None:
        raise UsageError(f"{path} does not say what it was trained on: name weights of python -m models.train {name}.")
    arrays = zoo.TASK.reopen(data, layout, seed=int(facts.get("seed", 0))).held_out()
    output = output or Path(f"{name}.npz")
    try:
        with atomic_path(output) as temporary, temporary.open("wb") as file:
            np.savez(file, **arrays)
    except OSError as error:
        raise OutputError(f"cannot write {output}: {error}.") from error
    told = ", ".join(f"{key}:{value.dtype}[{','.join(map(str, value.shape))}]" for key, value in arrays.items())
    click.echo(f"{output}: {told}")
    metric = METRICS[facts.get("metric", "mae")]
    click.echo(
        f"judge by it: deploykit bench {name} --data {output} --metric deploykit.models.metrics:{metric}", err=True
    )


if __name__ == "__main__":
    main()
