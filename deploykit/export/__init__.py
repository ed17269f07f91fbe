"""PyTorch to ONNX with dynamic batch and time: one ONNX operator a recurrent layer, proved before it is returned."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit import artifact as artifacts
from deploykit.artifact import Artifact, ModelRef
from deploykit.errors import ExportError, first_line
from deploykit.types import TIME, DimRange, ModelSpec, TensorSpec
from deploykit.versions import versions

if TYPE_CHECKING:
    import onnx

DEFAULT_OPSET = 20
OPSETS = range(17, 26)
PRECISIONS = {"fp32": "float32", "fp16": "float16"}

# The oldest opset that torch.onnx writes; what is older is made from it.
_OLDEST_TRACED = 18

_TOOLS = ("deploykit", "torch", "onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True)
class Exported:
    """An ONNX graph and what is known of it.

    ``layers`` is how many recurrent operators it must hold; None where loops over cells were folded, whose number
    depends on what the loops do; ``looped`` is then the dim that they run along. ``notes`` are sentences that a user
    has to know, and ``hint`` says what is most likely wrong if the file turns out to differ from PyTorch.
    """

    model: onnx.ModelProto
    outputs: tuple[TensorSpec, ...]
    layers: int | None
    dims: dict[str, DimRange] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    looped: str | None = None
    hint: str = ""


def export(
    ref: ModelRef,
    path: Path,
    *,
    opset: int = DEFAULT_OPSET,
    verify: bool = True,
    precision: str = "fp32",
    io_precision: str = "fp32",
    progress: Callable[[str], None] = lambda step: None,
) -> Artifact:
    """Export the model that ``ref`` names to ``path``, verified against PyTorch, with a manifest beside it.

    ``precision`` fp16 computes in float16, recurrence and all; ``io_precision`` fp16 makes the inputs and outputs
    float16 too.

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
    exported = to_onnx(spec, opset)
    spec = replace(spec, dims=exported.dims)
    model, inputs, outputs = exported.model, spec.inputs, exported.outputs
    source = _clean.noted_source(model)
    if precision == "fp16":
        from deploykit.export import _half

        model = _half.to_half(model, keep_io=io_precision != "fp16")
        inputs = tuple(artifacts.tensor_spec(value) for value in model.graph.input)
        outputs = tuple(artifacts.tensor_spec(value) for value in model.graph.output)
    files = _clean.serialized(model, path.name)
    progress("verifying")
    _verify.check_graph(model, replace(spec, inputs=inputs), outputs, exported.layers)
    repeats = loading.source_hash(loading.load(ref).module) == source
    verification: dict[str, Any] = {"verified": False, "same_weights_each_time": repeats}
    notes = list(exported.notes)
    if loading.is_program(ref) and exported.layers and TIME not in spec.dynamic:
        notes.append("the program has a fixed time; --input with a name for that dim frees it, if its operators allow.")
    if notes:
        verification["notes"] = notes
    if verify:
        bound = _verify.TOLERANCES["float16" if _is_half(spec) else PRECISIONS[precision]]
        try:
            checks = _verify.compare(files, spec, outputs, bound, looped=exported.looped, hint=exported.hint)
        except ExportError as error:
            if not (loading.is_program(ref) and (ref.inputs or ref.axes)):
                raise
            raise ExportError(
                f"{ref.ref} does not work at other sizes than it was exported for ({str(error).rstrip('.')}): leave "
                "--input and --dims out, or export the program again with dynamic_shapes."
            ) from error
        checked = {"inputs": _told_inputs(spec, ref), "checks": [asdict(check) for check in checks]}
        verification |= {"verified": True, "atol": bound.atol, "rtol": bound.rtol, **checked}
    return artifacts.write(
        Artifact(
            path,
            "onnx",
            PRECISIONS[precision],
            sha256="",
            inputs=inputs,
            outputs=outputs,
            name=loading.model_name(ref),
            model=ref,
            source_sha256=source,
            dims=spec.dims,
            tools=versions(_TOOLS),
            verification=verification,
        ),
        files[path.name],
        {name: content for name, content in files.items() if name != path.name},
    )


