"""The report as a web page: one file that needs no network, no script and no other file, to read, send or print."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from deploykit.bench import _figures, _view
from deploykit.bench.report import Report
from deploykit.bench.table import scenario
from deploykit.coverage import Coverage
from deploykit.files import write_text

if TYPE_CHECKING:
    from jinja2 import Template

_FOLDER = Path(__file__).with_name("templates")


def render(report: Report) -> str:
    """The page. All text of the report is escaped; only the charts, which escape their own, are markup."""
    title, facts = _view.facts(report)
    settings = {name: value for name, value in report.settings.items() if name != "command"}
    return _template().render(
        report=report,
        scenario=scenario(report),
        verdict=_view.verdict_words(report),
        facts_title=title,
        facts=facts,
        groups=_view.groups(report),
        notes=_view.notes(report),
        gates=_view.gates(report),
        figures=_figures.figures(report),
        covered=[
            (name, row, list(zip(coverage.rows, Coverage(coverage.rows).shares(), strict=True)))
            for name, row, coverage in _figures.covered(report)
        ],
        processes=_view.processes(report),
        checks=_view.checks(report),
        environment=_view.facts_of(report.environment),
        settings=_view.facts_of(settings),
        command=report.settings.get("command"),
        finite=_figures.finite,
    )


def save(report: Report, path: Path) -> None:
    """Write the page to ``path``, whole or not at all.

    Raises:
        OutputError: the file cannot be written.
    """
    write_text(path, render(report))


@cache
def _template() -> Template:
    import jinja2

    loader = jinja2.FileSystemLoader(_FOLDER)
    # Escaped whatever a template is called; a name that is misspelt in one is an error and not an empty place.
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("report.html")
