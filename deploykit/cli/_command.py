"""The command line as a report tells it: what reproduces a run, without the paths of the machine it ran on."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

import click

#: Where the command's context keeps the words that it was called with.
ARGUMENTS = "deploykit.arguments"


def command_line() -> str | None:
    """The running command, quoted for a shell; None outside of one."""
    context = click.get_current_context(silent=True)
    given = None if context is None else context.meta.get(ARGUMENTS)
    return None if given is None else quoted(given, Path.cwd(), Path.home())


def quoted(words: Sequence[str], folder: Path, home: Path) -> str:
    """``deploykit`` and its words, quoted for a shell.

    An absolute path is told from ``folder``, where it lies in there, else from ``~``, else by its file's name alone: a
    report names no user and no folder of the machine.
    """
    return " ".join(["deploykit", *(_word(word, folder, home) for word in words)])


def _word(word: str, folder: Path, home: Path) -> str:
    if not word.startswith("--") or "=" not in word:
        return _path(word, folder, home)
    option, _, value = word.partition("=")
    return f"{shlex.quote(option)}={_path(value, folder, home)}"


def _path(value: str, folder: Path, home: Path) -> str:
    path = Path(value)
    if not path.is_absolute():
        return shlex.quote(value)
    if path.is_relative_to(folder):
        return shlex.quote(path.relative_to(folder).as_posix())
    if path.is_relative_to(home):  # its ~ unquoted, or a shell would not take it for the home folder
        return f"~/{shlex.quote(path.relative_to(home).as_posix())}"
    return shlex.quote(path.name)
