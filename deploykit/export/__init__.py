"""PyTorch to ONNX with dynamic batch and time: one ONNX operator a recurrent layer, proved before it is returned."""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit import artifact as artifacts
from deploykit.artifact import Artifact, ModelRef
from deploykit.errors import ExportError, ModelError, first_line
from deploykit.types import DimRange, ModelSpec, TensorSpec
from deploykit.versions import versions

if TYPE_CHECKING:
    import onnx
    import torch
    from torch import nn

    from deploykit.types import Array

DEFAULT_OPSET = 20
OPSETS = range(18, 24)

# Sizes of the dynamic dims in the traced example: all different, and above 1, which torch.export takes for a constant.
_EXAMPLE = {"batch": 2, "time": 7}
_EXAMPLE_OTHERS = (3, 5, 11, 13)

_TOOLS = ("deploykit", "torch", "onnx", "onnxscript", "onnxruntime")


def export(
    ref: ModelRef,
    path: Path,
    *,
    opset: int = DEFAULT_OPSET,
    verify: bool = True,
    progress: Callable[[str], None] = lambda step: None,
) -> Artifact:
    """Export the model that ``ref`` names to ``path``, verified against PyTorch, with a manifest beside it.

    Raises:
        ExportError: the model cannot be exported, or the exported file is not the same model.
        ModelError, WeightsError, UsageError: the model cannot be loaded.
        OutputError: the file cannot be written.
    """
    from deploykit import loading
    from deploykit.export import _clean, _verify

    progress("loading the model")
    spec = loading.load(ref)
    progress("tracing")
    model, outputs, operators = to_onnx(spec, opset)
    content = model.SerializeToString(deterministic=True)
    progress("verifying")
    _verify.check_graph(model, spec, outputs, operators)
    source = _clean.noted_source(model)
    repeats = loading.source_hash(loading.load(ref).module) == source
    verification: dict[str, Any] = {"verified": False, "same_weights_each_time": repeats}
    if verify:
        checks = _verify.compare(content, spec, outputs)
        tolerance = {"atol": _verify.ATOL, "rtol": _verify.RTOL}
        inputs = "seeded noise" if spec.sample is None else "the model's own sample"
        checked = {"inputs": inputs, "checks": [asdict(check) for check in checks]}
        verification |= {"verified": True, **tolerance, **checked}
    return artifacts.write(
        Artifact(
            path,
            "onnx",
            "float32",
            sha256="",
            inputs=spec.inputs,
            outputs=outputs,
            name=loading.model_name(ref),
            model=ref,
            source_sha256=source,
            dims=spec.dims,
            tools=versions(_TOOLS),
            verification=verification,
        ),
        content,
    )


def to_onnx(spec: ModelSpec, opset: int = DEFAULT_OPSET) -> tuple[onnx.ModelProto, tuple[TensorSpec, ...], int]:
    """The model as an ONNX graph, its outputs, and how many recurrent operators the trace met.

    Raises:
        ExportError: the model cannot be traced, or an operator cannot be translated.
    """
    import onnx

    from deploykit.export import _clean, _lowering, _operators

    if opset not in OPSETS:
        raise ExportError(f"opset {opset} is not one that deploykit exports: choose {OPSETS[0]} to {OPSETS[-1]}.")
    names = _output_names(spec)
    with _quiet(), _lowering.lowered(spec.module):
        try:
            program = _trace(spec)
            operators = sum("deploykit." in str(node.target) for node in program.graph.nodes)
            exported = _translate(program, spec, names, opset, _operators.translations(opset))
        # The exporter wraps what went wrong in exceptions of its own, of many classes; the innermost says it.
        except Exception as error:
            raise ExportError(f"{spec.name} cannot be exported: {_explained(error, spec.module)}.") from error
    assert isinstance(exported, onnx.ModelProto)
    _clean.clean(exported, spec.module)
    outputs = tuple(artifacts.tensor_spec(value) for value in exported.graph.output)
    return exported, spec.outputs or outputs, operators


def _output_names(spec: ModelSpec) -> tuple[str, ...]:
    """Run the module once, which also brings its own mistakes to light before the exporter wraps them."""
    from deploykit.backends._outputs import output_names
    from deploykit.export import _verify

    feeds = spec.feeds(0, **_example_sizes(spec))
    try:
        values, again = (_verify.reference_outputs(spec, feeds) for _ in range(2))
    except ModelError:
        raise
    # The module is the user's own code: whatever it raises is the answer.
    except Exception as error:
        shapes = ", ".join(map(str, spec.inputs))
        raise ModelError(f"{spec.name} fails in PyTorch on the inputs {shapes}: {_root(error)}.") from error
    if not all(_same(*pair) for pair in zip(values, again, strict=True)):
        raise ModelError(
            f"{spec.name} answers the same inputs differently the second time: it draws random numbers or keeps state "
            "on itself, and neither would be in the exported file; take that out of its forward."
        )
    return output_names(spec, len(values))


