"""Answers for ``pack_padded_sequence`` and ``pad_packed_sequence`` in PyTorch's place.

Models import both under names of their own, so that it is their code that is exchanged, for as long as a block lasts.
"""

from __future__ import annotations

import contextlib
import threading
import types
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol, cast

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn.utils.rnn import PackedSequence


class Packer(Protocol):
    """What answers; the arguments are PyTorch's."""

    def pack(self, x: Tensor, lengths: Any, batch_first: bool, enforce_sorted: bool) -> PackedSequence: ...

    def pad(
        self, sequence: PackedSequence, batch_first: bool, padding_value: float, total_length: int | None
    ) -> tuple[Tensor, Tensor]: ...


_ACTIVE: list[Packer] = []
# The exchange is the whole process's: one at a time.
_LOCK = threading.RLock()


@contextlib.contextmanager
def answered_by(packer: Packer) -> Iterator[None]:
    """While this lasts, every call of the two functions is answered by ``packer``."""
    from torch.nn.utils import rnn

    functions: list[Any] = [rnn.pack_padded_sequence, rnn.pad_packed_sequence]
    with _LOCK:
        before = [function.__code__ for function in functions]
        _ACTIVE.append(packer)
        try:
            for function, ours in zip(functions, (_pack, _pad), strict=True):
                function.__code__ = ours.__code__
            yield
        finally:
            for function, code in zip(functions, before, strict=True):
                function.__code__ = code
            _ACTIVE.pop()


def active() -> Packer:
    """Who answers now."""
    return _ACTIVE[-1]


def original(name: str) -> Any:
    """PyTorch's own function of that name, for a packer to pass its calls on to; to be taken before the exchange."""
    from torch.nn.utils import rnn

    function = cast("types.FunctionType", getattr(rnn, name))
    return types.FunctionType(
        function.__code__, function.__globals__, function.__name__, function.__defaults__, function.__closure__
    )


# The code of these two runs among the globals of torch.nn.utils.rnn, so it imports whatever it names. The parameters
# are those of the functions they stand for, whose defaults stay in force.
def _pack(input: Any, lengths: Any, batch_first: bool = False, enforce_sorted: bool = True) -> Any:  # noqa: A002
    from deploykit.packing import active

    return active().pack(input, lengths, batch_first, enforce_sorted)


def _pad(sequence: Any, batch_first: bool = False, padding_value: float = 0.0, total_length: int | None = None) -> Any:
    from deploykit.packing import active

    return active().pad(sequence, batch_first, padding_value, total_length)
