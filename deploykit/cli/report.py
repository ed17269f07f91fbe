"""``deploykit report``."""

from __future__ import annotations

from pathlib import Path

import click

from deploykit.cli import _bench


@click.command(
    short_help="Show a report again, as a table or a web page.",
    help="""Show the report in FILE, which `deploykit bench --json FILE` or `deploykit ship` wrote, as a table.

With --html it becomes a web page too. Ends with 0 whatever the report's verdict is: nothing is run.""",
)
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@_bench.html_option
def command(file: Path, html_target: Path | None) -> None:
    from rich.console import Console

    from deploykit.bench import html
    from deploykit.bench import report as reports

    found = reports.read(file)
    reports.render(found, Console())
    if html_target is not None:
        html.save(found, html_target)
