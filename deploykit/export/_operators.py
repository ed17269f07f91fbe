"""PyTorch operators that stand for the ONNX recurrent operators while a model is traced.

``x`` is [time, batch, input], states are [directions, batch, hidden], the results are those of ONNX's RNN, GRU and LSTM
(ONNX operator specification, layout 0). ``weights`` are PyTorch's own, as the layer holds them: for each direction
weight_ih, weight_hh and, with a bias, bias_ih and bias_hh; the translation puts them into ONNX's order. The operators
have shapes but no arithmetic: they are traced and translated, never run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

#: Our domain for what ONNX has no operator for, in a graph whose constants are not folded yet.
DOMAIN = "ai.deploykit"

_LAYER = (
    "(Tensor x, Tensor[] weights, Tensor? lengths, {states}, int directions, bool bias, str activation)"
    " -> (Tensor, {out})"
)
# Position of each ONNX gate among PyTorch's: GRU r,z,n -> z,r,h; LSTM i,f,g,o -> i,o,f,c.
_GATES = {"rnn": (0,), "gru": (1, 0, 2), "lstm": (0, 3, 1, 2)}


@cache
def register() -> None:
    """Make ``torch.ops.deploykit`` known to PyTorch, once in a process."""
    import torch
    from torch import library

    for kind, states in (("rnn", 1), ("gru", 1), ("lstm", 2)):
        given = ", ".join(f"Tensor? {name}0" for name in "hc"[:states])
        library.define(f"deploykit::{kind}", _LAYER.format(states=given, out=", ".join(["Tensor"] * states)))
        library.register_fake(f"deploykit::{kind}", _fake_layer(states))
    library.define("deploykit::pseudo_inverse", "(Tensor matrix) -> Tensor")
    library.register_fake("deploykit::pseudo_inverse", lambda matrix: matrix.new_empty(matrix.shape[::-1]))
    library.define("deploykit::trim", "(Tensor x, Tensor lengths) -> Tensor")

    def trim(x: Tensor, lengths: Tensor) -> Tensor:
        longest = torch.library.get_ctx().new_dynamic_size(min=0)
        return x.new_empty(longest, *x.shape[1:])

    library.register_fake("deploykit::trim", trim)


def _fake_layer(states: int) -> Callable[..., tuple[Tensor, ...]]:
    def fake(x: Tensor, weights: Sequence[Tensor], lengths: Tensor | None, *rest: Any) -> tuple[Tensor, ...]:
        directions, hidden = rest[-3], weights[1].shape[1]
        time, batch, _ = x.shape
        last = [x.new_empty(directions, batch, hidden) for _ in range(states)]
        return (x.new_empty(time, directions, batch, hidden), *last)

    return fake


def _inverse_schema() -> Any:
    import onnx

    matrix = onnx.defs.OpSchema.FormalParameter
    return onnx.defs.OpSchema(
        "PseudoInverse",
        DOMAIN,
        1,
        inputs=[matrix("matrix", "T")],
        outputs=[matrix("inverse", "T")],
        type_constraints=[("T", ["tensor(float)", "tensor(double)", "tensor(float16)"], "")],
    )


def translations(opset: int) -> dict[Callable[..., Any], Callable[..., Any]]:
    """How the exporter writes each of our operators in ``ai.onnx`` of ``opset``."""
    import onnxscript
    import torch

    # onnxscript has no module for the newest opsets; what is used here has not changed since 22.
    op: Any = getattr(onnxscript, f"opset{min(opset, 23)}")
    inverse: Any = onnxscript.values.Op(onnxscript.values.Opset(DOMAIN, 1), "PseudoInverse", _inverse_schema())

    def ints(*values: int) -> Any:
        return op.Constant(value_ints=list(values))

    def reordered(weight: Any, kind: str) -> Any:
        gates = _GATES[kind]
        if len(gates) == 1:
            return weight
        hidden = int(weight.shape[0]) // len(gates)
        rows = [gate * hidden + row for gate in gates for row in range(hidden)]
        return op.Gather(weight, ints(*rows), axis=0)

    def stacked(parts: Sequence[Any]) -> Any:
        rows = [op.Unsqueeze(part, ints(0)) for part in parts]
        return rows[0] if len(rows) == 1 else op.Concat(*rows, axis=0)

    def layer(kind: str, weights: Sequence[Any], directions: int, bias: bool) -> list[Any]:
        """W, R and B as ONNX has them: [directions, gates * hidden, ...], B both biases of a direction in one row."""
        each = len(weights) // directions
        groups = [[reordered(one, kind) for one in weights[i * each : (i + 1) * each]] for i in range(directions)]
        w, r = (stacked([group[index] for group in groups]) for index in range(2))
        return [w, r, stacked([op.Concat(*group[2:4], axis=0) for group in groups]) if bias else None]

    def direction(directions: int) -> str:
        return "bidirectional" if directions == 2 else "forward"

    def hidden(weights: Sequence[Any]) -> int:
        return int(weights[1].shape[1])

    def rnn(  # type: ignore[no-untyped-def]
        x, weights, lengths=None, h0=None, directions: int = 1, bias: bool = True, activation: str = ""
    ):
        wrb = layer("rnn", weights, directions, bias)
        options = {"direction": direction(directions), "activations": [activation] * directions}
        return op.RNN(x, *wrb, lengths, h0, hidden_size=hidden(weights), **options)

    def gru(  # type: ignore[no-untyped-def]
        x, weights, lengths=None, h0=None, directions: int = 1, bias: bool = True, activation: str = ""
    ):
        wrb = layer("gru", weights, directions, bias)
        # PyTorch applies the reset gate after the recurrent product and its bias: linear_before_reset.
        options = {"direction": direction(directions), "linear_before_reset": 1}
        return op.GRU(x, *wrb, lengths, h0, hidden_size=hidden(weights), **options)

    def lstm(  # type: ignore[no-untyped-def]
        x, weights, lengths=None, h0=None, c0=None, directions: int = 1, bias: bool = True, activation: str = ""
    ):
        wrb = layer("lstm", weights, directions, bias)
        return op.LSTM(x, *wrb, lengths, h0, c0, hidden_size=hidden(weights), direction=direction(directions))

    def pseudo_inverse(matrix):  # type: ignore[no-untyped-def]
        return inverse(matrix)

    def trim(x, lengths):  # type: ignore[no-untyped-def]
        longest = op.Unsqueeze(op.ReduceMax(lengths, keepdims=0), ints(0))
        return op.Slice(x, ints(0), longest, ints(0))

    ops = torch.ops.deploykit
    return {
        ops.rnn.default: rnn,
        ops.gru.default: gru,
        ops.lstm.default: lstm,
        ops.pseudo_inverse.default: pseudo_inverse,
        ops.trim.default: trim,
    }
