"""Our own lowering of nn.RNN, nn.LSTM and nn.GRU: each layer becomes exactly one ONNX operator.

torch.onnx unrolls nn.RNN, freezes the time axis on a second export in one process, and writes files for LSTMs with
projections that no runtime loads. So the layers' ``forward`` is exchanged, during the trace, for one that calls
the operators of ``_operators`` with weights that already lie in ONNX's order.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from deploykit.errors import ExportError
from deploykit.export import _operators

if TYPE_CHECKING:
    from collections.abc import Callable

# Position of each ONNX gate among PyTorch's: GRU r,z,n -> z,r,h; LSTM i,f,g,o -> i,o,f,c.
_GATES = {"RNN": (0,), "GRU": (1, 0, 2), "LSTM": (0, 3, 1, 2)}


@dataclass(frozen=True)
class _Layer:
    """One layer's weights as the ONNX operator takes them.

    ``p`` is an LSTM's projection, transposed, [directions, hidden, proj]; ``q`` its right inverse.
    """

    w: Tensor
    r: Tensor
    b: Tensor | None = None
    p: Tensor | None = None
    q: Tensor | None = None


def recurrent_layers(module: nn.Module) -> dict[str, nn.RNNBase]:
    """Every recurrent module by its path, those that a user has given another ``forward`` left out."""
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, nn.RNNBase) and is_plain(layer)}


@contextlib.contextmanager
def lowered(module: nn.Module) -> Iterator[None]:
    """While this lasts, tracing ``module`` meets our operators in place of its recurrent layers. Nothing is copied."""
    _operators.register()
    layers = recurrent_layers(module)
    try:
        for name, layer in layers.items():
            _install(layer, name or type(layer).__name__)
        yield
    finally:
        for layer in layers.values():
            _remove(layer)


def is_plain(layer: nn.RNNBase) -> bool:
    """Whether the layer computes what PyTorch's own does, and not what a subclass makes of it."""
    return type(layer).forward in (nn.RNN.forward, nn.LSTM.forward, nn.GRU.forward)


def _install(layer: nn.RNNBase, path: str) -> None:
    kind = _kind(layer)
    names: list[tuple[str, ...]] = []
    for index in range(layer.num_layers):
        weights = _layer_weights(layer, kind, index)
        stored = {"W": weights.w, "R": weights.r, "B": weights.b, "P": weights.p, "Q": weights.q}
        for key, value in stored.items():
            layer.register_buffer(f"{key}_l{index}", value, persistent=False)
        names.append(tuple(f"{key}_l{index}" for key in stored))

    def forward(input: Tensor, hx: Any = None) -> Any:  # noqa: A002 - PyTorch's own name for it
        layers = [_Layer(*(getattr(layer, name) for name in group)) for group in names]
        return _run(layer, kind, layers, input, hx, path)

    layer.forward = forward


def _remove(layer: nn.RNNBase) -> None:
    layer.__dict__.pop("forward", None)
    for index in range(layer.num_layers):
        for key in "WRBPQ":
            layer._buffers.pop(f"{key}_l{index}", None)
            layer._non_persistent_buffers_set.discard(f"{key}_l{index}")


def _kind(layer: nn.RNNBase) -> str:
    return "RNN" if isinstance(layer, nn.RNN) else "LSTM" if isinstance(layer, nn.LSTM) else "GRU"


def _layer_weights(layer: nn.RNNBase, kind: str, index: int) -> _Layer:
    suffixes = [f"l{index}", *([f"l{index}_reverse"] if layer.bidirectional else [])]

    def stacked(name: str) -> Tensor:
        return torch.stack([_reordered(getattr(layer, f"{name}_{suffix}").detach(), kind) for suffix in suffixes])

    w, r = stacked("weight_ih"), stacked("weight_hh")
    b = torch.cat([stacked("bias_ih"), stacked("bias_hh")], dim=1) if layer.bias else None
    if not layer.proj_size:
        return _Layer(w, r, b)
    # ONNX's LSTM has no projection. With m = o*tanh(c) as its state and h = P m, R h = (R P) m: exact. A given h0
    # becomes the smallest m with P m = h0, by the pseudo-inverse (P has full row rank in any trained model).
    p = torch.stack([getattr(layer, f"weight_hr_{suffix}").detach() for suffix in suffixes])
    return _Layer(w, r @ p, b, p.transpose(1, 2).contiguous(), torch.linalg.pinv(p).transpose(1, 2).contiguous())


def _reordered(weight: Tensor, kind: str) -> Tensor:
    gates = weight.chunk(len(_GATES[kind]))
    return torch.cat([gates[position] for position in _GATES[kind]])


def _run(layer: nn.RNNBase, kind: str, layers: list[_Layer], x: Any, hx: Any, path: str) -> Any:
    """nn.RNNBase.forward on ONNX operators: the same arguments, the same results."""
    if not isinstance(x, Tensor):
        raise ExportError(
            f"its recurrent layer {path} is given a {type(x).__name__}; packed sequences cannot be exported yet, "
            "so pass the padded tensor"
        )
    batched = x.dim() == 3
    if not batched:
        x = x.unsqueeze(1)
    elif layer.batch_first:
        x = x.transpose(0, 1)
    states = _initial_states(layer, kind, hx, batched)
    finals: list[list[Tensor]] = []
    for index, weights in enumerate(layers):
        first = index * (2 if layer.bidirectional else 1)
        given = [state[first : first + (2 if layer.bidirectional else 1)] for state in states]
        x, last = _apply(layer, kind, weights, x, given)
        finals.append(last)
    y = x if batched else x.squeeze(1)
    if batched and layer.batch_first:
        y = y.transpose(0, 1)
    joined = [torch.cat(parts) if len(parts) > 1 else parts[0] for parts in zip(*finals, strict=True)]
    if not batched:
        joined = [state.squeeze(1) for state in joined]
    return y, tuple(joined) if kind == "LSTM" else joined[0]


def _initial_states(layer: nn.RNNBase, kind: str, hx: Any, batched: bool) -> list[Tensor]:
    if hx is None:
        return []
    states = list(hx) if kind == "LSTM" else [hx]
    return states if batched else [state.unsqueeze(1) for state in states]


def _apply(
    layer: nn.RNNBase, kind: str, weights: _Layer, x: Tensor, given: list[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    operator: Callable[..., tuple[Tensor, ...]] = getattr(torch.ops.deploykit, kind.lower())
    states: list[Tensor | None] = [*given] if given else [None] * (2 if kind == "LSTM" else 1)
    if weights.q is not None and given:
        states[0] = given[0] @ weights.q
    direction = "bidirectional" if layer.bidirectional else "forward"
    activation = {"tanh": "Tanh", "relu": "Relu"}[layer.nonlinearity] if isinstance(layer, nn.RNN) else ""
    y, *last = operator(x, weights.w, weights.r, weights.b, *states, layer.hidden_size, direction, activation)
    if weights.p is not None:
        y = y @ weights.p
        last[0] = last[0] @ weights.p
    # [time, directions, batch, hidden] -> [time, batch, directions*hidden], as PyTorch has it.
    joined = y.squeeze(1) if y.shape[1] == 1 else y.transpose(1, 2).flatten(2)
    return joined, last
