"""Proves a streaming export: fed in chunks of any size, down to single steps, it answers as to the whole sequence."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from deploykit.backends._outputs import named_outputs
from deploykit.errors import ExportError
from deploykit.streaming import Streaming, zero_states
from deploykit.types import BATCH, TIME, DimRange, ModelSpec, TensorSpec

if TYPE_CHECKING:
    from deploykit.types import Array

# One row and several; a sequence longer than the traced example, cut into single steps, and into pieces of all sizes.
_BATCH, _TIME, _OTHER = 3, 31, 5
_CUTS = ((1,), (3, 1, 7, 2), (16, 15))
#: How many ways of cutting are tried.
CHUNKS = len(_CUTS)


def stream_errors(
    spec: ModelSpec, outputs: Sequence[TensorSpec], infer: Callable[[Mapping[str, Array]], Sequence[Array]]
) -> dict[str, tuple[Array, Array]]:
    """For each of the model's own outputs, how far chunks are from the whole sequence in PyTorch, and the latter.

    ``infer`` runs the exported file and answers in the order of ``outputs``. Empty where the model has no time dim.

    Raises:
        ExportError: an output has another length in chunks than as a whole.
    """
    assert isinstance(spec.module, Streaming)
    plain = spec.module.plain
    if TIME not in plain.dynamic:
        return {}
    low = plain.dims.get(TIME, DimRange()).low
    sizes = {name: _sizes(name, plain) for name in plain.dynamic}
    feeds = plain.feeds(3000, **sizes)
    states = spec.inputs[len(plain.inputs) :]
    with torch.inference_mode():
        value = plain.run([torch.tensor(feeds[tensor.name]) for tensor in plain.inputs])
    expected = {name: tensor.numpy() for name, tensor in named_outputs(plain, value).items()}
    found: dict[str, list[Array]] = {name: [] for name in expected}
    for cut in _CUTS:
        pieces = _streamed(spec, outputs, infer, feeds, states, [max(size, low) for size in cut])
        for name, whole in expected.items():
            joined = _joined(next(tensor for tensor in outputs if tensor.name == name), pieces[name])
            if joined.shape != whole.shape:
                raise ExportError(
                    f"{spec.name} cannot stream: its output {name} has shape {list(joined.shape)} in chunks of "
                    f"{cut[0]} steps and {list(whole.shape)} as a whole; something in it besides the recurrent layers "
                    "looks at several steps."
                )
            found[name].append(np.abs(joined.astype(np.float64) - whole))
    return {name: (np.stack(parts), expected[name]) for name, parts in found.items()}


def _sizes(name: str, plain: ModelSpec) -> int:
    wanted = {BATCH: _BATCH, TIME: _TIME}.get(name, _OTHER)
    return plain.dims.get(name, DimRange()).clamp(wanted)


def _streamed(
    spec: ModelSpec,
    outputs: Sequence[TensorSpec],
    infer: Callable[[Mapping[str, Array]], Sequence[Array]],
    feeds: Mapping[str, Array],
    states: Sequence[TensorSpec],
    cut: Sequence[int],
) -> dict[str, list[Array]]:
    """The outputs of each chunk, the state carried from one to the next."""
    assert isinstance(spec.module, Streaming)
    own = spec.module.plain.inputs
    carried = zero_states(own, states, feeds)
    pieces: dict[str, list[Array]] = {tensor.name: [] for tensor in outputs}
    steps = next(feeds[tensor.name].shape[tensor.dims.index(TIME)] for tensor in own if TIME in tensor.dims)
    begin, index = 0, 0
    while begin < steps:
        end = begin + cut[index % len(cut)]
        # What would be left over joins the last chunk, which may otherwise be shorter than the model allows.
        end = steps if steps - end < min(cut) else end
        chunk = {tensor.name: _slice(feeds[tensor.name], tensor, begin, end) for tensor in own}
        answers = dict(zip((tensor.name for tensor in outputs), infer({**chunk, **carried}), strict=True))
        for name, value in answers.items():
            pieces[name].append(value)
        carried = {tensor.name: answers[tensor.name.replace("_in", "_out", 1)] for tensor in states}
        begin, index = end, index + 1
    return pieces


def _slice(value: Array, tensor: TensorSpec, begin: int, end: int) -> Array:
    if TIME not in tensor.dims:
        return value
    axis = tensor.dims.index(TIME)
    return np.ascontiguousarray(value.take(range(begin, end), axis=axis))


def _joined(output: TensorSpec, pieces: Sequence[Array]) -> Array:
    """Chunks of an output that has the time axis, one behind the other; the last one of an output that has none."""
    return np.concatenate(pieces, axis=output.dims.index(TIME)) if TIME in output.dims else pieces[-1]
