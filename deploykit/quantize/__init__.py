"""What a quantization scheme is. Each lies in a file of its own here, defines ``SCHEME``, and is found by its name."""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from deploykit import artifact as artifacts
from deploykit.artifact import Artifact
from deploykit.coverage import Coverage
from deploykit.errors import GateError, KernelsError, QuantizationError, UsageError
from deploykit.opsets import operators_of
from deploykit.quantize._gate import Bounds, Gate, record
from deploykit.runtime import sentence, session
from deploykit.versions import versions

if TYPE_CHECKING:
    import onnx

    from deploykit.types import Array

#: int8 arithmetic where it is faster, where it makes file and memory smaller, or wherever it can be: ``_preference``.
Preference = Literal["speed", "size", "int8"]
PREFERENCES: tuple[Preference, ...] = get_args(Preference)

#: What recurrent layers become: operators of plain onnxruntime, those of ``deploykit.kernels``, or these where the
#: library can be loaded.
Kernels = Literal["portable", "fused", "auto"]
KERNELS: tuple[Kernels, ...] = get_args(Kernels)

DEFAULT_METHOD = "dynamic"
DEFAULT_BOUNDS = Bounds()

_TOOLS = ("deploykit", "onnx", "onnxruntime")


@dataclass(frozen=True)
class QuantizeOptions:
    """``exclude``: names of nodes to leave in float. ``calibration``: feeds by input name, with many samples each.

    ``stored``: names of nodes that compute in float, with weights stored as int8, for schemes that heed it.

    ``prefer`` decides where int8 arithmetic would be slower than float, see ``_preference``. ``allow_coupled`` admits
    operators whose answer for a row may depend on its batch neighbours or on later steps. ``fused`` makes recurrent
    layers operators of ``deploykit.kernels``, which run only where that library is loaded.
    """

    exclude: frozenset[str] = frozenset()
    calibration: Mapping[str, Array] | None = None
    prefer: Preference = "speed"
    allow_coupled: bool = False
    stored: frozenset[str] = frozenset()
    fused: bool = False


class Scheme(ABC):
    """A way to make an int8 graph from a float one."""

    #: Artifact formats that it takes.
    accepts: frozenset[str] = frozenset({"onnx"})
    #: The format that it makes.
    produces: str = "onnx-int8"
    #: What may become of a recurrent layer where the scheme does what it is for; anything else fails the request.
    recurrence: frozenset[str] = frozenset({"int8"})
    #: Which of the options that not every scheme can heed it does: ``prefer``, ``kernels``, ``allow-coupled`` and
    #: ``stored``.
    heeds: frozenset[str] = frozenset()

    @abstractmethod
    def apply(self, model: onnx.ModelProto, options: QuantizeOptions) -> tuple[onnx.ModelProto, Coverage]:
        """A quantized copy of ``model``, which is left as it was, and what became of each of its weighted nodes.

        Raises:
            QuantizationError: the graph is not one that it can quantize.
        """


