"""Reads GRU, LSTM and RNN nodes and replaces them by an int8 input projection and a Scan, in int8 or in float."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import onnx
from onnx import TensorProto

from deploykit.quantize._activations import QuantizedRows, row_product
from deploykit.quantize._constants import Constants
from deploykit.quantize._graph import Builder, attributes
from deploykit.quantize._scan import FIRST_STEP, FIXED, FLOAT, FREE, SHRINKING, Cell, body
from deploykit.quantize._weights import QuantizedMatrix, WeightForm, per_output_channel

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

GATES = {"GRU": 3, "LSTM": 4, "RNN": 1}
_ACTIVATIONS = {"GRU": ("Sigmoid", "Tanh"), "LSTM": ("Sigmoid", "Tanh", "Tanh")}


class Weighted:
    """What a recurrent node's matrices amount to: ``w`` ``[directions, gates * hidden, in]``, and ``r`` likewise."""

    w: Floats
    r: Floats

    @property
    def weight_bytes(self) -> int:
        """Size in bytes of the float matrices."""
        return self.w.nbytes + self.r.nbytes

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one row and time step."""
        return self.w.size + self.r.size


@dataclass(frozen=True)
class Layer(Weighted):
    """A recurrent node with constant weights. ``w`` ``[directions, gates * hidden, in]``, ``r`` and ``b`` likewise.

    Names are empty where an optional input is absent or an output is not read.
    """

    kind: str
    name: str
    hidden: int
    directions: tuple[str, ...]
    activations: tuple[str, ...]
    linear_before_reset: bool
    w: Floats
    r: Floats
    b: Floats
    x: str
    sequence_lens: str
    initial: tuple[str, ...]
    bounded: bool
    y: str
    finals: tuple[str, ...]


def read(node: onnx.NodeProto, constants: Constants, used: set[str]) -> Layer | str:
    """The layer, or the reason why it has to stay in float."""
    attrs = attributes(node)
    inputs = [*node.input, *[""] * (8 - len(node.input))]
    outputs = [name if name in used else "" for name in [*node.output, *[""] * (3 - len(node.output))]]
    directions = {"bidirectional": ("forward", "reverse")}.get(
        direction := attrs.get("direction", b"forward").decode(), (direction,)
    )
    activations = _activations(node.op_type, attrs, len(directions))
    if isinstance(activations, str):
        return activations
    reason = _unsupported(node.op_type, attrs, inputs)
    if reason:
        return reason
    w, r = constants.value(inputs[1]), constants.value(inputs[2])
    if w is None or r is None:
        return "its weights are not constant"
    hidden = r.shape[2]
    b = constants.value(inputs[3]) if inputs[3] else np.zeros((len(directions), 2 * w.shape[1]), np.float32)
    if b is None:
        return "its bias is not constant"
    if any(array.dtype != np.float32 for array in (w, r, b)):
        return f"its weights are {w.dtype}, not float32"
    for name in filter(None, inputs[1:4]):
        constants.check_finite(name)
    states = 2 if node.op_type == "LSTM" else 1
    return Layer(
        kind=node.op_type,
        name=node.name or next(filter(None, node.output), "") or node.op_type,
        hidden=hidden,
        directions=directions,
        activations=activations,
        linear_before_reset=bool(attrs.get("linear_before_reset", 0)),
        w=w,
        r=r,
        b=b,
        x=inputs[0],
        sequence_lens=inputs[4],
        initial=tuple(inputs[5 : 5 + states]),
        bounded=not inputs[5] or constants.bound(inputs[5]) <= 1,
        y=outputs[0],
        finals=tuple(outputs[1 : 1 + states]),
    )


def _activations(kind: str, attrs: dict[str, Any], directions: int) -> tuple[str, ...] | str:
    given = tuple(name.decode().capitalize() for name in attrs.get("activations", ()))
    if kind == "RNN":
        names = given or ("Tanh",) * directions
        known = set(names) <= {"Tanh", "Relu"} and len(names) == directions
        return names if known else f"activation {', '.join(dict.fromkeys(names))}"
    if given and given != _ACTIVATIONS[kind] * directions:
        return f"activations {', '.join(given)} are not the default ones"
    return ("Tanh",) * directions


def _unsupported(kind: str, attrs: dict[str, Any], inputs: list[str]) -> str:
    if attrs.get("clip"):
        return "clip is set"
    if attrs.get("layout"):
        return "layout=1 (batch first)"
    if attrs.get("input_forget"):
        return "input and forget gate are coupled"
    if kind == "LSTM" and inputs[7]:
        return "it has peephole weights"
    return ""


def form(layer: Layer) -> str:
    """What a reader is told of the operators that do the work now."""
    products = "two int8 products" if layer.kind == "GRU" and not layer.linear_before_reset else "one int8 product"
    each = " for each direction" if len(layer.directions) == 2 else ""
    return f"int8 input projection, Scan with {products} a step{each}"


class Products(Protocol):
    """How a layer's products are computed. ``sized`` is a value ``[time, batch, …]``.

    ``trims`` says that steps which are padding in every row may be left out: the shapes then depend on the lengths.
    """

    @property
    def sized(self) -> str: ...

    @property
    def trims(self) -> bool: ...

    def project(self, build: Builder, matrix: Floats, bias: Floats) -> str:
        """The product of the layer's whole input with a matrix ``[in, out]``, plus the bias ``[out]``."""

    def recurrent(self, matrix: Floats) -> QuantizedMatrix | None:
        """The form of a matrix that a step multiplies the state with, None where it stays in float."""


