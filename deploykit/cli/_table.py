"""Plain tables on stdout."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

_PIPE_WIDTH = 160  # a file or a pipe has no width of its own


def show(titles: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[str] = ()) -> None:
    """Print rows under ``titles`` (not shown when all are empty), the columns named in ``right`` flush right.

    Only the last column is broken over lines; the others are names and numbers.
    """
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, show_header=any(titles))
    for title in titles[:-1]:
        table.add_column(title, justify="right" if title in right else "left", no_wrap=True)
    table.add_column(titles[-1], overflow="fold")
    for row in rows:
        table.add_row(*row)
    # Without markup: the brackets in `deploykit[trt]` are text.
    width = None if sys.stdout.isatty() else _PIPE_WIDTH
    Console(markup=False, highlight=False, width=width).print(table)
