"""Whether int8 arithmetic pays for a node: measured, not guessed (docs/quantization.md, "Is int8 faster?").

onnxruntime takes half a microsecond for each node of a Scan's body, whatever its size, and its float operators for
recurrent layers are one node for the whole sequence. So a small layer is faster in float, and there is a size from
which on int8 wins. The sizes below were measured on x86-64 CPUs with AVX2 and with AVX512-VNNI, which agree, at batch
size 1, 100 time steps, one thread.
"""

from __future__ import annotations

from deploykit.quantize import Preference
from deploykit.quantize._coupled import CoupledLstm
from deploykit.quantize._linear import Linear
from deploykit.quantize._recurrent import Layer

#: Hidden size from which on an int8 GRU, LSTM or RNN is faster, over a sequence and inside a step of another loop, and
#: onnxruntime's own int8 LSTM.
HIDDEN, HIDDEN_IN_A_STEP, HIDDEN_COUPLED = 256, 512, 64
#: Weights from which on an int8 MatMul or Gemm is faster, over a sequence and inside a step; and fewest outputs, since
#: quantizing the inputs costs as much as the product with a narrow matrix.
WEIGHTS, WEIGHTS_IN_A_STEP, OUTPUTS = 256 * 256, 512 * 512, 128

#: Bytes that the graph around the int8 products takes in the file: for each direction of a layer, for any other node.
DIRECTION_GRAPH, NODE_GRAPH = 6000, 2000


def why_storage_only(found: Layer | CoupledLstm | Linear, prefer: Preference, in_a_step: bool) -> str | None:
    """Why the node's arithmetic should stay in float with its weights stored as int8; None where int8 pays."""
    if prefer == "int8":
        return None
    return _not_smaller(found) if prefer == "size" else _not_faster(found, in_a_step)


def _not_smaller(found: Layer | CoupledLstm | Linear) -> str | None:
    size = found.matrix.nbytes if isinstance(found, Linear) else found.weight_bytes
    graph = DIRECTION_GRAPH * len(found.directions) if isinstance(found, Layer) else NODE_GRAPH
    # Stored only, the file is a quarter too, but memory holds float weights.
    return None if size * 3 // 4 > graph else "the graph around its int8 products is larger than what they save"


def _not_faster(found: Layer | CoupledLstm | Linear, in_a_step: bool) -> str | None:
    where = " inside a step" if in_a_step else ""
    if isinstance(found, Linear):
        least = WEIGHTS_IN_A_STEP if in_a_step else WEIGHTS
        if found.matrix.size < least:
            return f"float is faster below {least} weights{where}"
        return f"float is faster below {OUTPUTS} outputs" if found.matrix.shape[1] < OUTPUTS else None
    if isinstance(found, CoupledLstm):
        least, where = HIDDEN_COUPLED, ""
    else:
        least = HIDDEN_IN_A_STEP if in_a_step else HIDDEN
    return None if found.hidden >= least else f"float is faster below {least} units{where}"
