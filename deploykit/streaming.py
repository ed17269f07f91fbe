"""A model whose recurrent state is an input and an output, so that a stream can be fed chunk by chunk.

The states are batch first, [batch, layers, hidden], as servers want them. They are called ``h_in`` and ``h_out``, with
``c_in`` and ``c_out`` for an LSTM's cell, and ``h_in_0``, ``h_in_1`` and on where there are several layers, so that
inputs and outputs pair up by sorted name.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from deploykit.backends._outputs import named_outputs
from deploykit.errors import ExportError, ModelError, first_line
from deploykit.states import carried
from deploykit.types import BATCH, DimRange, Metric, ModelSpec, TensorSpec
from deploykit.watching import copied, watched

if TYPE_CHECKING:
    from deploykit.types import Array, Feeds, Infer

__all__ = ["Streaming", "carried", "streaming", "zero_states"]

_LAYERS = ("rnn_tanh", "rnn_relu", "gru", "lstm")
_CELLS = tuple(f"{name}_cell" for name in _LAYERS)


@dataclass(frozen=True)
class _Call:
    """One call of a recurrent layer: where it happens and the shapes of its states, [layers, batch, size] each."""

    path: str
    kind: str
    shapes: tuple[tuple[int, ...], ...]


def streaming(spec: ModelSpec) -> ModelSpec:
    """``spec`` with the state of every recurrent layer as further inputs and outputs.

    Raises:
        ExportError: a layer is bidirectional, takes packed sequences, a state of the model's own making, or a batch
            that is not the model's; or there is no recurrent layer.
        ModelError: the model fails in PyTorch.
    """
    sizes = _sizes(spec, 0)
    calls, others = _calls(spec, sizes), _calls(spec, larger := _sizes(spec, 1))
    if not calls:
        raise ExportError(f"{spec.name} has no recurrent layer whose state could be carried: leave --streaming out.")
    width = len(str(len(calls) - 1))
    inputs: list[TensorSpec] = []
    results: list[TensorSpec] = []
    for index, (call, other) in enumerate(zip(calls, others, strict=True)):
        number = f"_{index:0{width}d}" if len(calls) > 1 else ""
        batch = _batch(spec, call, other, sizes, larger)
        for letter, shape in zip("hc", call.shapes, strict=False):
            dims = (batch, shape[0], shape[2])
            inputs.append(TensorSpec(f"{letter}_in{number}", "float32", dims))
            results.append(TensorSpec(f"{letter}_out{number}", "float32", dims))
    taken = {tensor.name for tensor in spec.inputs} & {tensor.name for tensor in inputs}
    if taken:
        raise ExportError(f"{spec.name} has an input {min(taken)} already: give it another name for --streaming.")
    module = Streaming(spec, tuple(len(call.shapes) for call in calls), tuple(tensor.name for tensor in results))
    return replace(
        spec,
        module=module.eval(),
        inputs=(*spec.inputs, *inputs),
        outputs=(*spec.outputs, *results) if spec.outputs else (),
        sample=_sample(spec, tuple(inputs)),
        metric=None if spec.metric is None else _metric(spec.metric, spec, tuple(inputs)),
        call=None,
        ranges={},
    )


class Streaming(nn.Module):
    """``plain.module``, called with its own inputs and then all states; returns a dict of outputs and new states."""

    def __init__(self, plain: ModelSpec, states: tuple[int, ...], results: tuple[str, ...]) -> None:
        super().__init__()
        self.plain = plain
        self.model = plain.module
        self._states = states
        self._results = results

    def forward(self, *tensors: Tensor) -> dict[str, Tensor]:
        own = len(self.plain.inputs)
        given, rest = [], list(tensors[own:])
        for count in self._states:
            given.append(rest[:count])
            rest = rest[count:]
        carry = _Carry(given)
        with carry:
            value = self.plain.run(tensors[:own])
        return {**named_outputs(self.plain, value), **dict(zip(self._results, carry.finals, strict=True))}


class _Carry(TorchFunctionMode):
    """Gives each call of a recurrent layer its state in turn, and takes the new one."""

    def __init__(self, given: Sequence[Sequence[Tensor]]) -> None:
        super().__init__()
        self._given = iter(given)
        self.finals: list[Tensor] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if _name(func) not in _LAYERS:
            return func(*args, **(kwargs or {}))
        states = [state.transpose(0, 1).contiguous() for state in next(self._given)]
        x, _, *rest = args
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", "LSTM with projections"
            )  # says that it is slower, of PyTorch's own kernel
            y, *last = func(x, states if _name(func) == "lstm" else states[0], *rest)
        self.finals += [state.transpose(0, 1) for state in last]
        return (y, *last)


def zero_states(inputs: Sequence[TensorSpec], states: Sequence[TensorSpec], feeds: Feeds) -> dict[str, Array]:
    """The states before the first step, for the batch size of ``feeds``."""
    import numpy as np

    sizes = {
        str(dim): size
        for tensor in inputs
        for dim, size in zip(tensor.dims, feeds[tensor.name].shape, strict=True)
        if isinstance(dim, str)
    }
    return {tensor.name: np.zeros(tensor.shape(sizes), tensor.dtype) for tensor in states}


def _name(func: Callable[..., Any]) -> str:
    return getattr(func, "__name__", "").split(".")[0]


def _sizes(spec: ModelSpec, more: int) -> dict[str, int]:
    wanted = {name: size + more for name, size in zip(spec.dynamic, (2, 7, 11, 13, 17, 19, 23), strict=False)}
    return {name: spec.dims.get(name, DimRange()).clamp(size) for name, size in wanted.items()}


class _Recorder(TorchFunctionMode):
    def __init__(self, spec: ModelSpec, path: Callable[[], str]) -> None:
        super().__init__()
        self._spec = spec
        self._path = path
        self.calls: list[_Call] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = _name(func)
        if name in _CELLS:
            raise ExportError(
                f"{self._spec.name} cannot stream: the state of its cell {self._path()} lies in the model's own code; "
                "make it an input and an output of forward there."
            )
        if name in _LAYERS:
            self._note(name, args)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "LSTM with projections")
            return func(*args, **(kwargs or {}))

    def _note(self, kind: str, args: tuple[Any, ...]) -> None:
        layer = f"its layer {path}" if (path := self._path()) else "its layer"
        if not isinstance(args[3], bool):
            raise ExportError(f"{self._spec.name} cannot stream: {layer} takes packed sequences; pass padded ones.")
        if args[7]:
            raise ExportError(
                f"{self._spec.name} cannot stream: {layer} is bidirectional, so that its first step needs the last one."
            )
        states = tuple(args[1]) if kind == "lstm" else (args[1],)
        if any(bool(state.any()) for state in states):
            raise ExportError(
                f"{self._spec.name} cannot stream by itself: {layer} is given a state that is not zero; a state that "
                "is an input of the model already needs no --streaming."
            )
        self.calls.append(_Call(path, kind, tuple(tuple(state.shape) for state in states)))


def _calls(spec: ModelSpec, sizes: Mapping[str, int]) -> list[_Call]:
    spec = copied(spec)
    feeds = spec.feeds(0, **sizes)
    running: list[str] = []
    recorder = _Recorder(spec, lambda: running[-1] if running else "")
    with watched(spec.module, running.append, lambda _: running.pop()), recorder, torch.no_grad():
        try:
            spec.run([torch.tensor(feeds[tensor.name]) for tensor in spec.inputs])
        except ExportError:
            raise
        # The module is the user's own code: whatever it raises is the answer.
        except Exception as error:
            raise ModelError(
                f"{spec.name} fails in PyTorch on the inputs {', '.join(map(str, spec.inputs))}: {first_line(error)}."
            ) from error
    return recorder.calls


def _batch(
    spec: ModelSpec, call: _Call, other: _Call, sizes: Mapping[str, int], larger: Mapping[str, int]
) -> int | str:
    """The name or size of a layer's batch dim: seen at two sets of sizes."""
    found, again = call.shapes[0][1], other.shapes[0][1]
    names = [name for name in spec.dynamic if (sizes[name], larger[name]) == (found, again)]
    if found == again and not names:
        return found
    if not names:
        raise ExportError(
            f"{spec.name} cannot stream: the batch of its layer {call.path} is made of several dims ({found} rows for "
            f"{', '.join(f'{name}={size}' for name, size in sizes.items())}), and a state needs the model's own batch."
        )
    return BATCH if BATCH in names else names[0]


def _sample(spec: ModelSpec, states: tuple[TensorSpec, ...]) -> Callable[..., dict[str, Array]]:
    def sample(seed: int, **sizes: int) -> dict[str, Array]:
        import numpy as np

        generator = np.random.default_rng(seed)
        # Within what tanh leaves of a state; a cell's may be larger.
        given = {tensor.name: generator.uniform(-1, 1, tensor.shape(sizes)).astype(np.float32) for tensor in states}
        return {**spec.feeds(seed, **sizes), **given}

    return sample


def of_wholes(metric: Metric, spec: ModelSpec) -> Metric:
    """``metric``, whose feeds need not hold the states of ``spec``, if that streams: they begin with zero."""
    if not isinstance(spec.module, Streaming):
        return metric
    plain = spec.module.plain
    return _metric(metric, plain, spec.inputs[len(plain.inputs) :])


def _metric(metric: Metric, spec: ModelSpec, states: tuple[TensorSpec, ...]) -> Metric:
    """The same metric, of whole sequences that begin with a zero state."""

    def evaluate(infer: Infer) -> float:
        return metric.evaluate(lambda feeds: infer({**zero_states(spec.inputs, states, feeds), **feeds}))

    return Metric(metric.name, metric.higher_is_better, evaluate)
