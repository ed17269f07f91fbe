"""``deploykit build``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deploykit import artifact as artifacts
from deploykit import files, registry
from deploykit.artifact import Artifact, manifest_path
from deploykit.cli import _progress, _shared, _table
from deploykit.config import Config
from deploykit.errors import ArtifactError, BuildError, GateError, UsageError
from deploykit.trt.library import OLDEST, UNKNOWN, parse_version
from deploykit.trt.options import HARDWARE, PRECISIONS, BuildOptions, Precision
from deploykit.units import size

if TYPE_CHECKING:
    from deploykit.trt.library import Version
    from deploykit.trt.profiles import Profile

#: Where TensorRT's measurements of its kernels are kept, beside the engine.
TIMINGS = "tensorrt-timing.cache"


@click.command(
    short_help="A TensorRT engine for this machine's GPU, in the precision asked for.",
    help="""Build a TensorRT engine from an ONNX file, for the NVIDIA GPU and the TensorRT of this machine.

ARTIFACT is an ONNX file, ours or another's; without it the newest export in build/ is taken, and made where there is
none: for int8 what `deploykit quantize --int8 --target trt` made from it. An engine that is already there and fits is
left as it is. Ends with 3, and writes nothing, when TensorRT made a layer in another precision than the one asked for.

With --check nothing is built, and neither TensorRT nor a GPU is needed.""",
)
@click.argument("artifact", required=False)
@click.option(
    "--precision",
    type=click.Choice(PRECISIONS),
    default="fp32",
    show_default=True,
    help="What the engine computes in. fp16 and bf16 are cast beforehand; int8 is what a Q/DQ file says, and no more.",
)
@click.option(
    "--shapes",
    multiple=True,
    metavar="NAME=MIN:TUNED:MAX,...",
    help="A profile: shapes of inputs, like x=1x1x40:1x100x40:16x400x40, or sizes of dims, like time=1:100:400; "
    "repeatable, for several profiles. Default: from the model's dims; batch 1:1:32, time 1:100:1024.",
)
@click.option("--tf32", is_flag=True, help="Let float32 products round their inputs to TF32's 10 bits of mantissa.")
@click.option("--optimization-level", type=click.IntRange(0, 5), help="How long TensorRT may search; its default is 3.")
@click.option("--workspace", type=click.IntRange(1, 2**24), metavar="MIB", help="Scratch memory that a layer may use.")
@click.option("--version-compatible", is_flag=True, help="Make it load in later versions of TensorRT; may be slower.")
@click.option(
    "--hardware-compatible", type=click.Choice(HARDWARE), help="Make it run on other GPUs too; may be slower."
)
@click.option("--refit", is_flag=True, help="Make its weights replaceable.")
@click.option("--strip", is_flag=True, help="Leave the weights out: loading it takes them from the ONNX file.")
@click.option(
    "--timing-cache",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help=f"TensorRT's measurements of its kernels, read and added to; default: {TIMINGS} beside the engine.",
)
@click.option("--no-timing-cache", is_flag=True, help="Measure every kernel anew.")
@click.option("--allow-fallback", is_flag=True, help="Accept layers that came out in another precision.")
@click.option("--rebuild", is_flag=True, help="Build even where an engine is there that fits.")
@click.option(
    "--check", is_flag=True, help="Only say whether TensorRT takes the file, and the profiles that it would get."
)
@click.option("--for", "version", metavar="VERSION", help="With --check: for this TensorRT, like 10.16.")
@_shared.output_option("-o", "--output", help="The engine; default: NAME.<precision>.engine beside the ONNX file.")
@_shared.json_option
@click.pass_obj
def command(
    config: Config,
    artifact: str | None,
    precision: Precision,
    shapes: tuple[str, ...],
    tf32: bool,
    optimization_level: int | None,
    workspace: int | None,
    version_compatible: bool,
    hardware_compatible: str | None,
    refit: bool,
    strip: bool,
    timing_cache: Path | None,
    no_timing_cache: bool,
    allow_fallback: bool,
    rebuild: bool,
    check: bool,
    version: str | None,
    output: Path | None,
    json_target: str | None,
) -> None:
    from deploykit.trt.build import target

    if version is not None and not check:
        raise UsageError("--for names a TensorRT to check for: use it with --check.")
    if no_timing_cache and timing_cache is not None:
        raise UsageError("--timing-cache and --no-timing-cache contradict each other: name one.")
    source = _source(config, artifact, precision)
    path = output or target(source, precision)
    read, written = (source.path, manifest_path(source.path)), (path, manifest_path(path))
    timings = None if no_timing_cache else timing_cache or path.with_name(TIMINGS)
    _shared.require_apart(json_target, *read, *written, *filter(None, [timings]))
    _shared.require_apart(path, *read, option="-o")
    _shared.require_apart(timings, *read, *written, option="--timing-cache")
    options = BuildOptions(tf32, optimization_level, workspace, version_compatible, hardware_compatible, refit, strip)
    if check:
        _check(source, precision, shapes, _version(version), options, json_target)
        return
    files.require_writable(path, "-o")
    if timings is not None:
        files.require_writable(timings, "--timing-cache")
    made = build_now(
        source,
        path,
        precision=precision,
        shapes=shapes,
        options=options,
        timing_cache=timings,
        rebuild=rebuild,
        allow_fallback=allow_fallback,
    )
    if json_target is not None:
        _shared.emit_json(manifest_path(made.path).read_text(encoding="utf-8"), json_target)
    if json_target != "-":
        show(made)


def build_now(source: Artifact, output: Path | None, *, precision: Precision, **options: Any) -> Artifact:
    """Build an engine of ``source``, with the options of ``deploykit.trt.build.build``, and progress on stderr."""
    from deploykit.trt.build import build

    with _progress.steps(f"building an {precision} engine of {source.path}") as step:
        return build(source, output, precision=precision, progress=step, **options)


def show(made: Artifact) -> None:
    """Print what was built, for what, and what TensorRT chose."""
    from deploykit.trt.profiles import told

    engine = made.engine
    assert engine is not None
    click.echo(
        f"{made.path}  {size(made.size_bytes)}, TensorRT {engine.tensorrt}, {engine.gpu} "
        f"(compute capability {engine.compute_capability}), built in {engine.build_seconds:.1f} s"
    )
    for profile in engine.profiles:
        click.echo(f"profile: {told(profile)}")
    if engine.layers:
        counted = ", ".join(f"{count} {kind}" for kind, count in sorted(engine.layers.items()))
        click.echo(f"layers by the type they compute in: {counted}.")
    else:
        click.echo("TensorRT's inspector did not tell the layers' types, so nobody checked them.")
    for fallback in engine.fallbacks:
        click.echo(f"fell back: {fallback}")


def _source(config: Config, named: str | None, precision: Precision) -> Artifact:
    """The ONNX artifact to build from."""
    if named is not None:
        if named in registry.zoo_names() or ":" in named or named.endswith(".pt2"):
            raise UsageError(f"build takes an ONNX file, and {named} is a model: run deploykit export {named} first.")
        found = _shared.artifact_at(named)
        if not found.format.startswith("onnx"):
            raise UsageError(f"{named} is no ONNX file ({found.format}): name the one that it was made from.")
        return found
    exported = _shared.exported(config, config.model)
    if precision != "int8":
        return exported
    made = artifacts.newest(config.build_dir, lambda one: one.format == "onnx-qdq" and one.parent == exported.sha256)
    if made is None:
        raise ArtifactError(
            "there is no int8 file for TensorRT yet: make one with `deploykit quantize --int8 --target trt "
            "--calibration FILE.npz`."
        )
    return made


def _version(text: str | None) -> Version:
    """The version to check for: the one named, else the installed one, else the newest whose limits are known."""
    from deploykit.trt.limits import newest

    if text is None:
        from deploykit.trt import packages

        text = packages.version_of(packages.installed())
    if text is None:
        return newest()
    found = parse_version(text)
    if len(found) < 2:
        raise UsageError(f"cannot read the version {text!r}: write it like 10.16.")
    if not OLDEST <= found < UNKNOWN:
        raise UsageError(
            f"nothing is known of TensorRT {text}: check for one from {'.'.join(map(str, OLDEST))} to before "
            f"{'.'.join(map(str, UNKNOWN))}, with --for."
        )
    return found


def _check(
    source: Artifact,
    precision: Precision,
    shapes: tuple[str, ...],
    version: Version,
    options: BuildOptions,
    json_target: str | None,
) -> None:
    """Say what TensorRT's parser would refuse, and which profiles the engine would get."""
    from deploykit.trt import limits, profiles
    from deploykit.trt.build import graph
    from deploykit.trt.check import problems
    from deploykit.trt.prepare import prepared

    given: tuple[Profile, ...] = profiles.derive(shapes, source.inputs, source.dims)
    with _progress.steps(f"checking {source.path}"):
        model = graph(source)
        refused: list[str] = []
        try:
            options.require(version, precision)
        except BuildError as error:
            refused.append(str(error))
        try:
            model = prepared(model, precision, version)
        except BuildError as error:
            refused += str(error).splitlines()
        found = problems(model, version, precision)
    rows = [(one.node, one.op_type, one.severity, one.sentence) for one in found]
    rows += [("", "", "refuse", sentence) for sentence in refused if all(sentence != row[3] for row in rows)]
    if json_target is not None:
        listed = [dict(zip(("node", "op_type", "severity", "reason"), row, strict=True)) for row in rows]
        told = {"tensorrt": version, "precision": precision, "profiles": given, "problems": listed}
        _shared.emit_json(_shared.as_json({**told, "passed": not refused}), json_target)
    if json_target != "-":
        if rows:
            _table.show(("node", "kind", "", "why"), rows)
        for profile in given:
            click.echo(f"profile: {profiles.told(profile)}")
    if refused:
        raise GateError(f"{limits.told(version)} would refuse {source.path.name} in {precision}: {refused[0]}")
    if json_target != "-":
        name = limits.told(version)
        click.echo(f"nothing here is known to stop {name} from building {source.path.name} in {precision}.")