def quantize(
    source: Artifact,
    path: Path,
    *,
    method: str = DEFAULT_METHOD,
    exclude: frozenset[str] = frozenset(),
    prefer: Preference | None = None,
    kernels: Kernels | None = None,
    allow_coupled: bool = False,
    allow_partial: bool = False,
    calibration: Path | None = None,
    example: str | None = None,
    bounds: Bounds | None = DEFAULT_BOUNDS,
    metric: bool | str = True,
    progress: Callable[[str], None] = lambda step: None,
) -> Artifact:
    """Quantize ``source`` to the file ``path``, with a manifest that holds the coverage. ``source`` is not changed.

    ``prefer`` and ``allow_coupled`` are those of ``QuantizeOptions``, for the schemes that heed them, as is
    ``kernels``: without it the file is portable, and with ``auto`` fused where the library can be loaded here.

    The result is held against its source before it is written: on the arrays of the file ``calibration``, else on what
    the function ``example`` (``FILE.py:function``; its code runs) returns, else on the model's own sample, else on
    seeded noise. Where ``bounds`` are missed, the nodes that cost most stay in float; ``bounds=None`` writes whatever
    comes out. ``metric`` says whether the model's own metric is one of the bounds, or names the user's own in its
    place, ``FILE.py:FUNCTION``, which may take the arrays of ``calibration``.

    Raises:
        UnknownNameError: there is no such method.
        ArtifactError: the source cannot be read.
        QuantizationError: the method does not take it, or onnxruntime does not load the result.
        KernelsError: fused operators are asked for, and their library cannot be loaded here.
        UsageError: the calibration file cannot be read or does not fit, nor does the example; the metric cannot be
            found; or the method does not heed an option.
        ModelError: the example fails, or the user's metric does on the source.
        GateError: a bound cannot be held, or a recurrent layer would stay in float and ``allow_partial`` is not set;
            nothing is written.
        OutputError: the file cannot be written.
    """
    from deploykit import registry
    from deploykit.data import DataFile
    from deploykit.quantize._inputs import gather

    scheme = registry.scheme(method)
    _require_heeded(method, scheme, {"prefer": prefer, "kernels": kernels, "allow-coupled": allow_coupled or None})
    if allow_coupled and kernels in ("fused", "auto"):
        raise UsageError(
            f"--allow-coupled takes onnxruntime's own LSTM and --kernels {kernels} deploykit's, which is faster and "
            "couples nothing: leave --allow-coupled out."
        )
    fused = _may_fuse(kernels)
    if source.format not in scheme.accepts:
        raise QuantizationError(
            f"{source.path} is {source.format}, and {method} quantizes {' or '.join(sorted(scheme.accepts))}: "
            "name the float artifact."
        )
    _require_free(path, source, calibration)
    progress("reading")
    model = artifacts.load_onnx(source.path)
    _require_known(exclude, model, source)
    progress(f"quantizing ({method})")
    data = None if calibration is None else DataFile(calibration, source.inputs).whole()

    def apply(left: frozenset[str], stored: frozenset[str]) -> tuple[onnx.ModelProto, Coverage]:
        return scheme.apply(model, QuantizeOptions(left, data, prefer or "speed", allow_coupled, stored, fused))

    verification: dict[str, Any] = {"verified": False}
    kept: tuple[str, ...] = ()
    if bounds is None:
        quantized, coverage = apply(exclude, frozenset())
    else:
        inputs = gather(source, model, calibration, example, metric if isinstance(metric, str) else None)
        gate = Gate(model, source.outputs, inputs.feeds, inputs.told, bounds, inputs.metric if metric else None)
        result = gate.choose(apply, exclude, progress, storing="stored" in scheme.heeds)
        kept = result.kept + result.stored
        quantized, coverage = result.model, _explained(result.coverage, kept)
        verification = record(result, gate)
    left = [row for row in coverage.recurrent_left if row.became not in scheme.recurrence or row.node in kept]
    if left and not allow_partial:
        named = "; ".join(f"{row.node}: {row.reason or row.became}" for row in left)
        raise GateError(
            f"int8 was asked for, but recurrent layers would keep float arithmetic ({named}); --allow-partial accepts "
            "that."
        )
    progress("checking")
    content = quantized.SerializeToString(deterministic=True)
    _require_loads(content, source)
    return artifacts.write(
        Artifact(
            path,
            scheme.produces,
            "int8",
            sha256="",
            inputs=source.inputs,
            outputs=source.outputs,
            name=source.name,
            parent=source.sha256,
            model=source.model,
            source_sha256=source.source_sha256,
            dims=source.dims,
            tools=versions(_TOOLS),
            verification=verification,
            coverage=coverage,
            operators=operators_of(content),
        ),
        content,
    )


def _require_heeded(method: str, scheme: Scheme, given: Mapping[str, object]) -> None:
    for option, value in given.items():
        if value is not None and option not in scheme.heeds:
            raise UsageError(f"--{option} is for int8 arithmetic in onnxruntime, not for {method}: leave it out.")


def _may_fuse(kernels: Kernels | None) -> bool:
    """Whether recurrent layers become fused operators.

    Raises:
        KernelsError: that is asked for, and cannot be here; or ``DEPLOYKIT_KERNELS_PATH`` names no path that runs here.
    """
    if kernels in (None, "portable"):
        return False
    from deploykit.kernels import used_path, why_missing

    reason = why_missing()
    if reason is None:
        used_path()
    elif kernels == "fused":
        raise KernelsError(f"--kernels fused is not possible here: {reason}")
    return reason is None


def _require_free(path: Path, source: Artifact, calibration: Path | None) -> None:
    """Nothing that is read may be written over, nor a manifest's place that somebody else's file has.

    Raises:
        UsageError: that would happen.
    """
    inputs = [source.path, artifacts.manifest_path(source.path), *artifacts.external_files(source.path)]
    taken = {file.resolve() for file in [*inputs, *([] if calibration is None else [calibration])]}
    for file in (path, artifacts.manifest_path(path)):
        if file.resolve() in taken:
            raise UsageError(f"{file} is an input, which is never changed: name another file with -o.")
    manifest = artifacts.manifest_path(path)
    if manifest.is_file() and not artifacts.is_manifest(manifest):
        raise UsageError(f"{manifest} is somebody else's and would be written over: name another file with -o.")


def _explained(coverage: Coverage, kept: tuple[str, ...]) -> Coverage:
    """With the true reason for the nodes that the gate, not the user, left in float."""
    because = "quantized, it would cost more accuracy than the bounds allow"
    return Coverage(tuple(replace(row, reason=because) if row.node in kept else row for row in coverage.rows))


def _require_known(exclude: frozenset[str], model: onnx.ModelProto, source: Artifact) -> None:
    from deploykit.quantize._graph import name_of, walk

    known = list(dict.fromkeys(name_of(node) for node in walk(model.graph)))
    unknown = sorted(exclude.difference(known))
    if unknown:
        near = difflib.get_close_matches(unknown[0], known, n=5, cutoff=0.3) or known[:5]
        raise UsageError(
            f"{source.path} has no node {unknown[0]!r} to exclude; of its {len(known)} nodes the nearest are "
            f"{', '.join(near)}."
        )


def _require_loads(content: bytes, source: Artifact) -> None:
    try:
        session(content)
    except Exception as error:
        raise QuantizationError(
            f"{source.path} was quantized to a graph that onnxruntime cannot load: {sentence(error)}."
        ) from error
