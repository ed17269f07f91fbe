"""PyTorch operators that stand for the ONNX recurrent operators while a model is traced.

Each takes and returns what ONNX's RNN, GRU and LSTM do (ONNX operator specification, layout 0): x [time, batch, input],
W [directions, gates*hidden, input], R [directions, gates*hidden, hidden], B [directions, 2*gates*hidden], states
[directions, batch, hidden]. They have shapes but no arithmetic: they are traced and translated, never run.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

_SCHEMA = (
    "(Tensor x, Tensor w, Tensor r, Tensor? b, {states}, int hidden_size, str direction, str activation) -> ({out})"
)


@cache
def register() -> None:
    """Make ``torch.ops.deploykit.{rnn,gru,lstm}`` known to PyTorch, once in a process."""
    from torch import library

    one, two = "Tensor? h0", "Tensor? h0, Tensor? c0"
    library.define("deploykit::rnn", _SCHEMA.format(states=one, out="Tensor, Tensor"))
    library.define("deploykit::gru", _SCHEMA.format(states=one, out="Tensor, Tensor"))
    library.define("deploykit::lstm", _SCHEMA.format(states=two, out="Tensor, Tensor, Tensor"))

    def fake(x: Tensor, w: Tensor, r: Tensor, b: Tensor | None, h0: Tensor | None, *rest: Any) -> tuple[Tensor, ...]:
        hidden_size, direction, _ = rest[-3:]
        time, batch, _ = x.shape
        directions = 2 if direction == "bidirectional" else 1
        states = 2 if len(rest) == 4 else 1
        y = x.new_empty(time, directions, batch, hidden_size)
        return (y, *(x.new_empty(directions, batch, hidden_size) for _ in range(states)))

    for name in ("rnn", "gru", "lstm"):
        library.register_fake(f"deploykit::{name}", fake)


def translations(opset: int) -> dict[Callable[..., Any], Callable[..., Any]]:
    """How the exporter writes each of our operators in ``ai.onnx`` of ``opset``."""
    import onnxscript
    import torch

    op: Any = getattr(onnxscript, f"opset{opset}")

    def rnn(  # type: ignore[no-untyped-def]
        x, w, r, b=None, h0=None, hidden_size: int = 0, direction: str = "", activation: str = ""
    ):
        activations = [activation] * (2 if direction == "bidirectional" else 1)
        return op.RNN(x, w, r, b, None, h0, hidden_size=hidden_size, direction=direction, activations=activations)

    def gru(  # type: ignore[no-untyped-def]
        x, w, r, b=None, h0=None, hidden_size: int = 0, direction: str = "", activation: str = ""
    ):
        # PyTorch applies the reset gate after the recurrent product and its bias: linear_before_reset.
        return op.GRU(x, w, r, b, None, h0, hidden_size=hidden_size, direction=direction, linear_before_reset=1)

    def lstm(  # type: ignore[no-untyped-def]
        x, w, r, b=None, h0=None, c0=None, hidden_size: int = 0, direction: str = "", activation: str = ""
    ):
        return op.LSTM(x, w, r, b, None, h0, c0, hidden_size=hidden_size, direction=direction)

    ops = torch.ops.deploykit
    return {ops.rnn.default: rnn, ops.gru.default: gru, ops.lstm.default: lstm}
