"""Artifacts: a file that can be run, and the manifest ``<file>.json`` that says what it is and where it came from."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit.coverage import Coverage
from deploykit.errors import ArtifactError, first_line
from deploykit.files import atomic_path, sha256_file, write_text
from deploykit.opsets import operators_of
from deploykit.types import DimRange, TensorSpec

if TYPE_CHECKING:
    import onnx

MANIFEST_VERSION = 1

# `torch` stands for the model itself, which lies in no file of ours: the reference that everything is held against.
FORMATS = ("torch", "onnx", "onnx-int8", "onnx-qdq", "trt-engine")


@dataclass(frozen=True)
class ModelRef:
    """How to build a PyTorch model again, in this process or another: the words of the command line.

    ``ref`` is a zoo name, ``path/to/file.py:factory``, ``package.module:factory``, or a ``.pt2`` file. ``example`` is
    ``FILE.py:function``, ``axes`` names the example's dims (``x=batch,time,_``), and ``streaming`` makes the state of
    every recurrent layer an input and an output.
    """

    ref: str
    weights: str | None = None
    inputs: tuple[str, ...] = ()
    dims: tuple[str, ...] = ()
    example: str | None = None
    axes: tuple[str, ...] = ()
    streaming: bool = False

    def same_model(self, other: ModelRef | None) -> bool:
        """Whether both name the same model, however its files' paths are written."""
        return other is not None and self.moved(os.path.abspath) == other.moved(os.path.abspath)

    def moved(self, change: Callable[[str], str]) -> ModelRef:
        """With ``change`` applied to the path of every file that it names."""

        def within(ref: str) -> str:
            file, colon, function = ref.rpartition(":")
            if ref.endswith(".pt2"):
                return change(ref)
            return f"{change(file)}{colon}{function}" if file.endswith(".py") else ref

        return replace(
            self,
            ref=within(self.ref),
            weights=None if self.weights is None else change(self.weights),
            example=None if self.example is None else within(self.example),
        )


@dataclass(frozen=True)
class Engine:
    """What a TensorRT engine was built from, for and with: it runs where these fit, and nowhere else.

    ``tensorrt`` is the version's full text, ``compute_capability`` the GPU's (``9.0``). Each of ``profiles`` holds, by
    input name, the smallest shape, the one tuned for, and the largest. ``options`` are the builder's settings that
    change the engine, by their names on the command line. ``layers`` counts what the builder made, by the type that
    the inspector tells; ``fallbacks`` names each layer that came out in another than the one asked for.
    """

    tensorrt: str
    gpu: str
    compute_capability: str
    profiles: tuple[Mapping[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]], ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    build_seconds: float = 0.0
    layers: Mapping[str, int] = field(default_factory=dict)
    fallbacks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Artifact:
    """A file that a backend can run. Its manifest holds every field but ``path``, which is wherever the file lies.

    ``source_sha256`` is that of the PyTorch module: its structure and its weights when it was exported. ``operators``
    is the version of each set of operators that a plain onnxruntime lacks, by domain: those of ``deploykit.kernels``.
    ``engine`` is there for TensorRT engines alone, whose ``parent`` is the ONNX file they were built from.
    """

    path: Path
    format: str
    precision: str
    sha256: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    name: str = "model"
    parent: str | None = None
    model: ModelRef | None = None
    source_sha256: str | None = None
    dims: Mapping[str, DimRange] = field(default_factory=dict)
    tools: Mapping[str, str] = field(default_factory=dict)
    created: str = ""
    size_bytes: int = 0
    verification: Mapping[str, Any] | None = None
    coverage: Coverage | None = None
    operators: Mapping[str, int] = field(default_factory=dict)
    engine: Engine | None = None

    @classmethod
    def of_model(cls, model: ModelRef, name: str) -> Artifact:
        """The stand-in for the PyTorch model itself, which the reference backend runs."""
        return cls(Path(model.ref), "torch", "float32", "", (), (), name=name, model=model)


def manifest_path(path: Path) -> Path:
    """The manifest of the artifact at ``path``: the same name with ``.json`` behind it."""
    return path.with_name(path.name + ".json")


