"""Engines: from an ONNX file to a plan for this machine's GPU and TensorRT, in the precision that was asked for.

One path serves 8.6 to 11. From 10 on networks are strongly typed: the types in the ONNX graph, which `prepare` has cast
beforehand, are the types of the engine. 8.6 has no such networks: there every layer is bound to its type in the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from deploykit import artifact as artifacts
from deploykit.artifact import Artifact, Engine
from deploykit.errors import ArtifactError, BuildError, GateError, first_line
from deploykit.files import atomic_path
from deploykit.trt import library, profiles
from deploykit.trt.library import Version
from deploykit.trt.options import NAMES, BuildOptions, Precision
from deploykit.versions import versions

if TYPE_CHECKING:
    import onnx

SUFFIX = ".engine"
#: Packages whose versions the manifest tells.
_TOOLS = ("deploykit", "tensorrt", "pycuda", "onnx")


def target(source: Artifact, precision: Precision) -> Path:
    """Where an engine goes when nobody says: ``net.fp16.engine`` beside ``net.onnx``, named once for each precision."""
    stem = source.path.name.removesuffix(".onnx")
    for said in (".qdq", ".int8", ".fp16", ".bf16"):
        stem = stem.removesuffix(said)
    return source.path.with_name(f"{stem}.{precision}{SUFFIX}")


def build(
    source: Artifact,
    output: Path | None = None,
    *,
    precision: Precision = "fp32",
    shapes: Sequence[str] = (),
    options: BuildOptions | None = None,
    timing_cache: Path | None = None,
    rebuild: bool = False,
    allow_fallback: bool = False,
    progress: Callable[[str], None] = lambda step: None,
) -> Artifact:
    """Build the engine of an ONNX artifact, and write it with its manifest.

    An engine at ``output`` that was built from the same file, for the same machine, with the same settings, is returned
    as it is, unless ``rebuild``. ``shapes`` are profiles (see ``profiles.derive``). TensorRT's measurements of its
    kernels are taken from ``timing_cache`` and added to it, where it is given.

    Raises:
        BackendUnavailableError: there is no TensorRT, no pycuda or no GPU.
        BuildError: the file is none for TensorRT, or not in this precision; TensorRT's own words where it says so.
        GateError: a layer came out in another precision, and ``allow_fallback`` is not set.
        UsageError: the shapes do not fit the model.
        OutputError: a file cannot be written.
    """
    from deploykit.trt import cuda
    from deploykit.trt.builder import Builder

    options = options or BuildOptions()
    library.require()
    gpu = cuda.describe()
    version = library.installed()
    options.require(version, precision)
    path = output or target(source, precision)
    planned = replace(
        source,
        path=path,
        format="trt-engine",
        precision=NAMES[precision],
        parent=source.sha256,
        verification=None,
        coverage=source.coverage if precision == "int8" else None,
        operators={},
        tools=versions(_TOOLS),
        engine=Engine(
            library.installed_text(),
            gpu.name,
            gpu.compute_capability,
            profiles.derive(shapes, source.inputs, source.dims),
            options.told(),
        ),
    )
    found = None if rebuild else current(planned)
    # One with layers that fell back is there because somebody allowed it then: it is no answer to who does not now.
    if found is not None and found.engine is not None and (allow_fallback or not found.engine.fallbacks):
        return found
    progress("checking against what TensorRT's parser takes")
    model = ready(source, precision, version)
    with cuda.context():
        built = Builder(planned, model, precision, options, timing_cache, progress).run()
    if built.engine.fallbacks and not allow_fallback:
        raise GateError(
            f"not written: TensorRT made layers in another precision than {precision}: "
            f"{' '.join(built.engine.fallbacks)} Take it as it is with --allow-fallback."
        )
    made = artifacts.write(replace(planned, engine=built.engine), built.plan)
    if timing_cache is not None and built.timings:
        with atomic_path(timing_cache, "--timing-cache") as temporary:
            temporary.write_bytes(built.timings)
    return made


def current(planned: Artifact) -> Artifact | None:
    """The engine that is already there, where it is just what would be built now."""
    if not planned.path.is_file() or not artifacts.manifest_path(planned.path).is_file():
        return None
    try:
        there = artifacts.read(planned.path)
    except ArtifactError:
        return None
    wanted, has_ = planned.engine, there.engine
    if wanted is None or has_ is None:
        return None
    same_engine = replace(wanted, build_seconds=0, layers={}, fallbacks=()) == replace(
        has_, build_seconds=0, layers={}, fallbacks=()
    )
    # Another deploykit may prepare the graph in another way.
    same = (there.parent, there.precision) == (planned.parent, planned.precision)
    same = same and there.tools.get("deploykit") == planned.tools.get("deploykit")
    return there if same and same_engine else None


def graph(source: Artifact) -> onnx.ModelProto:
    """The model of an ONNX artifact, whole and sound.

    Raises:
        ArtifactError: it cannot be read.
        BuildError: its graph contradicts itself, or a weight is NaN.
    """
    import numpy as np
    import onnx

    model = artifacts.load_onnx(source.path)
    try:
        onnx.checker.check_model(str(source.path))  # by its path: a message of protobuf ends at 2 GiB
    except onnx.checker.ValidationError as error:
        raise BuildError(f"{source.path.name} is no valid ONNX model: {first_line(error)}; export it again.") from error
    for tensor in model.graph.initializer:
        if tensor.data_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE) and (
            np.isnan(onnx.numpy_helper.to_array(tensor)).any()
        ):
            raise BuildError(
                f"the weights {tensor.name!r} of {source.path.name} hold a NaN: train or export them again."
            )
    return model


def ready(source: Artifact, precision: Precision, version: Version) -> onnx.ModelProto:
    """The graph that TensorRT gets: checked against what its parser takes, and cast to the precision.

    Raises:
        BuildError: TensorRT would refuse it, or run it in another precision; names the nodes.
    """
    from deploykit.trt.prepare import prepared

    try:
        return prepared(graph(source), precision, version)
    except BuildError as error:
        first, *others = str(error).splitlines()
        more = f" And {len(others)} more: {' '.join(others)}" if others else ""
        raise BuildError(f"TensorRT cannot build {source.path.name}: {first}{more}") from error
