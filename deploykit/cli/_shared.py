"""What several commands share: the options that describe a model, and the artifacts that a command takes up."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deploykit import artifact as artifacts
from deploykit import files, loading
from deploykit.artifact import Artifact, ModelRef
from deploykit.cli import _progress
from deploykit.config import Config
from deploykit.errors import UsageError

# ParamType takes a type argument only in the newest releases of click.
if TYPE_CHECKING:
    _IntListType = click.ParamType[tuple[int, ...]]
    _NameListType = click.ParamType[tuple[str, ...]]
else:
    _IntListType = _NameListType = click.ParamType

MODEL_HELP = """MODEL is a name from `deploykit models`, or your own: path/to/file.py:factory or package.module:factory,
called without arguments to return an nn.Module or a ModelSpec, or a .pt2 file of torch.export. Importing a Python file
runs its code; a .pt2 file holds a graph, and one that wants to run code is refused."""


class IntList(_IntListType):
    """``1,16`` on the command line, ``[1, 16]`` in the project file."""

    name = "n,n,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        parts = value.split(",") if isinstance(value, str) else value if isinstance(value, (list, tuple)) else [value]
        try:
            numbers = tuple(int(str(part)) for part in parts)
        except (TypeError, ValueError):
            self.fail(f"{value!r} is no list of whole numbers like 1,16", param, ctx)
        if not numbers or min(numbers) < 1:
            self.fail(f"{value!r} holds a number below 1", param, ctx)
        return numbers


class NameList(_NameListType):
    """``torch,ort`` on the command line, ``["torch", "ort"]`` in the project file."""

    name = "name,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        parts = value.split(",") if isinstance(value, str) else [str(part) for part in value]
        return tuple(part.strip() for part in parts if part.strip())


#: The options that describe a model, by their long names: in the project file they stand at the top.
DESCRIBING = ("weights", "input", "dim", "example", "dims", "streaming")


#: What they say where none is given.
NOTHING = ModelRef("")


def describe_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """What is to be known about a model besides its name; the command gets it as ``described``, a nameless ModelRef."""

    @functools.wraps(command)
    def collected(*args: Any, **options: Any) -> Any:
        own = {field.name: options.pop(field.name) for field in fields(ModelRef) if field.name != "ref"}
        return command(*args, described=replace(NOTHING, **own), **options)

    for option in reversed(
        (
            click.option("--weights", metavar="FILE", help="State dict: safetensors, or a pickle of plain tensors."),
            click.option(
                "--input",
                "inputs",
                multiple=True,
                metavar="SPEC",
                help="An input, like 'x:float32[batch,time,40]'; repeatable. state.0 is part of a nested argument.",
            ),
            click.option(
                "--dim", "dims", multiple=True, metavar="NAME=LOW:HIGH", help="Bounds of a dynamic dim; repeatable."
            ),
            click.option(
                "--example",
                metavar="FILE.py:FUNCTION",
                help="Real inputs: a function (its code runs) that returns the arguments, or a dict of them by name.",
            ),
            click.option(
                "--dims",
                "axes",
                multiple=True,
                metavar="INPUT=NAME,NAME,_",
                help="Names of an input's dynamic dims, like x=batch,time,_; repeatable.",
            ),
            click.option(
                "--streaming",
                is_flag=True,
                help="Make the state of every recurrent layer an input and an output: h_in and h_out, c_in and c_out.",
            ),
        )
    ):
        collected = option(collected)
    return collected


def output_option(name: str, *declared: str, dash: bool = False, **attributes: Any) -> Callable[..., Any]:
    """An option that names a file to write. One that cannot be written is told before anything runs, not after it.

    With ``dash``, ``-`` is stdout.
    """

    def checked(context: click.Context, parameter: click.Parameter, value: Path | str | None) -> Path | str | None:
        if value is not None and str(value) != "-":
            files.require_writable(Path(value), name)
        return value

    kind = click.Path(dir_okay=False, allow_dash=True) if dash else click.Path(path_type=Path, dir_okay=False)
    return click.option(name, *declared, metavar="FILE", type=kind, callback=checked, **attributes)


json_option = output_option(
    "--json", "json_target", dash=True, help="Write the result as JSON; '-' is stdout, with nothing else."
)


def model_ref(config: Config, model: str | None, described: ModelRef) -> ModelRef:
    """The model that is meant: the project file's where none is named; options take the place of what the file says."""
    base = config.model if model is None or model == config.model.ref else ModelRef(model)
    return replace(base, **{name: value for name, value in vars(described).items() if value})


