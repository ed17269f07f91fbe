"""What a training run shows on stderr while it goes on."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import click

PLAIN_EVERY = 100  # steps between two plain log lines


@contextmanager
def reporter(name: str, steps: int) -> Iterator[Callable[[Mapping[str, float]], None]]:
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
