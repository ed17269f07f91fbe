"""Small objects that others hand around."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from ._api import Bound, exposed
from ._enums import DataType


@exposed
class Dims(Bound):
    """A shape. Like the true one it can be counted and indexed, and is no tuple."""

    _shape: tuple[int, ...]

    def __init__(self, shape: Sequence[int] = ()) -> None:
        self._begin()
        self._shape = tuple(int(size) for size in shape)

    @property
    def MAX_DIMS(self) -> int:
        return 8

    def __len__(self) -> int:
        return len(self._shape)

    def __getitem__(self, arg0: int) -> int:
        return self._shape[arg0]

    def __iter__(self) -> Iterator[int]:
        return iter(self._shape)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, (Dims, tuple, list)) and tuple(other) == self._shape

    def __hash__(self) -> int:
        return hash(self._shape)

    def __repr__(self) -> str:
        return repr(self._shape)


@exposed
class IHostMemory(Bound, bytes):
    """Bytes that the library holds: a buffer, and nothing else that bytes can do."""

    @property
    def dtype(self) -> Any:
        return DataType.INT8

    @property
    def nbytes(self) -> int:
        return memoryview(self).nbytes

    def __len__(self) -> int:
        raise TypeError("object of type 'tensorrt.IHostMemory' has no len()")

    def __getitem__(self, index: Any) -> Any:
        raise TypeError("'tensorrt.IHostMemory' object is not subscriptable")

    def __iter__(self) -> Any:
        raise TypeError("'tensorrt.IHostMemory' object is not iterable")

    def __repr__(self) -> str:
        return "<tensorrt.IHostMemory object>"


def host_memory(content: bytes) -> IHostMemory:
    new: IHostMemory = bytes.__new__(IHostMemory, content)
    new._begin()
    return new


@exposed
class Weights(Bound):
    """Numbers of one tensor."""

    _array: Any

    def __init__(self, a: Any) -> None:
        self._begin()
        self._array = a

    @property
    def size(self) -> int:
        return int(self._array.size)

    @property
    def nbytes(self) -> int:
        return int(self._array.nbytes)

    def __len__(self) -> int:
        return self.size

    def numpy(self) -> Any:
        return self._array


@exposed
class IPluginRegistry(Bound):
    """No plugin is there."""

    @property
    def all_creators(self) -> list[object]:
        return []