def to_onnx(spec: ModelSpec, opset: int = DEFAULT_OPSET) -> Exported:
    """The model as an ONNX graph.

    Raises:
        ExportError: the model cannot be traced, or an operator cannot be translated.
        ModelError: it fails in PyTorch, or does what an ONNX file cannot: draw, keep state, write into its inputs.
    """
    from deploykit.export import _clean, _explain, _honest, _trace

    if opset not in OPSETS:
        raise ExportError(f"opset {opset} is not one that deploykit exports: choose {OPSETS[0]} to {OPSETS[-1]}.")
    _require_float(spec)
    sizes = _trace.example_sizes(spec)
    names = tuple(_honest.checked_outputs(spec, spec.feeds(0, **sizes), spec.feeds(1, **sizes)))
    with _trace.quiet():
        try:
            exported = _traced(spec, names, opset)
        except _trace.TraceError as failure:
            looped = _explain.specialized(failure.error)
            if looped is None:
                raise ExportError(f"{spec.name} cannot be exported: {failure.told}.") from failure.error
            exported = _looped(spec, names, opset, looped)
    _clean.clean(exported.model, spec.module)
    outputs = tuple(artifacts.tensor_spec(value) for value in exported.model.graph.output)
    return replace(exported, outputs=spec.outputs or outputs)


def _traced(spec: ModelSpec, names: tuple[str, ...], opset: int, finish: bool = True) -> Exported:
    """One trace as a graph; if it is not to be finished, the first step of a loop stays like the others."""
    from deploykit.export import _fold, _operators, _trace

    traced = _trace.trace(spec)
    bounded = replace(spec, dims=traced.dims)
    later = max(opset, _OLDEST_TRACED)
    model = _trace.translate(traced.program, bounded, names, later, _operators.translations(later))
    _fold.fold(model)
    if finish:
        model = _finished(model, opset)
    notes = [f"it takes for granted that {clause}." for clause in traced.assumes]
    if traced.unrolled and finish:
        notes.append(
            f"a loop over its cells is unrolled: the file works at the {traced.unrolled} steps that it is typed for."
        )
    notes += [_bound_note(name, size) for name, size in traced.dims.items() if size != spec.dims.get(name)]
    hint = "a sum or mean over the data of a packed sequence counts the padding: pad it first" if traced.packs else ""
    return Exported(model, (), traced.layers, dict(traced.dims), tuple(notes), hint=hint)


def _looped(spec: ModelSpec, names: tuple[str, ...], opset: int, dim: str) -> Exported:
    """Of a model that loops over ``dim`` in Python: traced at two lengths, and folded back into a loop."""
    from deploykit.export import _fold, _loops, _trace

    later = max(opset, _OLDEST_TRACED)
    try:
        short, long = (
            _traced(_trace.at_size(spec, dim, length), names, later, finish=False) for length in _trace.LOOP_LENGTHS
        )
        axes = {tensor.name: tensor.dims.index(dim) for tensor in spec.inputs if dim in tensor.dims}
        model = _loops.roll(short.model, long.model, dim, axes)
    # Beside loops that it knows it cannot fold, a graph may have a form that nobody thought of.
    except (_loops.NotALoop, _trace.TraceError, AssertionError, ValueError, KeyError, IndexError) as error:
        why = first_line(error)
        raise ExportError(
            f"{spec.name} cannot be exported with a dynamic {dim}: its code loops over it in Python, or uses it as a "
            f"plain number, in a way that could not be made a loop of the file ({why}); write {dim} as a number in "
            "--input, and the file is made for that size."
        ) from error
    _fold.fold(model)
    model = _finished(model, opset)
    hint = (
        f"its code may do something else at other sizes of {dim} than at {' and '.join(map(str, _trace.LOOP_LENGTHS))}"
    )
    dims = {**short.dims, **{name: bounds for name, bounds in spec.dims.items() if name == dim}}
    return Exported(model, (), None, dims, short.notes, dim, hint)


def _finished(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    from deploykit.export import _fold

    _fold.drop_zero_states(model)
    if opset >= _OLDEST_TRACED:
        return model
    from deploykit.export import _opset

    return _opset.to_17(model)


def _bound_note(name: str, size: DimRange) -> str:
    return f"its code works for {name} from {size.low} up, and so does the file."


def _is_half(spec: ModelSpec) -> bool:
    """Whether the model itself computes in float16, at least in part."""
    import torch

    stored = (*spec.module.parameters(), *spec.module.buffers())
    return any(tensor.dtype == torch.float16 for tensor in stored)


def _require_float(spec: ModelSpec) -> None:
    import torch

    for name, tensor in spec.module.named_parameters():
        if tensor.dtype in (torch.float64, torch.bfloat16):
            raise ExportError(
                f"{spec.name} holds {name} as {str(tensor.dtype).removeprefix('torch.')}, and onnxruntime's recurrent "
                "operators do not compute in that: call .float() on the model in its factory."
            )


def _told_inputs(spec: ModelSpec, ref: ModelRef) -> str:
    if ref.example is not None:
        return f"values from {ref.example}"
    return "the model's own sample" if spec.has_own_sample else "seeded noise"
