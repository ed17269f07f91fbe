"""The README's commands exist as it writes them."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from deploykit.cli import cli

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands(page: Path) -> list[list[str]]:
    """Every `deploykit ...` in a code block or between backticks, as words."""
    text = page.read_text(encoding="utf-8")
    blocks = [line for block in re.findall(r"```(?:bash|console)\n(.*?)```", text, re.S) for line in block.splitlines()]
    found = [match for line in blocks for match in re.findall(r"(?:^|\$ |bin/|&& )deploykit (.*?)(?:$| #| &&)", line)]
    found += re.findall(r"`deploykit ([a-z][^`\n]*)`", text)
    return [shlex.split(command) for command in found]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_and_option_written_there_exists(page: Path) -> None:
    with click.Context(cli) as context:
        for name, *words in commands(page):
            command = cli.get_command(context, name)
            assert command is not None, f"{page.name} writes `deploykit {name}`"
            known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
            unknown = [
                word for word in words if word.startswith("-") and word != "-" and word.split("=")[0] not in known
            ]
            assert not unknown, f"{page.name} writes `deploykit {name}` with {unknown}"


def test_the_readme_has_the_two_commands_that_ci_runs() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for mark, told in (("ship", "deploykit ship"), ("test", "pytest")):
        block = re.search(rf"<!-- {mark} -->\n```bash\n(.*?)\n```", text, re.S)
        assert block is not None
        assert told in block[1]
        assert "\n" not in block[1]


def test_the_changelog_knows_this_version() -> None:
    from deploykit import __version__

    assert f"## {__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
