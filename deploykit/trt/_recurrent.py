"""What TensorRT's parser makes of RNN, GRU and LSTM: a loop over time, with rules that ONNX does not have.

Its importer starts a GRU and an RNN from a float32 zero where no initial state is given, masks steps beyond a row's
length with a float32 zero, computes 1 - z of a bfloat16 GRU from a float32 1, and counts only the outputs that have
names. In a network whose types are those of the file none of these can be built.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import onnx

from deploykit.quantize._graph import attributes
from deploykit.trt.limits import HALF_GRU, HALF_LSTM, told

if TYPE_CHECKING:
    from deploykit.trt._site import Problem, Site
    from deploykit.trt.library import Version

STATES = {"RNN": 1, "GRU": 1, "LSTM": 2}
_INT32 = 6


def problems(site: Site, node: onnx.NodeProto) -> Iterator[Problem]:
    """What is wrong with a recurrent node."""
    yield from _activations(site, node)
    yield from _outputs(site, node)
    half = site.half(node.input[0])
    lengths = node.input[4] if len(node.input) > 4 else ""
    if lengths and site.types.get(lengths, _INT32) != _INT32:
        yield site.problem(node, f"has {lengths}, which is not int32: cast it before")
    if not half:
        return
    reason = no_form(node.op_type, half, site.table.version)
    if reason:
        yield site.problem(node, f"{reason}: build it with {_way(node.op_type, half)}")
        return
    if lengths:
        text = f"is {half} and has lengths per row, which TensorRT masks in float32: give the float32 file"
        yield site.problem(node, text)
    given = [*node.input[5:7], "", ""][: STATES[node.op_type]]
    if not all(given) and not (node.op_type == "LSTM" and site.table.version >= HALF_LSTM):
        yield site.problem(
            node, f"is {half} and has no initial state, and TensorRT starts it in float32: give it zeros"
        )


def no_form(kind: str, half: str, version: Version) -> str:
    """Why a version has no form of an operator in 16 bits; nothing where it has."""
    if kind == "LSTM" and version < HALF_LSTM:
        return f"is {half}, and {told(version)} has no LSTM in 16 bits, which came with TensorRT 10.14"
    if kind == "GRU" and (half == "bfloat16" or version < HALF_GRU):
        return f"is {half}, and {told(version)} computes a part of such a GRU in float32"
    return ""


def _way(kind: str, half: str) -> str:
    if kind == "LSTM":
        return "--precision fp32, or with TensorRT 10.14 or later"
    return "--precision fp32" + (" or fp16" if half == "bfloat16" else "")


def unnamed(node: onnx.NodeProto) -> list[int]:
    """Outputs without a name before one that has one: the parser would give that one the place of the first."""
    named = [index for index, name in enumerate(node.output) if name]
    return [index for index in range(named[-1] if named else 0) if not node.output[index]]


def _outputs(site: Site, node: onnx.NodeProto) -> Iterator[Problem]:
    for index in unnamed(node):
        what = ("Y", "Y_h", "Y_c")[index]
        yield site.problem(node, f"leaves its output {what} without a name, and TensorRT mixes up the others: name it")


def _activations(site: Site, node: onnx.NodeProto) -> Iterator[Problem]:
    given = attributes(node)
    names = [name.decode() for name in given.get("activations", ())]
    for name in dict.fromkeys(names):
        if name not in site.table.activations:
            known = ", ".join(sorted(site.table.activations))
            yield site.problem(node, f"has the activation {name}, and TensorRT has {known}: use one of these")
    if given.get("direction") != b"bidirectional":
        return
    for name in ("activations", "activation_alpha", "activation_beta"):
        values = list(given.get(name, ()))
        if values[: len(values) // 2] != values[len(values) // 2 :]:
            text = f"has other {name} in its two directions, and TensorRT has one for both: split it into two layers"
            yield site.problem(node, text)