@dataclass(frozen=True)
class DynamicProducts:
    """Int8 in both, with scales of the run time; ``rows`` is the layer's quantized input ``[time, batch, in]``."""

    rows: QuantizedRows
    weights: WeightForm

    @property
    def sized(self) -> str:
        return self.rows.scale

    @property
    def trims(self) -> bool:
        return True

    def project(self, build: Builder, matrix: Floats, bias: Floats) -> str:
        result = row_product(build, self.rows, per_output_channel(matrix, self.weights), "w")
        return build.op("Add", [result, build.constant(bias, "bias")], "x")

    def recurrent(self, matrix: Floats) -> QuantizedMatrix | None:
        return per_output_channel(matrix, self.weights)


def replace(build: Builder, layer: Layer, products: Products) -> None:
    """Add what computes the layer's outputs."""
    lengths = build.op("Cast", [layer.sequence_lens], "lengths", to=TensorProto.INT64) if layer.sequence_lens else ""
    longest = _longest(build, lengths) if lengths and products.trims else ""
    results = [_direction(build, layer, index, products, lengths, longest) for index in range(len(layer.directions))]
    if layer.y:
        _join(build, [build.op("Unsqueeze", [one.y, build.ints(1)], "y") for one in results], layer.y, axis=1)
    for state, name in enumerate(layer.finals):
        if name:
            _join(build, [one.finals[state] for one in results], name, axis=0)


def _join(build: Builder, parts: list[str], name: str, axis: int) -> None:
    if len(parts) == 1:
        build.rename(parts[0], name)
    else:
        build.ops("Concat", parts, [name], axis=axis)


@dataclass(frozen=True)
class _Result:
    """``y`` ``[time, batch, hidden]`` and final states ``[1, batch, hidden]``."""

    y: str
    finals: tuple[str, ...]


def _longest(build: Builder, lengths: str) -> str:
    """``[1]``: the steps that the longest row has, and one where all are empty: a Scan takes no fewer."""
    return build.op("Max", [build.op("ReduceMax", [lengths], "most", keepdims=1), build.ints(1)], "longest")


