"""What a quantization scheme is. Each lies in a file of its own here, defines ``SCHEME``, and is found by its name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from deploykit import artifact as artifacts
from deploykit.artifact import Artifact
from deploykit.coverage import Coverage
from deploykit.errors import GateError, QuantizationError
from deploykit.versions import versions

if TYPE_CHECKING:
    import onnx

DEFAULT_METHOD = "dynamic"

_TOOLS = ("deploykit", "onnx", "onnxruntime")


@dataclass(frozen=True)
class QuantizeOptions:
    """``exclude``: names of nodes to leave in float."""

    exclude: frozenset[str] = frozenset()


class Scheme(ABC):
    """A way to make an int8 graph from a float one."""

    #: Artifact formats that it takes.
    accepts: frozenset[str] = frozenset({"onnx"})
    #: The format that it makes.
    produces: str = "onnx-int8"

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
    allow_partial: bool = False,
    progress: Callable[[str], None] = lambda step: None,
) -> Artifact:
    """Quantize ``source`` to the file ``path``, with a manifest that holds the coverage. ``source`` is not changed.

    Raises:
        UnknownNameError: there is no such method.
        ArtifactError: the source cannot be read.
        QuantizationError: the method does not take it, or onnxruntime does not load the result.
        GateError: a recurrent layer would stay in float, and ``allow_partial`` is not set; nothing is written.
        OutputError: the file cannot be written.
    """
    from deploykit import registry

    scheme = registry.scheme(method)
    if source.format not in scheme.accepts:
        raise QuantizationError(
            f"{source.path} is {source.format}, and {method} quantizes {' or '.join(sorted(scheme.accepts))}: "
            "name the float artifact."
        )
    if path.resolve() == source.path.resolve():
        raise QuantizationError(f"{path} is the source itself, which is never changed: name another file with -o.")
    progress("reading")
    model = artifacts.load_onnx(source.path)
    _require_known(exclude, model, source)
    progress(f"quantizing ({method})")
    quantized, coverage = scheme.apply(model, QuantizeOptions(exclude=exclude))
    left = coverage.recurrent_left
    if left and not allow_partial:
        named = "; ".join(f"{row.node}: {row.reason or row.became}" for row in left)
        raise GateError(
            f"int8 was asked for, but recurrent layers would stay in float ({named}); --allow-partial accepts that."
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
            dims=source.dims,
            tools=versions(_TOOLS),
            coverage=coverage,
        ),
        content,
    )


def _require_known(exclude: frozenset[str], model: onnx.ModelProto, source: Artifact) -> None:
    unknown = sorted(exclude - {node.name for node in model.graph.node})
    if unknown:
        named = ", ".join(node.name for node in model.graph.node if node.name)
        raise QuantizationError(f"{source.path} has no node {unknown[0]!r} to exclude; its nodes: {named}.")


def _require_loads(content: bytes, source: Artifact) -> None:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    # onnxruntime's exceptions have no common base of their own below Exception.
    except Exception as error:
        told = str(error).strip().split("\n", 1)[0]
        raise QuantizationError(
            f"{source.path} was quantized to a graph that onnxruntime cannot load: {told}"
        ) from error
