"""What went wrong in a trace, in words of the model: the module, the operator, and the way round where there is one."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from deploykit.errors import first_line

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from deploykit.export._trace import Place

_COMPLEX = re.compile(r"complex|aten[.:]+_?fft|stft|view_as_real|polar")


def explained(error: Exception, place: Place, program: ExportedProgram | None = None) -> str:
    """One clause for what torch.export or torch.onnx raised; ``program`` is the traced one, if tracing succeeded."""
    told, whole = root(error), _whole(error)
    if "inconsistent min" in told:
        return "its code branches on a size in a way that PyTorch cannot follow: compute with sizes without an `if`"
    if fixed := re.search(r"Constraints violated \(([^)]*)\)", told):
        return _fixed(fixed[1], whole)
    missing = re.search(r"No ONNX function found for <OpOverload\(op='([^']+)'", whole)
    operator = missing[1] if missing else place.function
    where = _path_of(operator, program) if missing and program is not None else str(place)
    at = f"its module {where}" if where else "its forward"
    if _COMPLEX.search(operator) or "complex" in told.lower():
        return (
            f"{at} computes with complex numbers ({_short(operator)}), which ONNX has no operators for: compute the "
            "real and the imaginary part in tensors of their own, or do it before the model"
        )
    if missing:
        return f"{at} calls {_short(operator)}, which ONNX has no operator for: write it with simpler operators"
    if "data-dependent" in whole or "unbacked" in whole or "Could not guard" in whole:
        return (
            f"{at} branches on a tensor's values, or takes a size from them ({_short(operator)}): use torch.where or a "
            "mask, so that sizes depend on sizes alone"
        )
    return f"{at} stops the trace ({_short(operator)}): {told}" if operator and where else told


def specialized(error: Exception) -> str | None:
    """The one dim that the code runs a loop over, or uses as a plain number; None where that is not what went wrong."""
    told = root(error)
    fixed = re.search(r"Constraints violated \((\w+)\)", told)
    return fixed[1] if fixed and "specialized it to be a constant" in _whole(error) else None


def root(error: BaseException) -> str:
    """The first line of the innermost cause."""
    while error.__cause__ is not None:
        error = error.__cause__
    return first_line(error)


def _fixed(dims: str, whole: str) -> str:
    guards = re.findall(r"generated guard (.+)", whole)
    first = dims.split(",", maxsplit=1)[0].strip()
    if guards:
        guard = re.sub(r"L\['[^']*'\](?:\[\d+\])?\.size\(\)\[\d+\]", first, guards[0].strip().rstrip("."))
        if "%" in guard:
            return (
                f"its code takes one path for sizes of {first} with {guard} and another for the rest, and a file holds "
                "one path: compute what to pad or cut without an `if` (padding by 0 is allowed)"
            )
        return (
            f"its code does not allow every size of {dims}: PyTorch asks for {guard}; "
            f"bound the sizes with --dim {first}=LOW:HIGH"
        )
    return (
        f"its code works only at the traced size of {dims} (a Python loop over it, or a size written into a "
        "reshape); write that dim as a number in --input, or take the size from the tensor's shape"
    )


def _path_of(operator: str, program: ExportedProgram) -> str:
    """The module in which the program calls the operator, or what it is a part of."""
    for form in (program, program.run_decompositions()):
        for node in form.graph.nodes:
            if _short(operator) in str(node.target):
                stack = list(node.meta.get("nn_module_stack", {}).values())
                return stack[-1][0].split(".", 1)[-1] if stack and "." in stack[-1][0] else ""
    return ""


def _short(operator: str) -> str:
    parts = [part for part in re.split(r"::|\.", operator) if part not in ("", "aten", "prims", "torch", "ops")]
    return parts[0].lstrip("_") if parts else "an operator"


def _whole(error: BaseException) -> str:
    return str(error) if error.__cause__ is None else f"{error}\n{_whole(error.__cause__)}"
