"""Plans, the files of TensorRT engines: what is read of one before TensorRT may see it.

A plan is code for one version of TensorRT and one kind of GPU, and TensorRT trusts what it deserializes. So its first
bytes and its manifest are held against this machine first, and a mismatch is a sentence.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from deploykit.errors import ArtifactError
from deploykit.trt.library import parse_version

if TYPE_CHECKING:
    from deploykit.artifact import Artifact, Engine
    from deploykit.trt.library import Version

#: The first four bytes, 0x74727466 as a little-endian number, and the header's form in the four after them.
MAGIC, FORM = b"ftrt", b"\0\0\0\0"
#: Where the version of the TensorRT that wrote it stands, one byte each: major, minor, patch, build.
#: NVIDIA's trtexec reads it there for `--getPlanVersionOnly`.
VERSION = slice(24, 28)
AGAIN = "build it again here, with `deploykit build --rebuild` or --rebuild"


def header_version(path: Path) -> Version:
    """The version of TensorRT that wrote the plan, as far as one byte for each number holds it.

    Raises:
        ArtifactError: it cannot be read, or is no plan.
    """
    try:
        with path.open("rb") as file:
            head = file.read(VERSION.stop)
    except OSError as error:
        raise ArtifactError(f"cannot read {path}: {(error.strerror or str(error)).lower()}.") from error
    if len(head) < VERSION.stop or head[:4] != MAGIC:
        raise ArtifactError(
            f"{path.name} is no TensorRT plan, is cut short, or has another tool's header in front of it: build it "
            "with `deploykit build`."
        )
    if head[4:8] != FORM:
        raise ArtifactError(f"{path.name} has a plan header of a form that deploykit does not know: upgrade it.")
    return tuple(head[VERSION])


def require_fits(artifact: Artifact, tensorrt: str, gpu: str, compute_capability: str) -> None:
    """Refuse a plan that was built for another TensorRT or GPU, before anything deserializes it.

    ``tensorrt`` is the installed version's text, ``gpu`` and ``compute_capability`` (``9.0``) are this machine's.

    Raises:
        ArtifactError: it does not fit, or its bytes and its manifest contradict each other; says what to do.
    """
    written, here = header_version(artifact.path), parse_version(tensorrt)
    engine = artifact.engine
    name = artifact.path.name
    if engine is None:
        raise ArtifactError(f"the manifest of {name} says nothing of an engine: {AGAIN}.")
    told = parse_version(engine.tensorrt)
    if not _same(written, told):
        raise ArtifactError(
            f"{name} was written by TensorRT {_text(written)}, and its manifest says {engine.tensorrt}: {AGAIN}."
        )
    if not runs_on_version(engine, written, here):
        raise ArtifactError(f"{name} was built by TensorRT {engine.tensorrt}, and here is {tensorrt}: {AGAIN}.")
    if not runs_on_gpu(engine, gpu, compute_capability):
        raise ArtifactError(
            f"{name} was built for {engine.gpu} (compute capability {engine.compute_capability}), and here is {gpu} "
            f"({compute_capability}): {AGAIN}."
        )


def runs_on_version(engine: Engine, written: Version, here: Version) -> bool:
    """Whether a TensorRT loads the plan: the same version, or a later one where it was built for that."""
    if _same(written, here):
        return True
    return bool(engine.options.get("version_compatible")) and written <= here


def runs_on_gpu(engine: Engine, gpu: str, compute_capability: str) -> bool:
    """Whether a GPU runs the plan: the same model, or one that it was built to be compatible with."""
    level = engine.options.get("hardware_compatible")
    if level == "ampere+":
        return parse_version(compute_capability) >= (8, 0)
    if level == "same-capability":
        return compute_capability == engine.compute_capability
    # TensorRT itself wants the same model: another one with the same capability has other caches and core counts.
    return (gpu, compute_capability) == (engine.gpu, engine.compute_capability)


def _same(first: Version, second: Version) -> bool:
    """Equal as far as a header tells: each number modulo 256, and the build only where both have one."""
    shared = min(len(first), len(second))
    return shared >= 3 and all(one % 256 == other % 256 for one, other in zip(first, second, strict=False))


def _text(version: Version) -> str:
    return ".".join(map(str, version))
