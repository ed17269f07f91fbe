"""Proves an exported file before anybody gets it: the checker, the declared interface, and PyTorch's own answers."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from deploykit.artifact import tensor_spec
from deploykit.backends._outputs import named_outputs
from deploykit.coverage import RECURRENT
from deploykit.errors import ExportError, first_line
from deploykit.runtime import sentence, session
from deploykit.types import DimRange, ModelSpec, TensorSpec, unknown_inputs

if TYPE_CHECKING:
    import onnx
    import onnxruntime

    from deploykit.types import Array


@dataclass(frozen=True)
class Bound:
    """|found - expected| <= atol + rtol * |expected|."""

    atol: float
    rtol: float


TOLERANCES = {
    # A recurrence computed in another order: measured errors of trained models are 1e-7 to 1e-5.
    "float32": Bound(1e-4, 1e-4),
    # Ten epsilons of the format, as in bench.
    "float16": Bound(1e-2, 1e-2),
}

# Sizes that every dynamic dim is tried at. Length 1, longer than the export example (7) and than usual pieces (64, 80,
# 128), and between; odd and even. The sizes of different dims differ, so that two that were mixed up cannot pass.
_SIZES = {"batch": (1, 3, 4, 2)}
_OTHERS = ((1, 61, 24, 130), (1, 37, 18, 74), (1, 29, 12, 58), (1, 19, 14, 38))
# A loop that was folded was seen at two lengths only; its code may do at another one what it did at neither.
_LENGTHS = (2, 3, 5, 8, 16, 33, 65, 257)


@dataclass(frozen=True)
class Check:
    """One comparison with PyTorch: the sizes of the dynamic dims, and the largest absolute error over all outputs."""

    sizes: Mapping[str, int]
    max_abs: float


def check_graph(
    model: onnx.ModelProto, spec: ModelSpec, outputs: tuple[TensorSpec, ...], expected_recurrent: int | None
) -> None:
    """The checker with full_check and strict inference, the interface as declared, and no recurrent layer lost.

    ``expected_recurrent`` None is for loops that were folded: what they do was compared, how many they became is open.

    Raises:
        ExportError: the graph breaks the standard, or is not what was declared.
    """
    import onnx

    try:
        onnx.checker.check_model(model, full_check=True)
        onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(
            f"{spec.name} was exported to a graph that ONNX's checker refuses: {first_line(error)}."
        ) from error
    for declared, value in (
        *zip(spec.inputs, model.graph.input, strict=True),
        *zip(outputs, model.graph.output, strict=True),
    ):
        found = tensor_spec(value)
        if found != declared:
            raise ExportError(
                f"{spec.name} was to have {declared}, the exported graph has {found}: report this model to deploykit."
            )
    found_recurrent = sum(node.op_type in RECURRENT for node in model.graph.node)
    if expected_recurrent is not None and found_recurrent != expected_recurrent:
        raise ExportError(
            f"{spec.name} runs {expected_recurrent} recurrent layers, the exported graph has {found_recurrent} "
            "recurrent operators: report this model to deploykit."
        )


def compare(
    files: Mapping[str, bytes],
    spec: ModelSpec,
    outputs: tuple[TensorSpec, ...],
    bound: Bound = TOLERANCES["float32"],
    *,
    looped: str | None = None,
    hint: str = "",
) -> tuple[Check, ...]:
    """Run the model in onnxruntime and the module in PyTorch on fresh inputs at several sets of sizes.

    ``files`` holds the ONNX file and, behind it, the file of its weights if it is one of those that need it. ``looped``
    is the dim of a loop that was folded, which is tried at more lengths; ``hint`` says what may be wrong if it differs.

    Raises:
        ExportError: onnxruntime refuses the file, or an output differs in shape, dtype or beyond the tolerance.
    """
    with tempfile.TemporaryDirectory() as folder:
        try:
            if len(files) > 1:
                for name, content in files.items():
                    (Path(folder) / name).write_bytes(content)
            opened = session(next(iter(files.values())) if len(files) == 1 else Path(folder) / next(iter(files)))
        except Exception as error:
            raise ExportError(
                f"{spec.name} was exported to a file that onnxruntime cannot load: {sentence(error)}."
            ) from error
        comparison = _Comparison(opened, spec, outputs, bound, hint)
        checks = [comparison.at(sizes, seed) for seed, sizes in enumerate(verification_sizes(spec, looped))]
        checks += comparison.with_short_rows()
        if hasattr(spec.module, "plain"):  # a streaming model
            checks += comparison.in_chunks()
    return tuple(checks)


def verification_sizes(spec: ModelSpec, looped: str | None = None) -> list[dict[str, int]]:
    """Sets of sizes for the dynamic dims, within their ranges; one set where there are none."""
    if not spec.dynamic:
        return [{}]
    others = [name for name in spec.dynamic if name not in _SIZES]
    table = {name: _SIZES[name] for name in spec.dynamic if name in _SIZES}
    table |= {name: _OTHERS[index % len(_OTHERS)] for index, name in enumerate(others)}
    found = [{name: choice[index] for name, choice in table.items()} for index in range(4)]
    if looped is not None:
        found += [{**found[-1], looped: length} for length in _LENGTHS]
    return [{name: spec.dims.get(name, DimRange()).clamp(size) for name, size in sizes.items()} for sizes in found]


@dataclass(frozen=True)
class _Comparison:
    """The opened file beside the module."""

    opened: onnxruntime.InferenceSession
    spec: ModelSpec
    outputs: tuple[TensorSpec, ...]
    bound: Bound
    hint: str

    def at(self, sizes: dict[str, int], seed: int) -> Check:
        """On the model's sample, or noise."""
        feeds = self.spec.feeds(1000 + seed, **sizes)
        try:
            expected = reference_outputs(self.spec, feeds)
        # The module is the user's own code: whatever it raises is the answer.
        except Exception as error:
            unknown = unknown_inputs(self.spec)
            way = f"give real values of {', '.join(unknown)} with --example, or " if unknown else ""
            raise ExportError(
                f"{self.spec.name} fails in PyTorch itself at {_told(sizes)}: {first_line(error)}; {way}bound its dims "
                "with --dim."
            ) from error
        return self._against(sizes, feeds, expected)

    def with_short_rows(self) -> list[Check]:
        """Where lengths are an input: a batch of which no row fills the time axis, if PyTorch itself can run it."""
        lengths = {name: values for name, values in self.spec.ranges.items() if isinstance(values.high, str)}
        sizes = verification_sizes(self.spec)[1] if lengths else {}
        if not lengths or any(values.top(sizes) <= values.low for values in lengths.values()):
            return []
        feeds = self.spec.feeds(2000, **sizes)
        feeds |= {name: (feeds[name] - 1).clip(values.low) for name, values in lengths.items()}
        try:
            expected = reference_outputs(self.spec, feeds)
        # Many models can not: a mask made for the whole time axis does not fit what was padded to the longest row.
        except RuntimeError:
            return []
        return [self._against(sizes, feeds, expected)]

    def in_chunks(self) -> list[Check]:
        """A stream in chunks against PyTorch on the whole sequence."""
        import numpy as np

        from deploykit.export._stream import CHUNKS, stream_errors

        errors = stream_errors(self.spec, self.outputs, lambda feeds: run(self.opened, self.outputs, feeds))
        for name, (error, expected) in errors.items():
            if not bool((error <= self.bound.atol + self.bound.rtol * np.abs(expected)).all()):
                raise ExportError(
                    f"{self.spec.name} cannot stream: in chunks its output {name} differs from the whole sequence's by "
                    f"{np.max(error):.3g}; something in it besides the recurrent layers looks at several steps, or has "
                    "a cache of its own: then make all states inputs and outputs of forward, without --streaming."
                )
        worst = max((float(error.max(initial=0.0)) for error, _ in errors.values()), default=0.0)
        return [Check({"chunks": CHUNKS}, worst)] if errors else []

    def _against(self, sizes: dict[str, int], feeds: Mapping[str, Array], expected: list[Array]) -> Check:
        try:
            found = run(self.opened, self.outputs, feeds)
        except Exception as error:
            raise ExportError(
                f"{self.spec.name} was exported, but onnxruntime cannot run it at {_told(sizes)}: {_brief(error)}."
            ) from error
        triples = zip(self.outputs, found, expected, strict=True)
        return Check(sizes, max((self._difference(sizes, *triple) for triple in triples), default=0.0))

    def _difference(self, sizes: dict[str, int], output: TensorSpec, found: Array, expected: Array) -> float:
        import numpy as np

        at = _told(sizes)
        kinds = (output.dtype, "float16" if output.dtype == "float16" else str(expected.dtype))
        if found.shape != expected.shape or str(found.dtype) != kinds[0] or kinds[0] != kinds[1]:
            raise ExportError(
                f"{self.spec.name}: output {output.name} at {at} is {found.dtype}{list(found.shape)} in onnxruntime "
                f"and {expected.dtype}{list(expected.shape)} in PyTorch: {self._advice(output)}."
            )
        declared = [sizes.get(dim) if isinstance(dim, str) else dim for dim in output.dims]
        if len(declared) != found.ndim or any(a not in (None, b) for a, b in zip(declared, found.shape, strict=True)):
            raise ExportError(
                f"{self.spec.name}: output {output.name} is {list(found.shape)} at {at}, and {output} was declared: "
                "its code drops or adds dims by their size (name the dim in squeeze), or bound the sizes with --dim."
            )
        if not np.isfinite(expected).all():
            raise ExportError(
                f"{self.spec.name}: PyTorch itself answers NaN or Inf in {output.name} at {at}: that verifies nothing."
            )
        error = np.abs(found.astype(np.float64) - expected.astype(np.float64))
        # Written so that a NaN in `found` fails too.
        if not bool((error <= self.bound.atol + self.bound.rtol * np.abs(expected)).all()):
            raise ExportError(
                f"{self.spec.name}: output {output.name} at {at} differs from PyTorch by {np.max(error):.3g} "
                f"(allowed: {self.bound.atol:g} + {self.bound.rtol:g} of the value): {self._advice(output)}."
            )
        return float(error.max(initial=0.0))

    def _advice(self, output: TensorSpec) -> str:
        if self.bound == TOLERANCES["float16"] and output.dtype.startswith("float"):
            return "its range or precision is too small for this model, so export it as fp32"
        return f"{self.hint or 'its code may take another path at this size'}; if that is not it, report this model"


def reference_outputs(spec: ModelSpec, feeds: Mapping[str, Array]) -> list[Array]:
    """What PyTorch answers, flattened, for the inputs by name."""
    import torch

    with torch.inference_mode():
        # torch.tensor copies, so that a module that works in place does not change what onnxruntime gets.
        value = spec.run([torch.tensor(feeds[tensor.name]) for tensor in spec.inputs])
    return [tensor.numpy() for tensor in named_outputs(spec, value).values()]


def run(
    opened: onnxruntime.InferenceSession, outputs: tuple[TensorSpec, ...], feeds: Mapping[str, Array]
) -> list[Array]:
    """What onnxruntime answers, in the order of ``outputs``; float inputs are cast to what the file takes."""
    halved = {value.name for value in opened.get_inputs() if value.type == "tensor(float16)"}
    given = {name: array.astype("float16") if name in halved else array for name, array in feeds.items()}
    found: list[Array] = opened.run([output.name for output in outputs], given)
    return found


def _told(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{name}={size}" for name, size in sizes.items()) or "its fixed shape"


def _brief(error: Exception) -> str:
    """onnxruntime's sentence without the path and signature of its own source."""
    return re.sub(r"\S+\.(?:h|cc):\d+ .*?\) ", "", sentence(error))
