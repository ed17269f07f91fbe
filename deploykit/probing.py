"""What a model's integer inputs mean, seen by running it: indices of an embedding, or lengths of packed sequences.

A model without a sample gets seeded noise. Noise of 0 and 1 proves little of an embedding of 256 rows, and a length of
0 makes PyTorch refuse; so the first run of such a model is watched.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from deploykit import packing
from deploykit.types import BATCH, TIME, DimRange, ModelSpec, ValueRange
from deploykit.watching import copied

if TYPE_CHECKING:
    from torch.nn.utils.rnn import PackedSequence

# Notes on a tensor: it holds an input's values, or numbers made of an input that has one for each row.
_NOTE, _MADE_OF = "_deploykit_input", "_deploykit_made_of"
_SORTS = frozenset({"sort", "topk"})

# What leaves every value as it is: its result is still the input.
_SAME = frozenset(
    {
        *("to", "long", "int", "cpu", "contiguous", "clone", "detach", "type", "view", "reshape", "flatten", "squeeze"),
        *("unsqueeze", "transpose", "t", "permute", "expand", "__getitem__", "select", "as_tensor"),
    }
)


def integers(spec: ModelSpec) -> list[str]:
    """Names of the integer inputs."""
    return [tensor.name for tensor in spec.inputs if not tensor.dtype.startswith(("float", "bool"))]


def with_ranges(spec: ModelSpec) -> ModelSpec:
    """``spec`` with what could be found out about its integer inputs; unchanged where it has a sample of its own."""
    if spec.sample is not None or not integers(spec):
        return spec
    sizes = {name: spec.dims.get(name, DimRange()).clamp({BATCH: 2, TIME: 7}.get(name, 5)) for name in spec.dynamic}
    watch = _Watch(spec)
    feeds = spec.feeds(0, **sizes)
    inputs = []
    for tensor in spec.inputs:
        value = torch.tensor(feeds[tensor.name])
        setattr(value, _NOTE, tensor.name)
        if len(tensor.dims) == 1 and tensor.name in integers(spec):
            setattr(value, _MADE_OF, tensor.name)
        inputs.append(value)
    # Whatever goes wrong here goes wrong again when the model is run in earnest, and is told then.
    with packing.answered_by(watch), watch, torch.no_grad(), contextlib.suppress(Exception):
        copied(spec).run(inputs)
    return replace(spec, ranges={**watch.found, **spec.ranges})


class _Watch(TorchFunctionMode):
    """Notes where inputs go; packs in PyTorch's place (``deploykit.packing.Packer``)."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self._time = TIME if TIME in spec.dynamic else None
        self._pack = packing.original("pack_padded_sequence")
        self._pad = packing.original("pad_packed_sequence")
        self._listed = ""
        self.found: dict[str, ValueRange] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "").split(".")[0]
        if name == "embedding" and (source := _source(args[0]) or _source(args[1])):
            # functional.embedding takes the indices first, torch.embedding the rows.
            rows = int(args[1 if _source(args[0]) else 0].shape[0])
            known = self.found.get(source)
            high = rows - 1 if known is None or isinstance(known.high, str) else min(rows - 1, known.high)
            self.found[source] = ValueRange(0, high)
        result = func(*args, **(kwargs or {}))
        if name == "tolist" and (source := _source(args[0], _MADE_OF)):
            self._listed = source
        made_of = next((source for one in args if (source := _source(one, _MADE_OF))), "")
        for made in result if name in _SORTS else (result,):
            if isinstance(made, Tensor) and made_of and made.dim() == 1:
                setattr(made, _MADE_OF, made_of)
            if isinstance(made, Tensor) and name in _SAME and (source := _source(args[0])):
                setattr(made, _NOTE, source)
        return result

    def pack(self, x: Tensor, lengths: Any, batch_first: bool, enforce_sorted: bool) -> PackedSequence:
        source = _source(lengths, _MADE_OF) or (self._listed if isinstance(lengths, list) else "")
        time = x.shape[1] if batch_first else x.shape[0]
        if source:
            # Lengths that the model has made of others, halved or sorted, need no order of the input.
            given = isinstance(lengths, list) or bool(_source(lengths))
            self.found[source] = ValueRange(1, self._time or time, descending=enforce_sorted and given)
            lengths = torch.full((len(lengths),), time)  # noise may be 0, and the run has to go on
        packed: PackedSequence = self._pack(x, lengths, batch_first, enforce_sorted)
        return packed

    def pad(
        self, sequence: PackedSequence, batch_first: bool, padding_value: float, total_length: int | None
    ) -> tuple[Tensor, Tensor]:
        padded: tuple[Tensor, Tensor] = self._pad(sequence, batch_first, padding_value, total_length)
        return padded


def _source(value: Any, note: str = _NOTE) -> str:
    return getattr(value, note, "") if isinstance(value, Tensor) else ""
