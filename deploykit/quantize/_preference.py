"""Whether int8 arithmetic pays for a node: measured, not guessed (docs/quantization.md, "Is int8 faster?").

onnxruntime takes half a microsecond for each node of a Scan's body, whatever its size, and its float operators for
recurrent layers are one node for the whole sequence. So a small layer is faster in float, and there is a size from
which on int8 wins. The sizes below were measured on x86-64 CPUs with AVX2 and with AVX512-VNNI, which agree, at batch
size 1, 100 time steps, one thread.
"""

from __future__ import annotations

from deploykit.quantize import Preference
from deploykit.quantize._coupled import CoupledLstm
from deploykit.quantize._fused import FusedLayer
from deploykit.quantize._linear import Linear
from deploykit.quantize._recurrent import Layer

#: Hidden size from which on an int8 GRU, LSTM or RNN is faster over a sequence: where its state is known to lie in
#: [-1, 1], where it may begin outside, and for the ReLU RNN, whose state has no bound; each bound less costs nodes.
HIDDEN, HIDDEN_GIVEN_STATE, HIDDEN_RELU = 256, 320, 384
#: The same one step at a time, inside another loop; and for onnxruntime's own int8 LSTM.
HIDDEN_IN_A_STEP, HIDDEN_COUPLED = {"GRU": 512, "LSTM": 512, "RNN": 1024}, 64
#: The same for the fused operators, over a sequence or in a step: they are no slower than float at any size.
HIDDEN_FUSED = {"GRU": 1, "LSTM": 1, "RNN": 1}
#: Weights from which on an int8 MatMul or Gemm is faster, over a sequence and inside a step; and least width of either
#: side, since quantizing many inputs, and scaling many outputs, costs as much as the product with a narrow matrix.
WEIGHTS, WEIGHTS_IN_A_STEP, NARROW = 256 * 256, 512 * 512, 128

#: Bytes that the graph around the int8 products takes in the file: for each direction of a layer, for any other node.
DIRECTION_GRAPH, NODE_GRAPH = 6000, 2000

_Found = Layer | FusedLayer | CoupledLstm | Linear


def why_storage_only(
    found: Layer | FusedLayer | CoupledLstm | Linear, prefer: Preference, in_a_step: bool
) -> str | None:
    """Why the node's arithmetic should stay in float with its weights stored as int8; None where int8 pays."""
    if prefer == "int8":
        return None
    return _not_smaller(found) if prefer == "size" else _not_faster(found, in_a_step)


def _not_smaller(found: _Found) -> str | None:
    graph = DIRECTION_GRAPH * len(found.directions) if isinstance(found, Layer) else NODE_GRAPH
    # Stored only, the file is a quarter too, but memory holds float weights.
    return (
        None
        if found.weight_bytes * 3 // 4 > graph
        else "the graph around its int8 products is larger than what they save"
    )


def _not_faster(found: _Found, in_a_step: bool) -> str | None:
    where = " inside a step" if in_a_step else ""
    if isinstance(found, Linear):
        least = WEIGHTS_IN_A_STEP if in_a_step else WEIGHTS
        if found.matrix.size < least:
            return f"float is faster below {least} weights{where}"
        return f"float is faster below {NARROW} inputs or outputs" if min(found.matrix.shape) < NARROW else None
    if isinstance(found, CoupledLstm):
        least, where = HIDDEN_COUPLED, ""
    elif isinstance(found, FusedLayer):
        least, where = HIDDEN_FUSED[found.layer.kind], ""
    else:
        least = HIDDEN_IN_A_STEP[found.kind] if in_a_step else _over_a_sequence(found)
    return None if found.hidden >= least else f"float is faster below {least} units{where}"


def _over_a_sequence(found: Layer) -> int:
    if "Relu" in found.activations:
        return HIDDEN_RELU
    return HIDDEN if found.bounded else HIDDEN_GIVEN_STATE
