"""Plain tables on stdout."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def show(titles: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[str] = ()) -> None:
    """Print rows under ``titles`` (not shown when all are empty), the columns named in ``right`` flush right."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, show_header=any(titles))
    for title in titles:
        table.add_column(title, justify="right" if title in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    # Without markup: the brackets in `deploykit[trt]` are text.
    Console(markup=False, highlight=False).print(table)