def _direction(build: Builder, layer: Layer, index: int, products: Products, lengths: str, longest: str) -> _Result:
    """``lengths`` are the rows' own, empty where all steps are valid; of the steps ``longest`` are run, if given."""
    cell, projections, biases = _cell(layer, index, products)
    scanned = [products.project(build, matrix, bias) for matrix, bias in zip(projections, biases, strict=True)]
    if longest:  # steps that are padding in every row are not run
        scanned = [build.op("Slice", [share, build.ints(0), longest, build.ints(0)], "run") for share in scanned]
    backward = layer.directions[index] == "reverse"
    turn = int(backward and not lengths)
    if backward and lengths:
        scanned = [_reverse(build, share, lengths) for share in scanned]
    states = [_initial(build, layer, state, index, products.sized) for state in range(cell.states)]
    if cell.state_range != FLOAT:
        # Float arithmetic carries a NaN along by itself, rounding to 8 bits turns it into a number.
        states = [
            _unsound_whole(build, value) if given else value for value, given in zip(states, layer.initial, strict=True)
        ]
    if cell.state_range != FLOAT and layer.kind == "RNN":
        scanned = [_mark_unsound(build, scanned[0], states[0], turn)]
    if cell.state_range == FIRST_STEP:
        sized = products.sized
        if longest:
            sized = build.op("Slice", [sized, build.ints(0), longest, build.ints(0)], "sized")
        scanned.append(_peaks(build, states[0], sized, turn))
    with_y = bool(layer.y or lengths)
    copies = cell.states if lengths and layer.finals[-1] else int(with_y)
    names = [build.fresh(f"{kind}_final") for kind in "hc"[: cell.states]]
    sequences = [build.fresh(f"{kind}_steps") for kind in "hc"[:copies]]
    attrs: dict[str, Any] = {"scan_input_directions": [turn] * len(scanned), "scan_output_directions": [turn] * copies}
    build.ops(
        "Scan",
        [*states, *scanned],
        [*names, *sequences],
        body=body(build.inner(), cell, copies),
        num_scan_inputs=len(scanned),
        **{name: turns for name, turns in attrs.items() if turns},
    )
    if not lengths:
        finals = [build.op("Unsqueeze", [name, build.ints(0)], "final") for name in names]
        return _Result(sequences[0] if sequences else "", tuple(finals))
    finals = [_last_valid(build, steps, lengths, layer.hidden) for steps in sequences]
    y = _reverse(build, sequences[0], lengths) if backward else sequences[0]
    y = masked(build, y, lengths)
    return _Result(_filled(build, y, products.sized, longest) if longest else y, tuple(finals))


def _cell(layer: Layer, index: int, products: Products) -> tuple[Cell, list[Floats], list[Floats]]:
    """The step of one direction, with the matrices and biases of the input's shares of the gates."""
    hidden, kind = layer.hidden, layer.kind
    w, r = layer.w[index].T, layer.r[index].T
    bias_w, bias_r = np.split(layer.b[index], 2)
    inner_bias = None
    if kind == "GRU" and layer.linear_before_reset:
        inner_bias = np.where(np.arange(3 * hidden) < 2 * hidden, np.float32(0), bias_r)
        bias_r = bias_r - inner_bias
        inner_bias = inner_bias if inner_bias.any() else None
    cuts = [2 * hidden] if kind == "GRU" else []
    matrices = [r] if kind != "GRU" or layer.linear_before_reset else np.split(r, cuts, axis=1)
    quantized = [products.recurrent(matrix) for matrix in matrices]
    cell = Cell(
        kind=kind,
        hidden=hidden,
        recurrent=tuple(form or matrix for form, matrix in zip(quantized, matrices, strict=True)),
        state_range=_state_range(layer, index) if all(quantized) else FLOAT,
        inner_bias=inner_bias,
        activation=layer.activations[index],
    )
    return cell, np.split(w, cuts, axis=1), np.split(bias_w + bias_r, cuts)


def _state_range(layer: Layer, index: int) -> str:
    if layer.activations[index] == "Relu":
        return FREE
    if layer.bounded:
        return FIXED
    # A GRU blends its old state into the new one; tanh and o * tanh(c) forget how large it was.
    return SHRINKING if layer.kind == "GRU" else FIRST_STEP


def _initial(build: Builder, layer: Layer, state: int, index: int, sized: str) -> str:
    """The state before the first step, ``[batch, hidden]``."""
    name = layer.initial[state]
    if not name:
        batch = build.op("Slice", [build.op("Shape", [sized], "shape"), build.ints(1), build.ints(2)], "batch")
        shape = build.op("Concat", [batch, build.ints(layer.hidden)], "initial_shape", axis=0)
        return build.op("ConstantOfShape", [shape], "initial")
    if len(layer.directions) > 1:
        return build.op("Gather", [name, build.constant(np.array(index, np.int64), "direction")], "initial", axis=0)
    return build.op("Squeeze", [name, build.ints(0)], "initial")


