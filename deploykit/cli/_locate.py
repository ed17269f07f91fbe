"""``deploykit validate --locate``: where in an artifact its error comes from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deploykit import artifact as artifacts
from deploykit.artifact import Artifact, ModelRef
from deploykit.cli import _bench, _progress, _shared, _table
from deploykit.config import Config
from deploykit.errors import ArtifactError, UsageError
from deploykit.given import is_function, source

if TYPE_CHECKING:
    from deploykit.bench.locate import Located, Location
    from deploykit.types import Array

_SEED, _BATCH, _TIME = 1, 2, 100


def locate(config: Config, named: Sequence[str], model: ModelRef, data: Path | None, json_target: str | None) -> None:
    """Compare the values inside each ONNX artifact; ends with 3 where one is wrong rather than rounded."""
    _, found = _targets(config, named, model)
    inside = [artifact for artifact in found if artifact.format.startswith("onnx")]
    if not inside:
        raise UsageError("--locate compares the values inside ONNX artifacts, and there is none here: name one.")
    results = {}
    for artifact in inside:
        with _progress.steps(f"looking inside {artifact.path}"):
            results[str(artifact.path)] = _located(config, artifact, data)
    if json_target is not None:
        _shared.emit_json(
            _shared.as_json([{"artifact": path, **_as_dict(one)} for path, one in results.items()]), json_target
        )
    if json_target != "-":
        for path, one in results.items():
            _show(path, one)
    if any(one.first_wrong is not None for one in results.values()):
        click.get_current_context().exit(3)


def _targets(config: Config, named: Sequence[str], model: ModelRef) -> tuple[Artifact | None, list[Artifact]]:
    """As for bench; a file of somebody else's is welcome, too, if it was quantized from a file that is here."""
    try:
        return _bench.targets(config, named, model)
    except ArtifactError:
        found = [_shared.artifact_at(name) for name in named]
        if any(artifact.model is None and artifact.parent is None for artifact in found):
            raise
        return None, found


def _located(config: Config, artifact: Artifact, data: Path | None) -> Location:
    from deploykit.bench.locate import locate as compare

    return compare(artifact, _parent(config, artifact), _feeds(artifact, data))


def _parent(config: Config, artifact: Artifact) -> Artifact | None:
    """The float file that an artifact was made from, beside it or in the build folder; None for an export.

    Raises:
        ArtifactError: it is not there.
    """
    if artifact.parent is None:
        return None
    for folder in dict.fromkeys((artifact.path.parent, config.build_dir)):
        for path in sorted(folder.glob("*.onnx")):
            found = artifacts.read(path) if path != artifact.path else artifact
            if found.sha256 == artifact.parent:
                return found
    raise ArtifactError(
        f"{artifact.path} was made from a file that is neither beside it nor in {config.build_dir}: make it again."
    )


def _feeds(artifact: Artifact, data: Path | None) -> Mapping[str, Array]:
    from deploykit.types import BATCH, DimRange, dynamic_dims, noise

    wanted = {name: _BATCH if name == BATCH else _TIME for name in dynamic_dims(artifact.inputs)}
    sizes = {name: artifact.dims.get(name, DimRange()).clamp(size) for name, size in wanted.items()}
    if data is None and artifact.model is not None:
        from deploykit import loading

        return loading.load(artifact.model).feeds(_SEED, **sizes)
    from deploykit.quantize._ranges import ranges_of

    ranges = ranges_of(artifacts.load_onnx(artifact.path), artifact.inputs)
    if data is None:
        return noise(artifact.inputs, _SEED, sizes, ranges)
    if is_function(str(data)):
        return source(str(data), artifact.inputs, ranges).sample(_SEED, **sizes)
    from deploykit.data import DataFile

    return DataFile(data, artifact.inputs, ranges).feeds(_SEED, sizes)


def _as_dict(found: Location) -> dict[str, Any]:
    import msgspec

    return {**msgspec.to_builtins(found), "first_wrong": found.first_wrong and found.first_wrong.where}


def _show(path: str, found: Location) -> None:
    from deploykit.bench.locate import WRONG_DB

    click.echo(f"{path}, inside, against {found.against}:")
    rows = [(one.where, one.kind, _db(one.snr_db), f"{one.max_abs:.2g}", _lost(one), one.value) for one in found.values]
    titles = ("node or part", "kind", "SNR", "max err", "lost", "value")
    _table.show(titles, rows, right=("SNR", "max err", "lost"))
    wrong, worst = found.first_wrong, found.worst_step
    if wrong is not None:
        click.echo(f"the first value below {WRONG_DB:g} dB is {wrong.value}, of {wrong.where} ({wrong.kind}).")
    elif worst is not None and worst.drop_db is not None and worst.drop_db > 0:
        click.echo(f"no value is wrong; most is lost in {worst.where} ({worst.kind}): {worst.drop_db:.1f} dB.")
    else:
        click.echo("no value is wrong.")


def _db(value: float | None) -> str:
    return "exact" if value is None else f"{value:.1f} dB"


def _lost(one: Located) -> str:
    return "–" if one.drop_db is None else f"{max(one.drop_db, 0):.1f} dB"
