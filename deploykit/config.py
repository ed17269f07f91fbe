"""The project file: ``deploykit.toml``, or ``[tool.deploykit]`` in ``pyproject.toml``.

At the top stand the model and its description (``model``, ``weights``, ``input``, ``dim``, ``example``, ``dims``,
``streaming``) and ``build-dir``; a table
named after a command sets that command's options by their long names::

    model = "net.py:factory"
    weights = "net.safetensors"
    input = ["x:float32[batch,time,40]"]

    [bench]
    batch = [1, 16]
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deploykit.artifact import ModelRef
from deploykit.errors import UsageError
from deploykit.registry import DEFAULT_MODEL

FILE = "deploykit.toml"


# The keys at the top of the file: type and default.
_TOP: dict[str, tuple[Any, Any]] = {
    "model": (str, DEFAULT_MODEL),
    "weights": (str | None, None),
    "input": (list[str], []),
    "dim": (list[str], []),
    "example": (str | None, None),
    "dims": (list[str], []),
    "streaming": (bool, False),
    "build-dir": (str, "build"),
}


@dataclass(frozen=True)
class Config:
    """What the project file says, paths still as written there; ``source`` is the file, None where there is none."""

    model: ModelRef = field(default_factory=lambda: ModelRef(DEFAULT_MODEL))
    build_dir: Path = Path("build")
    commands: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    source: Path | None = None


def find(folder: Path) -> Config:
    """The configuration in ``folder``: deploykit.toml, else pyproject.toml's table, else the defaults.

    Raises:
        UsageError: a file is there, but cannot be read or is no valid TOML.
    """
    own = folder / FILE
    if own.is_file():
        return read(own)
    project = folder / "pyproject.toml"
    tool = _toml(project).get("tool") if project.is_file() else None
    table = tool.get("deploykit") if isinstance(tool, dict) else None
    return Config() if table is None else _config(table, project)


def read(path: Path) -> Config:
    """The configuration in the file ``path``.

    Raises:
        UsageError: it cannot be read, is no valid TOML, or has a value of the wrong type.
    """
    return _config(_toml(path), path)


def check_commands(config: Config, options: Mapping[str, Iterable[str]]) -> None:
    """Refuse a table or key that no command has: a misspelt option must not be silently without effect.

    Raises:
        UsageError: names the key, and the nearest one that exists.
    """
    for command, table in config.commands.items():
        if command not in options:
            raise UsageError(f"{config.source}: unknown key {command!r}{_near(command, [*_TOP, *options])}.")
        for key in table:
            if key not in options[command]:
                raise UsageError(f"{config.source}: unknown key {key!r} in [{command}]{_near(key, options[command])}.")


def _toml(path: Path) -> dict[str, Any]:
    import tomllib

    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"cannot read {path}: {error}.") from error


def _config(table: object, source: Path) -> Config:
    if not isinstance(table, dict):
        raise UsageError(f"{source}: tool.deploykit must be a table.")
    import msgspec  # slow enough for `deploykit --help` to be without it

    fields = [(name.replace("-", "_"), kind, default) for name, (kind, default) in _TOP.items()]
    top: Any = msgspec.defstruct("Project", fields, rename="kebab")
    try:
        project = msgspec.convert({key: value for key, value in table.items() if key in _TOP}, type=top)
    except msgspec.ValidationError as error:
        raise UsageError(f"{source}: {error}.") from error
    commands = {key: value for key, value in table.items() if key not in _TOP}
    for key, value in commands.items():
        if not isinstance(value, dict):
            raise UsageError(f"{source}: unknown key {key!r}{_near(key, _TOP)}.")
    model = ModelRef(
        project.model,
        project.weights,
        tuple(project.input),
        tuple(project.dim),
        project.example,
        tuple(project.dims),
        project.streaming,
    )
    # Files are meant from where the project file lies, which with --config need not be the current folder.
    folder = source.parent
    return Config(model.moved(lambda file: str(folder / file)), folder / project.build_dir, commands, source)


def _near(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
