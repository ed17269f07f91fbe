"""The command line. Each command is a file of its own here, defines ``command``, and is found by that file's name.

Nothing here imports torch, onnx or onnxruntime at module level: ``deploykit --help`` has to answer at once.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from deploykit import __version__, config
from deploykit.cli._command import ARGUMENTS
from deploykit.cli._shared import DESCRIBING
from deploykit.errors import DeploykitError

_MAIN = ("ship", "export", "quantize", "build", "bench", "validate")
_ORDER = (*_MAIN, "compare", "report", "advise", "models", "backends", "doctor")

# Commands that take from [bench] what they do not find in their own table, and the options that they leave there.
_LIKE_BENCH = ("validate", "ship")
_FILES = ("json", "junit", "csv", "html")


class _Commands(click.Group):
    """Commands by their files; every error of ours becomes one sentence and an exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        names = [path.stem for path in Path(__file__).parent.glob("*.py") if not path.stem.startswith("_")]
        return sorted(names, key=lambda name: (_ORDER.index(name) if name in _ORDER else len(_ORDER), name))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        command: click.Command = importlib.import_module(f"{__name__}.{cmd_name}").command
        return command

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        given = tuple(args)  # parsing uses the list up
        context = super().make_context(info_name, args, parent, **extra)
        context.meta[ARGUMENTS] = given
        return context

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        import difflib

        close = difflib.get_close_matches(args[0], self.list_commands(ctx), n=1) if args else []
        if close and args[0] not in self.list_commands(ctx):
            ctx.fail(f"no command {args[0]!r}: did you mean {close[0]!r}?")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except DeploykitError as error:
            if ctx.params.get("debug"):
                raise
            click.echo(f"error: {error}", err=True)
            ctx.exit(error.exit_code)
        # click ends quietly where whoever reads stdout has seen enough.
        except (click.exceptions.Exit, click.Abort, click.ClickException, BrokenPipeError):
            raise
        except Exception as error:
            if ctx.params.get("debug"):
                raise
            told = f"{type(error).__name__}: {error}".split("\n", 1)[0]
            click.echo(f"error: deploykit itself failed ({told}); run `deploykit --debug ...` and report it.", err=True)
            ctx.exit(1)


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Without arguments every command works on the model of deploykit.toml, or on the zoo's charlm-gru. "
    "Exit codes: 0 passed, 1 error, 2 usage, 3 outside a tolerance or a gate.",
)
@click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Use this file, not ./deploykit.toml.",
)
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.version_option(__version__, prog_name="deploykit")
@click.pass_context
def cli(ctx: click.Context, config_file: Path | None, debug: bool) -> None:
    """Take a trained recurrent PyTorch model to production: ONNX, int8 that covers the recurrence, and proof."""
    if debug:
        logging.basicConfig(format="%(name)s: %(message)s")
        logging.getLogger("deploykit").setLevel(logging.DEBUG)
    found = config.find(Path()) if config_file is None else config.read(config_file)
    ctx.obj = found
    if found.commands:
        group = ctx.command
        assert isinstance(group, click.Group)
        parameters = {name: _options(group.get_command(ctx, name)) for name in group.list_commands(ctx)}
        config.check_commands(found, parameters)
        ctx.default_map = {
            name: _defaults(group.get_command(ctx, name), _table_of(found, name, parameters[name]), parameters[name])
            for name in parameters
        }


def _table_of(found: config.Config, name: str, options: Mapping[str, str]) -> dict[str, Any]:
    """What the project file says of a command: its own table, over what it shares with [bench].

    Files are not shared: two commands that wrote one file would destroy each other's.
    """
    bench = found.commands.get("bench", {}) if name in _LIKE_BENCH else {}
    shared = {key: value for key, value in bench.items() if key in options and key not in _FILES}
    return {**shared, **found.commands.get(name, {})}


def _defaults(command: click.Command | None, table: Mapping[str, Any], options: Mapping[str, str]) -> dict[str, Any]:
    """The table by the names of the command's parameters; one value of a repeatable option needs no list."""
    assert command is not None
    repeatable = {parameter.name for parameter in command.params if getattr(parameter, "multiple", False)}
    return {
        options[key]: [value] if options[key] in repeatable and not isinstance(value, list) else value
        for key, value in table.items()
    }


def _options(command: click.Command | None) -> dict[str, str]:
    """A command's long options and the parameters they set; not those that describe the model: they stand above."""
    assert command is not None
    options = [parameter for parameter in command.params if isinstance(parameter, click.Option)]
    names = {
        name.removeprefix("--"): str(option.name) for option in options for name in option.opts if name.startswith("--")
    }
    return {name: parameter for name, parameter in names.items() if name not in DESCRIBING}


def main() -> None:
    """Entry point of the ``deploykit`` script."""
    cli()