def write(artifact: Artifact, content: bytes, beside: Mapping[str, bytes] | None = None) -> Artifact:
    """Write ``content`` to ``artifact.path`` with its manifest, each whole or not at all; return it with its hash.

    ``beside`` are further files of the artifact by name: the weights of an ONNX file over 2 GiB.

    Raises:
        OutputError: a file cannot be written; then none is left behind, and what was there before is unchanged.
    """
    manifest = manifest_path(artifact.path)
    before = manifest.read_bytes() if manifest.is_file() else None
    had_folder = manifest.parent.is_dir()
    further = beside or {}
    try:
        with ExitStack() as stack:
            for name, part in further.items():
                stack.enter_context(atomic_path(artifact.path.with_name(name))).write_bytes(part)
            temporary = stack.enter_context(atomic_path(artifact.path))
            temporary.write_bytes(content)
            written = replace(
                artifact,
                sha256=sha256_file(temporary),
                size_bytes=len(content) + sum(map(len, further.values())),
                created=datetime.now(UTC).isoformat(timespec="milliseconds"),
                model=_relative(artifact.model, artifact.path.parent),
            )
            write_text(manifest, _encode(written))
    except BaseException:
        # The manifest may have been written already when the artifact's own rename failed.
        _restore(manifest, before, had_folder)
        raise
    return replace(written, model=artifact.model)


def _restore(manifest: Path, before: bytes | None, had_folder: bool) -> None:
    if before is not None and manifest.read_bytes() != before:
        with atomic_path(manifest) as temporary:
            temporary.write_bytes(before)
    elif before is None and manifest.is_file():
        manifest.unlink()
        if not had_folder:
            with contextlib.suppress(OSError):  # somebody else may have put a file there meanwhile: then it stays
                manifest.parent.rmdir()


def read(path: Path) -> Artifact:
    """The artifact at ``path``, its manifest read and its hash checked; an ONNX file of others needs no manifest.

    Raises:
        ArtifactError: the file or its manifest is missing or unreadable, or they do not belong together.
    """
    if not path.is_file():
        raise ArtifactError(f"no artifact at {path}: make one with `deploykit export`.")
    manifest = manifest_path(path)
    if not manifest.is_file() or (path.suffix == ".onnx" and not is_manifest(manifest)):
        if path.suffix != ".onnx":
            raise ArtifactError(f"{path} has no manifest {manifest.name} beside it: make it again with deploykit.")
        return _adopt(path)
    artifact = read_manifest(manifest)
    if artifact.sha256 != sha256_file(path):
        raise ArtifactError(
            f"{path} is not the file that its manifest describes (the SHA-256 differs): make it again from its source."
        )
    return artifact


def is_manifest(path: Path) -> bool:
    """Whether a JSON file is a manifest of deploykit, of whatever version; others use such names for theirs."""
    import msgspec

    try:
        data = msgspec.json.decode(path.read_bytes())
    except (OSError, msgspec.MsgspecError):
        return True  # one that was cut short, say: whoever reads it tells
    return isinstance(data, dict) and "manifest_version" in data


def load_onnx(path: Path) -> onnx.ModelProto:
    """The ONNX model in ``path``, with its external data.

    Raises:
        ArtifactError: it cannot be read, or is no whole ONNX file.
    """
    import google.protobuf.message
    import onnx

    try:
        model = onnx.load(path)
    except (OSError, google.protobuf.message.DecodeError, onnx.checker.ValidationError) as error:
        raise ArtifactError(f"{path} is no readable ONNX file, or is cut short: {first_line(error)}.") from error
    if not model.graph.node or not model.opset_import:  # an empty or cut file can still be a valid, empty message
        raise ArtifactError(f"{path} is no readable ONNX file, or is cut short: it holds no graph.")
    return model


