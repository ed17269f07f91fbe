"""LSTM as onnxruntime's own fused int8 operator, ``com.microsoft.DynamicQuantizeLSTM``.

It is faster than a Scan, but it finds one activation scale for all rows and steps of its input, and one for the states
of all rows in a step: a row's answer depends on its neighbours and on later steps. Hence only where that is allowed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto

from deploykit.quantize._constants import Constants
from deploykit.quantize._graph import MICROSOFT, Builder, attributes
from deploykit.quantize._recurrent import Weighted, masked
from deploykit.quantize._weights import PAIRED, per_output_channel

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

#: What is written in the coverage table.
FORM = "DynamicQuantizeLSTM"
_LENGTHS = 4


@dataclass(frozen=True)
class CoupledLstm(Weighted):
    """An LSTM with constant weights ``w`` ``[directions, 4 * hidden, in]``, ``r`` ``[directions, 4 * hidden, hidden]``.

    ``inputs`` and ``outputs`` are the node's own eight and three, with empty names where there is none; ``attrs`` its
    attributes, all of which the operator knows.
    """

    w: Floats
    r: Floats
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attrs: Mapping[str, Any]

    @property
    def hidden(self) -> int:
        """Hidden size."""
        return int(self.r.shape[2])


def read_coupled(node: onnx.NodeProto, constants: Constants) -> CoupledLstm | str:
    """The LSTM, or the reason why it has to stay in float."""
    attrs = attributes(node)
    if attrs.pop("layout", 0):
        return "layout=1 (batch first)"
    inputs = (*node.input, *[""] * (8 - len(node.input)))
    w, r = constants.value(inputs[1]), constants.value(inputs[2])
    if w is None or r is None:
        return "its weights are not constant"
    for array in (w, r):
        if array.dtype != np.float32:
            return f"its weights are {array.dtype}, not float32"
    # bias and peepholes are handed on as they are, constant or not
    for name in filter(None, (*inputs[1:4], inputs[7])):
        constants.check_finite(name)
    # an empty list says the same as none, and has no type that a node could be made with
    given = {name: value for name, value in attrs.items() if not (isinstance(value, list) and not value)}
    outputs = (*node.output, *[""] * (3 - len(node.output)))
    return CoupledLstm(w, r, inputs, outputs, {**given, "hidden_size": r.shape[2]})


def replace_coupled(build: Builder, found: CoupledLstm) -> None:
    """Add what computes the LSTM's outputs."""
    x, _, _, *others = found.inputs
    y, *finals = found.outputs
    if found.inputs[_LENGTHS]:
        # The one scale is taken from what lies beyond the rows' ends, too.
        lengths = build.op("Cast", [found.inputs[_LENGTHS]], "lengths", to=TensorProto.INT64)
        x = masked(build, x, lengths)
        # Without Y the operator keeps the states where Y_h is to be. It does not clear a row there that has no steps,
        # and takes all rows' scale from what lies there.
        y = y or build.fresh("y")
    weights, scales = [], []
    for matrices, wish in ((found.w, "w"), (found.r, "r")):
        each = [per_output_channel(matrix.T, PAIRED) for matrix in matrices]
        weights.append(build.constant(np.stack([one.values for one in each]), f"{wish}_int8"))
        scale = np.stack([one.scale for one in each])
        scales += [
            build.constant(scale, f"{wish}_scale"),
            build.constant(np.zeros(scale.shape, np.int8), f"{wish}_zero_point"),
        ]
    outputs = [y, *finals]
    while not outputs[-1]:
        outputs.pop()
    build.ops(FORM, [x, *weights, *others, *scales], outputs, MICROSOFT, **found.attrs)
