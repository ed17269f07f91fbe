"""Help is quick, whole, and true of every command."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import click
import pytest
from click.testing import Result

from deploykit.cli import cli

COMMANDS = (
    "ship",
    "export",
    "quantize",
    "build",
    "bench",
    "validate",
    "compare",
    "report",
    "advise",
    "models",
    "backends",
    "doctor",
)
HEAVY = ("torch", "onnx", "onnxruntime", "onnxscript", "numpy", "safetensors", "rich", "jinja2")


def test_help_lists_every_command(run: Callable[..., Result]) -> None:
    result = run("--help")
    assert result.exit_code == 0
    assert all(f"  {name} " in result.stdout for name in COMMANDS)
    with click.Context(cli) as context:
        assert cli.list_commands(context) == list(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_every_option_has_help(run: Callable[..., Result], name: str) -> None:
    result = run(name, "--help")
    assert result.exit_code == 0
    with click.Context(cli) as context:
        command = cli.get_command(context, name)
    assert command is not None
    assert command.help
    assert all(option.help for option in command.params if isinstance(option, click.Option))


@pytest.mark.parametrize(
    "args",
    [
        ["--help"],
        ["export", "--help"],
        ["bench", "--help"],
        ["report", "--help"],
        ["advise", "--help"],
        ["models", "--json", "-"],
    ],
)
def test_help_imports_nothing_heavy(args: list[str]) -> None:
    code = (
        "import sys\nsys.argv = ['deploykit', *sys.argv[1:]]\nfrom deploykit.cli import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, check=True)
    allowed = "['numpy', 'safetensors']" if args[0] == "models" else "[]"
    assert done.stderr.strip() in ("[]", allowed)


def test_the_version_is_told(run: Callable[..., Result]) -> None:
    from deploykit import __version__

    assert __version__ in run("--version").stdout
