"""From a module to a program of torch.export, with our recurrent operators in it and its dynamic dims kept dynamic."""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.fx.experimental import _config

from deploykit.backends._outputs import flatten_outputs
from deploykit.export._clean import ROOT
from deploykit.export._explain import explained
from deploykit.export._lowering import Lowering, lowered
from deploykit.export._packed import TracedPacker
from deploykit.types import DimRange, ModelSpec
from deploykit.watching import watched

if TYPE_CHECKING:
    import onnx
    from torch.export import ExportedProgram

    from deploykit.types import Array

# Sizes of the dynamic dims in the traced example: all different, and above 1, which torch.export takes for a constant.
_EXAMPLE = {"batch": 2, "time": 7}
_EXAMPLE_OTHERS = (3, 5, 11, 13)


@dataclass(frozen=True)
class _Way:
    """How PyTorch treats a dim that can be 1 and can be more, which it takes for cases of their own if it may.

    ``oblivious``: it is told not to. ``deferred``: where it has to decide all the same, it decides for the example's
    size and would check at run time; here the comparison at size 1 does that.
    """

    oblivious: bool
    deferred: bool


def _ways() -> list[_Way]:
    """The ways that this version of PyTorch knows; what one refuses, the next often allows."""
    ways = [_Way(False, False)]
    if hasattr(_config, "backed_size_oblivious"):
        ways.append(_Way(True, False))
        if "prefer_deferred_runtime_asserts_over_guards" in inspect.signature(torch.export.export).parameters:
            ways.append(_Way(True, True))
    return ways


#: The two lengths at which a Python loop is traced, to be folded back.
LOOP_LENGTHS = (6, 7)

_FILLED = "the longest row of a batch fills its time axis, as this code needs in PyTorch too"
_FILLS = re.compile(r"Eq\((?:u\d+, s\d+|s\d+, u\d+)\)")

# What torch.export suggests where the code works from some size on: "time = Dim('time', min=3, max=80)".
_SUGGESTED = re.compile(r"^\s*(\w+) = Dim\('\w+'(?:, min=(\d+))?(?:, max=(\d+))?\)\s*$", re.MULTILINE)


@dataclass(frozen=True)
class Traced:
    """A traced model.

    ``layers`` counts the recurrent operators in it; ``unrolled`` is the number of steps of a loop over cells, 0 without
    one; ``dims`` are the bounds of the dynamic dims, those that the code itself sets among them; ``packs`` counts
    packed sequences; ``assumes`` says in clauses what the program takes for granted about its inputs.
    """

    program: ExportedProgram
    layers: int
    unrolled: int
    dims: Mapping[str, DimRange]
    packs: int = 0
    assumes: tuple[str, ...] = ()


@dataclass
class Place:
    """Where a trace is: the paths of the modules that are running, outermost first, and the function that failed.

    ``trims`` counts how often a packed sequence was padded to the length of its longest row.
    """

    modules: list[str] = field(default_factory=list)
    function: str = ""
    trims: int = 0

    def __str__(self) -> str:
        return self.modules[-1] if self.modules else ""


class TraceError(Exception):
    """torch.export or torch.onnx failed; ``told`` says in one clause what in the model was too much for them."""

    def __init__(self, error: Exception, told: str) -> None:
        super().__init__(told)
        self.error = error
        self.told = told


def trace(spec: ModelSpec) -> Traced:
    """Trace ``spec.module``.

    Raises:
        TraceError: it cannot be traced.
    """
    place = Place()
    try:
        return _trace_either_way(spec, place)
    # torch.export wraps what went wrong in exceptions of its own, of many classes.
    except Exception as error:
        raise TraceError(error, explained(error, place)) from error


def at_size(spec: ModelSpec, dim: str, size: int) -> ModelSpec:
    """``spec`` with one of its dynamic dims fixed."""
    inputs = tuple(
        replace(tensor, dims=tuple(size if one == dim else one for one in tensor.dims)) for tensor in spec.inputs
    )

    def sample(seed: int, **sizes: int) -> dict[str, Array]:
        return spec.feeds(seed, **sizes, **{dim: size})

    dims = {name: bounds for name, bounds in spec.dims.items() if name != dim}
    return replace(spec, inputs=inputs, sample=sample, dims=dims)


def _trace_either_way(spec: ModelSpec, place: Place) -> Traced:
    try:
        return _trace_within(spec, dict(spec.dims), place, trim=True)
    except Exception as error:
        if "data-dependent" not in str(error) or not place.trims:
            raise
    # A mask of the whole time axis meets what was padded to the longest row only: in PyTorch itself that works only
    # for batches whose longest row fills the time axis.
    traced = _trace_within(spec, dict(spec.dims), place, trim=False)
    return replace(traced, assumes=(_FILLED,))


def _trace_within(spec: ModelSpec, bounds: dict[str, DimRange], place: Place, trim: bool) -> Traced:
    ways, failure = _ways(), None
    while True:
        mode, packer = Lowering(), TracedPacker(trim)
        try:
            program = _program(replace(spec, dims=bounds), mode, packer, place, ways[0])
        except Exception as error:
            place.function, place.trims = mode.failed, packer.trims
            told, failure = str(error), error
            if not re.search(r"Constraints violated|inconsistent min", told) or "specialized it to be a" in told:
                raise
            narrowed = _narrowed(told, bounds, spec) if ways[0].oblivious else None
            if narrowed is not None:
                bounds = narrowed
            elif len(ways) > 1:
                ways.pop(0)
            else:
                raise
            continue
        conditions = _conditions(program)
        if failure is not None and any(map(_takes_one_path, conditions)):
            raise failure
        assumes = (_FILLED,) if any(map(_FILLS.fullmatch, conditions)) else ()
        return Traced(program, mode.layers, _unrolled(spec.module, mode.cells), bounds, packer.packs, assumes)


