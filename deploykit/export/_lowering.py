"""Our own lowering of recurrent layers and cells: each layer becomes exactly one ONNX operator.

torch.onnx unrolls nn.RNN, freezes the time axis on a second export in one process, and writes files for LSTMs with
projections that no runtime loads. So, while a model is traced, the functions that nn.RNN, nn.LSTM, nn.GRU and their
cells call in the end are answered by the operators of ``_operators``. Whatever reaches those functions is covered
alike: the modules themselves, subclasses, weights that a parametrization computes, programs of torch.export.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.overrides import TorchFunctionMode

from deploykit import packing
from deploykit.errors import ExportError
from deploykit.export import _operators, _packed

# The functions, by name as PyTorch calls them: kind and activation.
_LAYERS = {"rnn_tanh": ("rnn", "Tanh"), "rnn_relu": ("rnn", "Relu"), "gru": ("gru", ""), "lstm": ("lstm", "")}
_CELLS = {f"{name}_cell": of for name, of in _LAYERS.items()}


class Lowering(TorchFunctionMode):
    """While it is active, recurrent layers and cells are traced as our operators.

    ``layers`` counts the recurrent operators that were traced, ``cells`` those among them that are one step of a cell;
    ``failed`` is the name of the first function that raised, where one has.
    """

    def __init__(self) -> None:
        super().__init__()
        self.layers = 0
        self.cells = 0
        self.failed = ""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "").split(".")[0]  # an overload of torch.ops.aten is called "gru.input"
        if name in _LAYERS:
            return self._layer(*_LAYERS[name], *args, **(kwargs or {}))
        if name in _CELLS:
            return self._cell(*_CELLS[name], *args, **(kwargs or {}))
        if name == "max_pool1d":  # whose own trace fixes the length
            return _max_pool1d(*args, **(kwargs or {}))
        first = name == "__getitem__" and isinstance(args[1], int) and args[1] == 0
        if first and (size := _packed.first_batch_size(args[0])) is not None:
            return size
        try:
            return func(*args, **(kwargs or {}))
        except Exception:
            self.failed = self.failed or name.strip("_")
            raise

    def _layer(self, kind: str, activation: str, x: Tensor, *args: Any) -> Any:
        # (x, state, weights, has_biases, ...) or (data, batch_sizes, state, weights, has_biases, ...): packed.
        packed = None if isinstance(args[2], bool) else _packed.packing(args[0])
        state, weights, bias, layers, dropout, train, bidirectional, *batch_first = args[0 if packed is None else 1 :]
        if train and dropout:
            raise ExportError("its recurrent layer drops out at random: put the model in eval mode")
        if packed is not None:
            x = packed.padded(x)
        elif batch_first[0]:
            x = x.transpose(0, 1)
        states = list(state) if kind == "lstm" else [state]
        y, finals = self._stack(kind, activation, x, states, weights, bias, layers, 2 if bidirectional else 1, packed)
        if packed is not None:
            y = packed.data(y)
        elif batch_first[0]:
            y = y.transpose(0, 1)
        return (y, *finals)

    def _stack(
        self,
        kind: str,
        activation: str,
        x: Tensor,
        states: Sequence[Tensor],
        weights: Sequence[Tensor],
        bias: bool,
        layers: int,
        directions: int,
        packed: _packed.Packing | None,
    ) -> tuple[Tensor, list[Tensor]]:
        """All layers, one on the other: ``x`` [time, batch, in] to [time, batch, directions * hidden], final states."""
        each = len(weights) // layers
        lengths = None if packed is None else packed.short
        finals: list[Sequence[Tensor]] = []
        for index in range(layers):
            rows = slice(index * directions, (index + 1) * directions)
            given = [state[rows] for state in states]
            own = weights[index * each : (index + 1) * each]
            x, last = self._one(kind, activation, x, given, own, bias, directions, lengths)
            finals.append(last)
        joined = [torch.cat(list(parts)) if layers > 1 else parts[0] for parts in zip(*finals, strict=True)]
        return x, joined

    def _one(
        self,
        kind: str,
        activation: str,
        x: Tensor,
        states: list[Tensor],
        weights: Sequence[Tensor],
        bias: bool,
        directions: int,
        lengths: Tensor | None,
    ) -> tuple[Tensor, list[Tensor]]:
        operator: Callable[..., tuple[Tensor, ...]] = getattr(torch.ops.deploykit, kind)
        weights, projection = _unprojected(weights, 4 if bias else 2, directions)
        if projection is not None:
            states = [states[0] @ _right_inverse(projection), *states[1:]]
        self.layers += 1
        y, *last = operator(x, weights, lengths, *states, directions, bias, activation)
        if projection is not None:
            y, last[0] = y @ projection, last[0] @ projection
        # [time, directions, batch, hidden] -> [time, batch, directions * hidden], as PyTorch has it.
        return y.squeeze(1) if directions == 1 else y.transpose(1, 2).flatten(2), last

    def _cell(self, kind: str, activation: str, x: Tensor, state: Any, *weights: Tensor | None) -> Any:
        """One step: a sequence of length 1."""
        states = [one.unsqueeze(0) for one in (state if kind == "lstm" else [state])]
        own = [weight for weight in weights if weight is not None]
        self.cells += 1
        _, last = self._one(kind, activation, x.unsqueeze(0), states, own, len(own) == 4, 1, None)
        finals = [one.squeeze(0) for one in last]
        return tuple(finals) if kind == "lstm" else finals[0]


@contextlib.contextmanager
def lowered(mode: Lowering, packer: _packed.TracedPacker) -> Iterator[None]:
    """While this lasts, tracing any module meets our operators in place of recurrent layers. No module is changed."""
    _operators.register()
    # Their checks of shapes have passed when the model ran in PyTorch; in a trace of packed sequences they would fix
    # the batch size.
    unchecked = (mock.patch.object(layer, "check_forward_args", lambda *args: None) for layer in (nn.RNNBase, nn.LSTM))
    with contextlib.ExitStack() as stack:
        for patch in unchecked:
            stack.enter_context(patch)
        # A class would not be bound as a method is.
        stack.enter_context(mock.patch.object(FakeTensor, "tolist", lambda tensor: _packed.Listed(tensor)))  # noqa: PLW0108
        stack.enter_context(packing.answered_by(packer))
        stack.enter_context(mode)
        yield


def _unprojected(weights: Sequence[Tensor], plain: int, directions: int) -> tuple[list[Tensor], Tensor | None]:
    """The weights of an LSTM without its projection, and that projection [directions, hidden, proj] if it has one.

    ONNX's LSTM has none. With m = o * tanh(c) as its state and h = P m, R h = (R P) m: exact.
    """
    each = len(weights) // directions
    if each == plain:
        return list(weights), None
    groups = [list(weights[index * each : (index + 1) * each]) for index in range(directions)]
    plain_weights = [
        tensor @ group[plain] if at == 1 else tensor for group in groups for at, tensor in enumerate(group[:plain])
    ]
    return plain_weights, torch.stack([group[plain].t() for group in groups])


def _right_inverse(projection: Tensor) -> Tensor:
    """[directions, proj, hidden]: a given h0 becomes the smallest m with P m = h0 (a trained P has full row rank)."""
    inverse = torch.ops.deploykit.pseudo_inverse
    return torch.stack([inverse(one) for one in projection.unbind(0)])


def _max_pool1d(
    x: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor:
    if return_indices:
        raise ExportError("its max_pool1d returns indices, which cannot be exported with a dynamic length")

    def one(value: Any) -> int:
        return int(value[0]) if isinstance(value, (tuple, list)) else int(value)

    size = one(kernel_size)
    step = size if stride is None or stride == [] else one(stride)
    pooled = nn.functional.max_pool2d(
        x.unsqueeze(-2), (1, size), (1, step), (0, one(padding)), (1, one(dilation)), ceil_mode
    )
    return pooled.squeeze(-2)