def _same(first: Array, second: Array) -> bool:
    import numpy as np

    return first.shape == second.shape and bool(np.allclose(first, second, rtol=1e-4, atol=1e-5, equal_nan=True))


def _example_sizes(spec: ModelSpec) -> dict[str, int]:
    others = [name for name in spec.dynamic if name not in _EXAMPLE]
    sizes = {
        name: _EXAMPLE.get(name) or _EXAMPLE_OTHERS[others.index(name) % len(_EXAMPLE_OTHERS)] for name in spec.dynamic
    }
    return {name: spec.dims.get(name, DimRange()).clamp(size) for name, size in sizes.items()}


def _trace(spec: ModelSpec) -> torch.export.ExportedProgram:
    import torch

    feeds = spec.feeds(0, **_example_sizes(spec))
    example = tuple(torch.from_numpy(feeds[tensor.name]) for tensor in spec.inputs)
    return torch.export.export(spec.module, example, dynamic_shapes=_dynamic_shapes(spec), strict=False)


def _dynamic_shapes(spec: ModelSpec) -> tuple[Any, ...]:
    """For each input its dynamic axes, nested as torch.export sees the arguments: those of ``*args`` as one tuple."""
    import torch

    # No maximum where none was declared: products of very large ones overflow inside torch.export.
    bounds = {name: {"min": spec.dims[name].low, "max": spec.dims[name].high} for name in spec.dims}
    dims = {name: torch.export.Dim(name, **bounds.get(name, {"min": 1})) for name in spec.dynamic}
    shapes = [
        {axis: dims[dim] for axis, dim in enumerate(tensor.dims) if isinstance(dim, str)} for tensor in spec.inputs
    ]
    kinds = [parameter.kind for parameter in inspect.signature(spec.module.forward).parameters.values()]
    named = kinds.index(inspect.Parameter.VAR_POSITIONAL) if inspect.Parameter.VAR_POSITIONAL in kinds else len(shapes)
    return (*shapes[:named], tuple(shapes[named:])) if len(shapes) > named else tuple(shapes)


def _translate(
    program: torch.export.ExportedProgram, spec: ModelSpec, names: tuple[str, ...], opset: int, table: dict[Any, Any]
) -> onnx.ModelProto:
    import torch

    exported = torch.onnx.export(
        program,
        dynamo=True,
        opset_version=opset,
        input_names=[tensor.name for tensor in spec.inputs],
        output_names=list(names),
        dynamic_shapes=_dynamic_shapes(spec),
        custom_translation_table=table,
        verbose=False,
    )
    if exported is None:
        raise ExportError("torch.onnx returned nothing")
    return exported.model_proto


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter prints and logs: packages that nobody needs here, and whole graphs on a failure."""
    loggers = [
        logging.getLogger(name) for name in ("torch", "torch.onnx", "torch.export", "torch.fx", "onnxscript", "onnx_ir")
    ]
    before = [logger.level for logger in loggers]
    silence = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(silence), contextlib.redirect_stderr(silence):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, before, strict=True):
                logger.setLevel(level)


def _explained(error: Exception, module: nn.Module) -> str:
    """What went wrong in words of the model, for the failures that have a way round."""
    from torch import nn

    from deploykit.export._lowering import is_plain

    told = _root(error)
    if fixed := re.search(r"Constraints violated \(([^)]*)\)", told):
        overridden = [
            name or type(layer).__name__
            for name, layer in module.named_modules()
            if isinstance(layer, nn.RNNBase) and not is_plain(layer)
        ]
        if overridden:
            return f"its layer {overridden[0]} is a subclass with a forward of its own, which is not lowered"
        guards = re.findall(r"generated guard (.+)", _whole(error))
        if guards:
            return (
                f"its code does not allow every size of {fixed[1]}: PyTorch asks for {guards[0].strip().rstrip('.')}; "
                f"bound the sizes with --dim {fixed[1].split(',')[0]}=LOW:HIGH"
            )
        return (
            f"its code works only at the traced size of {fixed[1]} (a Python loop over it, or a size written into a "
            "reshape); write that dim as a number in --input, or take the size from the tensor's shape"
        )
    if "data-dependent" in told:
        return f"its code branches on a tensor's values, or takes a size from them ({told}): use torch.where"
    return told


def _whole(error: BaseException) -> str:
    return str(error) if error.__cause__ is None else _whole(error.__cause__)


def _root(error: BaseException) -> str:
    """The first line of the innermost cause."""
    while error.__cause__ is not None:
        error = error.__cause__
    return first_line(error)
