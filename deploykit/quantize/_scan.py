"""The step of a GRU, LSTM or RNN: the body of an ONNX Scan, with as few nodes as the mathematics allows.

Every node costs about half a microsecond a step in onnxruntime, so the input's share of the gates is computed before
the Scan, for all steps at once, and biases are added there where that is the same sum.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx
from onnx import TensorProto, helper

from deploykit.quantize._activations import product, to_uint8
from deploykit.quantize._graph import Builder
from deploykit.quantize._weights import LEVELS, QuantizedMatrix

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: How h is quantized. It lies in [-1, 1]: one fixed scale. It does so after the first step: a scanned scale per row. It
#: may start outside and shrink (GRU): a scale per row and step of at least 1/127. It has no bound: one that fits.
#: Or it is not quantized at all.
FIXED, FIRST_STEP, SHRINKING, FREE, FLOAT = "fixed", "first step", "shrinking", "free", "float"
_FLOOR = {SHRINKING: 1.0, FREE: 1e-30}


@dataclass(frozen=True)
class Cell:
    """What a step needs beside its inputs. ``recurrent`` holds one matrix ``[hidden, gates * hidden]`` per product.

    ``inner_bias`` ``[3 * hidden]`` is the part of a GRU's bias that the reset gate multiplies (linear_before_reset).
    """

    kind: str
    hidden: int
    recurrent: tuple[QuantizedMatrix | NDArray[np.float32], ...]
    state_range: str
    inner_bias: NDArray[np.float32] | None = None
    activation: str = "Tanh"

    @property
    def input_sizes(self) -> tuple[int, ...]:
        """Widths of the scanned inputs: the input's share of the gates, split where the step would have to split it."""
        return {"GRU": (2 * self.hidden, self.hidden), "LSTM": (4 * self.hidden,), "RNN": (self.hidden,)}[self.kind]

    @property
    def states(self) -> int:
        """How many states are carried: h, and in an LSTM c."""
        return 2 if self.kind == "LSTM" else 1


def body(build: Builder, cell: Cell, outputs: int) -> onnx.GraphProto:
    """The body: states and input shares ``[batch, …]`` in, states and copies of the first ``outputs`` of them out.

    With FIRST_STEP a last scanned input is the peak ``[batch, 1]`` that |h| does not exceed in that step.
    """
    states = [build.fresh(name) for name in ("h", "c")[: cell.states]]
    shares = [build.fresh("x") for _ in cell.input_sizes]
    peaks = [build.fresh("peak")] if cell.state_range == FIRST_STEP else []
    step = _Step(build, cell, peaks[0] if peaks else "")
    new = {"GRU": _gru, "LSTM": _lstm, "RNN": _rnn}[cell.kind](step, states, shares)
    copies = [build.op("Identity", [state], "y") for state in new[:outputs]]
    widths = [*[cell.hidden] * cell.states, *cell.input_sizes, *[1] * len(peaks)]
    return helper.make_graph(
        build.nodes,
        build.names.fresh(build.prefix),
        [_info(name, size) for name, size in zip(states + shares + peaks, widths, strict=True)],
        [_info(name, cell.hidden) for name in new + copies],
        build.initializers,
    )


def _info(name: str, width: int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, width])


@dataclass(frozen=True)
class _Step:
    build: Builder
    cell: Cell
    peak: str

    def product(self, value: str, index: int, bias: str = "") -> str:
        """The product of a value within the state's range and one of the recurrent matrices."""
        build, matrix = self.build, self.cell.recurrent[index]
        if not isinstance(matrix, QuantizedMatrix):
            result = build.op("MatMul", [value, build.constant(matrix, "r_float")], "r")
            return build.op("Add", [result, bias], "r_biased") if bias else result
        if self.cell.state_range == FIXED:
            return product(build, to_uint8(build, value, 1 / LEVELS), 1 / LEVELS, matrix, "r", bias)
        peak = self.peak or self._peak(value)
        values = to_uint8(build, build.op("Div", [value, peak], "scaled"), 1 / LEVELS)
        result = build.op("Mul", [product(build, values, 1 / LEVELS, matrix, "r"), peak], "r_scaled")
        return build.op("Add", [result, bias], "r_biased") if bias else result

    def _peak(self, value: str) -> str:
        largest = self.build.reduce("ReduceMax", self.build.op("Abs", [value], "abs"), "largest")
        return self.build.op("Max", [largest, self.build.scalar(_FLOOR[self.cell.state_range])], "peak")


def _gru(step: _Step, states: list[str], shares: list[str]) -> list[str]:
    build, cell, (h,), (x_zr, x_n) = step.build, step.cell, states, shares
    hidden = cell.hidden
    linear_before_reset = len(cell.recurrent) == 1
    if linear_before_reset:
        bias = "" if cell.inner_bias is None else build.constant(cell.inner_bias, "bias")
        r_zr, r_n = build.split(step.product(h, 0, bias), [2 * hidden, hidden], ["r_zr", "r_n"])
    else:
        r_zr = step.product(h, 0)
    gates = build.op("Sigmoid", [build.op("Add", [x_zr, r_zr], "zr_sum")], "zr")
    z, r = build.split(gates, [hidden, hidden], ["z", "r"])
    reset = build.op("Mul", [r, r_n if linear_before_reset else h], "reset")
    if not linear_before_reset:
        reset = step.product(reset, 1)
    n = build.op("Tanh", [build.op("Add", [x_n, reset], "n_sum")], "n")
    kept = build.op("Mul", [z, build.op("Sub", [h, n], "gap")], "kept")
    return [build.op("Add", [n, kept], "h_new")]


def _lstm(step: _Step, states: list[str], shares: list[str]) -> list[str]:
    build, hidden, (h, c) = step.build, step.cell.hidden, states
    total = build.op("Add", [shares[0], step.product(h, 0)], "sum")
    iof_sum, g_sum = build.split(total, [3 * hidden, hidden], ["iof_sum", "g_sum"])
    i, o, f = build.split(build.op("Sigmoid", [iof_sum], "iof"), [hidden] * 3, ["i", "o", "f"])
    g = build.op("Tanh", [g_sum], "g")
    c_new = build.op("Add", [build.op("Mul", [f, c], "kept"), build.op("Mul", [i, g], "added")], "c_new")
    return [build.op("Mul", [o, build.op("Tanh", [c_new], "c_tanh")], "h_new"), c_new]


def _rnn(step: _Step, states: list[str], shares: list[str]) -> list[str]:
    total = step.build.op("Add", [shares[0], step.product(states[0], 0)], "sum")
    return [step.build.op(step.cell.activation, [total], "h_new")]