def _conditions(program: ExportedProgram) -> list[str]:
    """What the program would check at run time, as PyTorch writes it: ``Ne(Mod(s85, 2), 0)``."""
    told = [str(argument) for node in program.graph.nodes if "_assert" in str(node.target) for argument in node.args]
    return re.findall(r"failed for expression (.+?) on node", "\n".join(told))


def _takes_one_path(condition: str) -> bool:
    """Whether the code branches on a size, of which a program holds one path; on size 1 it is PyTorch that branches."""
    if re.search(r"\bu\d", condition):  # a size that depends on values
        return False
    return ("Mod(" in condition and condition.startswith("Ne(")) or " < " in condition or " <= " in condition


def _unrolled(module: nn.Module, calls: int) -> int:
    """How often a cell was called, if more than once each."""
    cells = sum(isinstance(part, nn.RNNCellBase) for part in module.modules())
    return calls // cells if cells and calls > cells else 0


def _narrowed(told: str, bounds: Mapping[str, DimRange], spec: ModelSpec) -> dict[str, DimRange] | None:
    """The bounds that PyTorch asks for, unless it asks for more than those, or the user set other ones."""
    if "Suggested fixes" not in told:
        return None
    suggestions = _SUGGESTED.findall(told)
    if any(high and int(high) < 2**31 - 1 for *_, high in suggestions):
        return None  # above that the code does something else, which is for the user to know
    suggested = {name: DimRange(int(low or 1)) for name, low, _ in suggestions}
    others = re.search(r"^\s*\w+ = (?!Dim\()", told.split("Suggested fixes")[1], re.MULTILINE)
    if not suggested or others or suggested.keys() & spec.dims.keys() or {**bounds, **suggested} == bounds:
        return None
    return {**bounds, **suggested}


class _Flat(nn.Module):
    """The module with flat inputs and outputs, however nested its own are; nothing else is changed."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self._spec = spec
        self.add_module(ROOT, spec.module)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(flatten_outputs(self._spec.run(tensors)))


def _program(spec: ModelSpec, mode: Lowering, packer: TracedPacker, place: Place, way: _Way) -> ExportedProgram:
    feeds = spec.feeds(0, **example_sizes(spec))
    example = tuple(torch.from_numpy(feeds[tensor.name]) for tensor in spec.inputs)
    # Only said where it is wanted: older versions of PyTorch know neither.
    config: Any = _config  # its patch() is made at run time
    sizes = config.patch(backed_size_oblivious=True) if way.oblivious else contextlib.nullcontext()
    deferred: dict[str, Any] = {"prefer_deferred_runtime_asserts_over_guards": True} if way.deferred else {}
    place.modules.clear()
    seen = watched(spec.module, place.modules.append, lambda _: place.modules.pop())
    with seen, sizes, lowered(mode, packer):
        flat = _Flat(spec).eval()
        return torch.export.export(flat, example, dynamic_shapes=dynamic_shapes(spec), strict=False, **deferred)


def example_sizes(spec: ModelSpec) -> dict[str, int]:
    """The sizes of the dynamic dims that the model is traced at."""
    others = [name for name in spec.dynamic if name not in _EXAMPLE]
    sizes = {
        name: _EXAMPLE.get(name) or _EXAMPLE_OTHERS[others.index(name) % len(_EXAMPLE_OTHERS)] for name in spec.dynamic
    }
    return {name: spec.dims.get(name, DimRange()).clamp(size) for name, size in sizes.items()}


def dynamic_shapes(spec: ModelSpec) -> tuple[Any, ...]:
    """The dynamic axes of each input, nested as torch.export sees the flat module's arguments: one tuple."""
    # No maximum where none was declared: products of very large ones overflow inside torch.export.
    bounds = {
        name: {"min": size.low} | ({"max": size.high} if size.high < 2**31 - 1 else {})
        for name, size in spec.dims.items()
    }
    dims = {name: torch.export.Dim(name, **bounds.get(name, {"min": 1})) for name in spec.dynamic}
    shapes = [
        {axis: dims[dim] for axis, dim in enumerate(tensor.dims) if isinstance(dim, str)} for tensor in spec.inputs
    ]
    return (tuple(shapes),)


def translate(
    program: ExportedProgram, spec: ModelSpec, names: tuple[str, ...], opset: int, table: dict[Any, Callable[..., Any]]
) -> onnx.ModelProto:
    """The program as an ONNX graph, by torch.onnx.

    Raises:
        TraceError: an operator has no translation.
    """
    try:
        exported = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=opset,
            input_names=[tensor.name for tensor in spec.inputs],
            output_names=list(names),
            dynamic_shapes=dynamic_shapes(spec),
            custom_translation_table=table,
            verbose=False,
        )
    except Exception as error:
        raise TraceError(error, explained(error, Place(), program)) from error
    assert exported is not None
    return exported.model_proto


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what the exporter prints and logs: packages that nobody needs here, and whole graphs on a failure."""
    loggers = [
        logging.getLogger(name)
        for name in ("torch", "torch.onnx", "torch.export", "torch.fx", "torch._dynamo", "onnxscript", "onnx_ir")
    ]
    before = [logger.level for logger in loggers]
    silence = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(silence), contextlib.redirect_stderr(silence):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for logger, level in zip(loggers, before, strict=True):
                logger.setLevel(level)
