"""TensorRT engines among what bench, validate and ship run: trusted, or built again for this machine."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from deploykit import artifact as artifacts
from deploykit import registry
from deploykit.artifact import Artifact, ModelRef
from deploykit.cli import _progress, _shared
from deploykit.config import Config
from deploykit.errors import ArtifactError, DeploykitError
from deploykit.files import sha256_file
from deploykit.trt.options import NAMES, SHORT, BuildOptions, Precision

FORMAT = "trt-engine"


@dataclass(frozen=True)
class Asked:
    """What ``options`` collects: take plans without a manifest, and build again those that do not fit here."""

    trust: bool = False
    rebuild: bool = False


#: Neither.
NOTHING = Asked()


def options(command: Callable[..., Any]) -> Callable[..., Any]:
    """``--trust`` and ``--rebuild``; the command gets them as ``engines``."""

    @functools.wraps(command)
    def collected(*args: Any, trust: bool, rebuild: bool, **options: Any) -> Any:
        return command(*args, engines=Asked(trust, rebuild), **options)

    for option in (
        click.option(
            "--rebuild",
            is_flag=True,
            help="Build engines again, from their ONNX files, that were built for another GPU or TensorRT.",
        ),
        click.option(
            "--trust",
            is_flag=True,
            help="Load a TensorRT plan that has no manifest of ours: it is code, so know where it comes from.",
        ),
    ):
        collected = option(collected)
    return collected


def at(path: str, model: ModelRef, asked: Asked) -> Artifact:
    """The artifact at a path that a user named; with ``--trust`` a plan of others too, held against ``model``.

    Raises:
        ArtifactError: it is missing or damaged, or a plan without a manifest, and nobody vouches for it.
        BackendUnavailableError: a plan without a manifest, and no TensorRT here to ask what it takes.
    """
    file = Path(path)
    bare = file.is_file() and file.suffix != ".onnx" and not artifacts.manifest_path(file).is_file()
    if not bare or path.endswith(".json"):
        return _shared.artifact_at(path)
    from deploykit.trt import plan

    plan.header_version(file)
    if not asked.trust:
        raise ArtifactError(
            f"{path} has no manifest of deploykit's beside it, so nobody knows what it was built from: build it with "
            "`deploykit build`, or pass --trust if you know where it comes from. A plan is code."
        )
    from deploykit.trt.adopt import adopted

    return replace(adopted(file), model=model)


def fitting(config: Config, found: Sequence[Artifact], asked: Asked) -> list[Artifact]:
    """The artifacts, with every engine that does not fit this machine built again where ``--rebuild`` asks for it.

    Raises:
        BackendUnavailableError: there is an engine, and no TensorRT or GPU to build it again with.
        ArtifactError: the ONNX file of an engine is no longer there.
    """
    if not asked.rebuild:
        return list(found)
    return [_rebuilt(config, one) if one.format == FORMAT else one for one in found]


def of(config: Config, sources: Iterable[Artifact]) -> list[Artifact]:
    """The newest engine of each precision that was built from one of ``sources``."""
    parents = {one.sha256 for one in sources}
    folders = {one.path.parent.resolve(): one.path.parent for one in sources}
    folders.setdefault(config.build_dir.resolve(), config.build_dir)

    def fits(precision: str) -> Callable[[Artifact], bool]:
        return lambda made: made.format == FORMAT and made.parent in parents and made.precision == precision

    found = []
    for precision in NAMES.values():
        made = [one for folder in folders.values() if (one := artifacts.newest(folder, fits(precision))) is not None]
        found += [max(made, key=lambda one: one.created)] if made else []
    return found


def for_ship(exported: Artifact, *, talk: bool) -> list[Artifact]:
    """Engines of an export in float32 and float16 where a GPU and TensorRT are here; why not is told on stderr."""
    if registry.backend("trt").available() is not None:
        return []  # its row in the report says why
    from deploykit.cli.build import TIMINGS, build_now, show

    made: list[Artifact] = []
    precisions: tuple[Precision, ...] = ("fp32", "fp16")
    for precision in precisions:
        try:
            engine = build_now(exported, None, precision=precision, timing_cache=exported.path.with_name(TIMINGS))
        except DeploykitError as error:
            click.echo(f"no {precision} engine: {error}", err=True)
            continue
        if talk:
            show(engine)
        made.append(engine)
    return made


def _rebuilt(config: Config, artifact: Artifact) -> Artifact:
    from deploykit.trt import cuda, library, plan

    library.require()
    with _progress.steps("asking the GPU what it is"):
        gpu = cuda.describe()
    try:
        plan.require_fits(artifact, library.installed_text(), gpu.name, gpu.compute_capability)
    except ArtifactError as error:
        if artifact.engine is None:
            raise
        click.echo(f"building again: {error}", err=True)
    else:
        return artifact
    from deploykit.cli.build import TIMINGS, build_now
    from deploykit.trt.profiles import told

    assert artifact.engine is not None
    precision, options = _settings(artifact)
    return build_now(
        _parent(config, artifact),
        artifact.path,
        precision=precision,
        shapes=tuple(told(profile) for profile in artifact.engine.profiles),
        options=options,
        timing_cache=artifact.path.with_name(TIMINGS),
        rebuild=True,
    )


def _settings(artifact: Artifact) -> tuple[Precision, BuildOptions]:
    """What an engine was built in and with, by its manifest, which anybody may have written.

    Raises:
        ArtifactError: it names what no engine of ours is built with.
    """
    import msgspec

    given = dict(artifact.engine.options) if artifact.engine is not None else {}
    precision = SHORT.get(artifact.precision)
    unknown = [name for name in given if name not in vars(BuildOptions())]
    if precision is None:
        what = f"the precision {artifact.precision}"
    elif unknown:
        what = unknown[0]
    else:
        try:
            return precision, msgspec.convert(given, type=BuildOptions)
        except msgspec.ValidationError as error:
            what = str(error)
    raise ArtifactError(
        f"the manifest of {artifact.path} names settings that deploykit does not have ({what}): build the engine from "
        "its ONNX file with `deploykit build`."
    )


def _parent(config: Config, engine: Artifact) -> Artifact:
    """The ONNX artifact that an engine was built from."""
    for folder in dict.fromkeys((engine.path.parent, config.build_dir)):
        for file in sorted(folder.glob("*.onnx")):
            # By the hash first: another file there may be damaged, and is none of our business.
            if sha256_file(file) == engine.parent:
                return artifacts.read(file)
    raise ArtifactError(
        f"the ONNX file that {engine.path} was built from is neither beside it nor in {config.build_dir}: build from "
        "another with `deploykit build FILE.onnx`."
    )