def exported(config: Config, ref: ModelRef) -> Artifact:
    """The newest float32 export of that model; made now, and told on stderr, where there is none or it is stale."""
    options = config.commands.get("export", {})
    output = Path(options["output"]) if "output" in options else None
    folder = config.build_dir if output is None else output.parent
    found = artifacts.newest(folder, lambda made: _is_export(made, "float32") and ref.same_model(made.model))
    if found is not None:
        with _progress.steps(f"loading {found.name}"):
            current = loading.source_hash(loading.load(ref).module)
        if found.source_sha256 == current:
            return found
        click.echo(f"{found.name} has other weights or another structure than when it was exported", err=True)
    made = export_now(config, ref, output, **({"opset": options["opset"]} if "opset" in options else {}))
    click.echo(f"exported {made.name} to {made.path}", err=True)
    return made


def export_now(config: Config, ref: ModelRef, output: Path | None, **options: Any) -> Artifact:
    """Export to ``output``, or into the build folder under the model's name."""
    from deploykit.export import export

    name = loading.model_name(ref)
    suffix = ".fp16.onnx" if options.get("precision") == "fp16" else ".onnx"
    with _progress.steps(f"exporting {name}") as step:
        made = export(ref, output or config.build_dir / f"{name}{suffix}", progress=step, **options)
    if made.verification is not None and not made.verification["same_weights_each_time"]:
        click.echo(
            f"warning: {ref.ref} has other weights each time it is called, so nothing can be held against this export "
            "later: pass --weights, or set a seed in the factory.",
            err=True,
        )
    return made


def derived(config: Config, parent: Artifact) -> list[Artifact]:
    """What belongs to an export: the newest float16 export of the same model, of each format made from ``parent``, and
    of the engines built from any of these.

    They are looked for where ``parent`` lies and in the build folder.
    """

    def half(made: Artifact) -> bool:
        same = parent.model is not None and parent.model.same_model(made.model)
        return _is_export(made, "float16") and same and made.source_sha256 == parent.source_sha256

    def of(kind: str) -> Callable[[Artifact], bool]:
        return lambda made: made.format == kind and made.parent == parent.sha256

    folders = {parent.path.parent.resolve(): parent.path.parent, config.build_dir.resolve(): config.build_dir}
    found: list[Artifact] = []
    for fits in (half, *map(of, (name for name in artifacts.FORMATS if name.startswith("onnx")))):
        made = [one for folder in folders.values() if (one := artifacts.newest(folder, fits)) is not None]
        found += [max(made, key=lambda one: one.created)] if made else []
    from deploykit.cli import _engines

    return [*found, *_engines.of(config, [parent, *found])]


def _is_export(made: Artifact, precision: str) -> bool:
    return made.format == "onnx" and made.precision == precision and made.parent is None


def as_json(value: Any) -> str:
    """Indented JSON."""
    import msgspec

    return msgspec.json.format(msgspec.json.encode(value)).decode()


def require_apart(target: Path | str | None, *paths: Path, option: str = "--json") -> None:
    """Refuse to write what ``option`` names over a file that the command reads or makes.

    Raises:
        UsageError: ``target`` is one of ``paths``.
    """
    if target not in (None, "-") and Path(str(target)).resolve() in {path.resolve() for path in paths}:
        raise UsageError(f"{option} {target} would write over a file that this command reads or makes: name another.")


def emit_json(text: str, target: str) -> None:
    """Write JSON to a file, whole or not at all, or alone to stdout for ``-``."""
    if target == "-":
        click.echo(text.rstrip("\n"))
    else:
        files.write_text(Path(target), text, "--json")


def artifact_at(path: str) -> Artifact:
    """The artifact at a path that a user named.

    Raises:
        ArtifactError: it is missing or damaged.
        UsageError: the path names a manifest, not the file that it describes.
    """
    if path.endswith(".json"):
        raise UsageError(f"{path} is a manifest: name the artifact itself, {path.removesuffix('.json')}.")
    return artifacts.read(Path(path))