def _unsound_whole(build: Builder, value: str) -> str:
    """``[batch, hidden]``, with all of a row NaN where it holds a NaN or Inf."""
    unsound = build.reduce("ReduceSum", build.op("Mul", [value, build.scalar(0.0)], "zeros"), "unsound")
    return build.op("Add", [value, unsound], "initial")


def _peaks(build: Builder, h: str, sized: str, turn: int) -> str:
    """``[time, batch, 1]``: the largest |h| or 1 in the step that is taken first, 1 in the others."""
    largest = build.reduce("ReduceMax", build.op("Abs", [h], "abs"), "largest")
    first = build.op("Unsqueeze", [build.op("Max", [largest, build.scalar(1.0)], "peak"), build.ints(0)], "first")
    shape = build.op("Shape", [sized], "shape")
    fewer = build.op("Sub", [shape, build.ints(1, 0, 0)], "fewer")
    ones = build.op("Expand", [build.scalar(1.0), fewer], "ones")
    return build.op("Concat", [ones, first] if turn else [first, ones], "peaks", axis=0)


def _mark_unsound(build: Builder, share: str, h: str, turn: int) -> str:
    """An RNN's input share, NaN from the first step on that had a NaN: its state, once rounded, would forget it."""
    zero = build.constant(np.array(0, np.int64), "int")
    marks, start = (
        build.op(
            "Mul", [build.op("Slice", [value, *map(build.ints, (0, 1, axis))], "first"), build.scalar(0.0)], "marks"
        )
        for value, axis in ((share, 2), (h, 1))
    )
    ever = build.op("Add", [build.op("CumSum", [marks, zero], "ever", reverse=turn), start], "unsound")
    return build.op("Add", [share, ever], "x")


def _reverse(build: Builder, value: str, lengths: str) -> str:
    return build.op("ReverseSequence", [value, lengths], "turned", time_axis=0, batch_axis=1)


def _filled(build: Builder, y: str, sized: str, longest: str) -> str:
    """``y`` with zeros for the steps that were not run."""
    steps = build.op("Slice", [build.op("Shape", [sized], "shape"), build.ints(0), build.ints(1)], "steps")
    missing = build.op("Sub", [steps, longest], "missing")
    pads = build.op("Concat", [build.ints(0, 0, 0), missing, build.ints(0, 0)], "pads", axis=0)
    return build.op("Pad", [y, pads], "filled")


def masked(build: Builder, y: str, lengths: str) -> str:
    """``y`` with zeros in the steps that lie beyond a row's length."""
    zero, one = (build.constant(np.array(value, np.int64), "int") for value in (0, 1))
    steps = build.op("Gather", [build.op("Shape", [y], "shape"), zero], "steps", axis=0)
    count = build.op("Unsqueeze", [build.op("Range", [zero, steps, one], "range"), build.ints(1)], "count")
    valid = build.op("Unsqueeze", [build.op("Less", [count, lengths], "valid"), build.ints(2)], "mask")
    return build.op("Where", [valid, y, build.scalar(0.0)], "masked")


def _last_valid(build: Builder, steps: str, lengths: str, hidden: int) -> str:
    """The row of each batch entry's last valid step, ``[1, batch, hidden]``; zeros (as in onnxruntime) without any."""
    last = build.op("Unsqueeze", [build.op("Sub", [lengths, build.ints(1)], "last"), build.ints(0, 2)], "index")
    everywhere = build.op("Expand", [last, build.ints(1, 1, hidden)], "indices")
    final = build.op("GatherElements", [steps, everywhere], "final", axis=0)
    present = build.op("GreaterOrEqual", [last, build.constant(np.array(0, np.int64), "int")], "present")
    return build.op("Where", [present, final, build.scalar(0.0)], "final")