def tensor_spec(value: onnx.ValueInfoProto) -> TensorSpec:
    """A graph input's or output's name, dtype and dims; a dim without a size or a name is called ``unknown``.

    Raises:
        ArtifactError: it is a sequence, an optional value or the like.
    """
    import onnx

    tensor = value.type.tensor_type
    if not value.type.HasField("tensor_type") or not tensor.elem_type:
        kind = value.type.WhichOneof("value") or "nothing"
        raise ArtifactError(
            f"the graph's {value.name!r} is no tensor ({kind.removesuffix('_type')}): deploykit takes tensors only."
        )
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    dims = tuple(
        dim.dim_param or (dim.dim_value if dim.HasField("dim_value") else "unknown") for dim in tensor.shape.dim
    )
    return TensorSpec(value.name, dtype, dims)


def newest(folder: Path, fits: Callable[[Artifact], bool]) -> Artifact | None:
    """The artifact in ``folder`` that fits and was made last, its hash checked; None where there is none.

    Raises:
        ArtifactError: a manifest in the folder cannot be read, or the newest fitting file is not what it says.
    """
    found = [read_manifest(path) for path in sorted(folder.glob("*.json")) if path.with_suffix("").is_file()]
    fitting = [artifact for artifact in found if fits(artifact)]
    return read(max(fitting, key=lambda artifact: artifact.created).path) if fitting else None


def read_manifest(manifest: Path) -> Artifact:
    """What the manifest says, without a look at the file it describes.

    Raises:
        ArtifactError: it cannot be read, is no manifest, or was written by a newer deploykit.
    """
    import msgspec

    path = manifest.with_name(manifest.name.removesuffix(".json"))
    try:
        data = msgspec.json.decode(manifest.read_bytes(), type=dict[str, Any])
        version = data.pop("manifest_version", None)
        if version != MANIFEST_VERSION:
            raise ArtifactError(
                f"{manifest} has manifest version {version}, this deploykit reads {MANIFEST_VERSION}: upgrade it."
            )
        artifact = msgspec.convert({**data, "path": path}, type=Artifact, dec_hook=_decode_path)
    except (OSError, msgspec.MsgspecError) as error:
        raise ArtifactError(f"{manifest} is no manifest that deploykit can read: {error}.") from error
    if artifact.format not in FORMATS:
        raise ArtifactError(f"{manifest} names the unknown format {artifact.format!r}: upgrade deploykit.")
    return replace(artifact, model=_resolved(artifact.model, path.parent))


def _adopt(path: Path) -> Artifact:
    graph = load_onnx(path).graph
    files = {path, *external_files(path)}
    weights = {tensor.name for tensor in graph.initializer}
    return Artifact(
        path,
        "onnx",
        "float32",
        sha256_file(path),
        inputs=tuple(tensor_spec(value) for value in graph.input if value.name not in weights),
        outputs=tuple(tensor_spec(value) for value in graph.output),
        name=path.stem,
        size_bytes=sum(file.stat().st_size for file in files),
        operators=operators_of(path),
    )


def external_files(path: Path) -> set[Path]:
    """The files beside an ONNX file that hold its larger tensors; none for other files."""
    import onnx

    if path.suffix != ".onnx":
        return set()
    tensors = onnx.load(path, load_external_data=False).graph.initializer
    return {
        path.parent / entry.value for tensor in tensors for entry in tensor.external_data if entry.key == "location"
    }


def _encode(artifact: Artifact) -> str:
    import msgspec  # slow enough for `deploykit --help` to be without it

    data = msgspec.to_builtins(replace(artifact, path=Path()), enc_hook=str)
    del data["path"]
    return (
        msgspec.json.format(msgspec.json.encode({"manifest_version": MANIFEST_VERSION, **data}), indent=1).decode()
        + "\n"
    )


def _decode_path(kind: type, value: object) -> object:
    return value if kind is Path else NotImplemented


# Files are named relative to the manifest, so that a folder with sources and build/ can move as a whole.
def _relative(model: ModelRef | None, folder: Path) -> ModelRef | None:
    return None if model is None else model.moved(lambda file: os.path.relpath(file, folder))


def _resolved(model: ModelRef | None, folder: Path) -> ModelRef | None:
    return None if model is None else model.moved(lambda file: os.path.relpath(folder / file))
