"""Execution contexts: shapes within the profile, addresses for every tensor, and a run that is over when it returns."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

import numpy as np

from . import _model
from ._api import NUMBERS, Bound, exposed
from ._log import error, in_context
from ._values import Dims

if TYPE_CHECKING:
    from ._engine import ICudaEngine


@exposed
class IOutputAllocator(Bound):
    """What an allocator of one's own derives from; its methods are looked for in what derives."""

    def __init__(self) -> None:
        self._begin()


def held(kind: str) -> Any:
    """NumPy's type of what lies in memory: versions without int64 hold int32 instead."""
    return np.int32 if kind == "INT64" and NUMBERS < (10,) else _model.ARRAYS[kind]


def read(address: int, kind: str, shape: tuple[int, ...]) -> Any:
    array = np.zeros(shape, held(kind))
    ctypes.memmove(array.ctypes.data, address, array.nbytes)
    if kind == "BF16":
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array


def laid(array: Any, kind: str) -> Any:
    """An output as it lies in memory."""
    if kind == "BF16":
        bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
        return np.ascontiguousarray((bits + 0x7FFF + (bits >> 16 & 1)) >> 16, np.uint16)
    return np.ascontiguousarray(array, held(kind))


@exposed
class IExecutionContext(Bound):
    name: str
    enqueue_emits_profile: bool

    def _begin(self, engine: ICudaEngine) -> None:
        super()._begin()
        self._engine = engine
        self._profile = 0
        self._shapes: dict[str, tuple[int, ...]] = engine._fixed()
        self._addresses: dict[str, int] = {}
        self._allocators: dict[str, Any] = {}
        self._default(name="", debug_sync=False, enqueue_emits_profile=True, persistent_cache_limit=0)

    def __del__(self) -> None:
        in_context(self)

    @property
    def engine(self) -> ICudaEngine:
        return self._engine

    @property
    def active_optimization_profile(self) -> int:
        return self._profile

    @property
    def all_binding_shapes_specified(self) -> bool:
        return not self.infer_shapes()

    def _refused(self, what: str, why: str) -> bool:
        error(f"IExecutionContext::{what}: Error Code 3: API Usage Error ({why})")
        return False

    def set_input_shape(self, name: str, shape: Dims) -> bool:
        what, given = "setInputShape", tuple(shape)
        if name not in self._engine._inputs:
            return self._refused(what, f"Given invalid tensor name: {name}")
        built = self._engine._shapes[name]
        if len(given) != len(built) or any(f not in {-1, g} for f, g in zip(built, given, strict=True)):
            return self._refused(what, f"Static dimension mismatch while setting input shape for {name}")
        limits = self._engine._profiles[self._profile].get(name)
        if limits is not None and any(
            not low <= size <= high for low, size, high in zip(limits[0], given, limits[2], strict=True)
        ):
            return self._refused(what, f"Set dimensions {given} of {name} do not satisfy the optimization profile")
        self._shapes[name] = given
        return True

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        if not 0 <= profile_index < len(self._engine._profiles):
            return self._refused("setOptimizationProfileAsync", f"there is no profile {profile_index}")
        if profile_index != self._profile:
            # The strictest reading of what is documented: all that was set is to be set again.
            self._shapes, self._addresses = self._engine._fixed(), {}
        self._profile = profile_index
        return True

    def set_tensor_address(self, name: str, memory: int) -> bool:
        if name not in self._engine._names:
            return self._refused("setTensorAddress", f"Given invalid tensor name: {name}")
        self._addresses[name] = memory
        return True

    def get_tensor_address(self, name: str) -> int:
        return self._addresses.get(name, 0)

    def set_output_allocator(self, name: str, output_allocator: IOutputAllocator | None) -> bool:
        if name not in self._engine._names or name in self._engine._inputs:
            return self._refused("setOutputAllocator", f"{name} is no output")
        self._allocators[name] = output_allocator
        return True

    def get_output_allocator(self, name: str) -> IOutputAllocator | None:
        return self._allocators.get(name)

    def infer_shapes(self) -> list[str]:
        return [name for name in self._engine._inputs if name not in self._shapes]

    def get_tensor_shape(self, name: str) -> Dims:
        if name not in self._engine._names:
            self._refused("getTensorShape", f"Given invalid tensor name: {name}")
            return Dims()
        built = self._engine._shapes[name]
        if name in self._engine._inputs:
            return Dims(self._shapes.get(name, built))
        if self.infer_shapes():
            return Dims(built)
        return Dims(self._engine._output_shape(name, self._shapes))

    def get_max_output_size(self, name: str) -> int:
        if name in self._engine._inputs or name not in self._engine._names or self.infer_shapes():
            return -1
        limits = self._engine._profiles[self._profile]
        largest = {**self._shapes, **{name: tuple(shapes[2]) for name, shapes in limits.items()}}
        size = int(np.dtype(held(self._engine._types[name])).itemsize)
        shape = self._engine._output_shape(name, largest)
        if -1 in shape:  # an upper bound for what only the run can tell
            most = max(int(np.prod(given)) for given in largest.values())
            return size * most * max(len(shape), 1) * 8
        return size * int(np.prod(shape))

    def _missing(self) -> str | None:
        """Why there can be no run yet."""
        if names := self.infer_shapes():
            return f"input shapes are not set: {', '.join(names)}"
        for name in self._engine._names:
            empty = name in self._shapes and 0 in self._shapes[name]
            if not self._addresses.get(name) and self._allocators.get(name) is None and not empty:
                return f"Address is not set for tensor {name}. Call setTensorAddress first"
        if self._engine._missing:
            return f"the engine has no weights yet: refit {self._engine._missing[0]}"
        return None

    def execute_async_v3(self, stream_handle: int) -> bool:
        if (reason := self._missing()) is not None:
            return self._refused("enqueueV3", reason)
        types = self._engine._types
        feeds = {
            name: read(self._addresses.get(name, 0), types[name], self._shapes[name]) for name in self._engine._inputs
        }
        try:
            found = self._engine._computation.run(feeds)
        except Exception as failure:  # onnxruntime's own: a true context would return False as well
            return self._refused("enqueueV3", f"the run failed: {failure}")
        for name, array in found.items():
            self._put(name, laid(array, types[name]), stream_handle)
        return True

    def _put(self, name: str, array: Any, stream: int) -> None:
        allocator, address = self._allocators.get(name), self._addresses.get(name, 0)
        if allocator is not None:
            size = max(array.nbytes, 1)
            if hasattr(allocator, "reallocate_output_async"):
                address = allocator.reallocate_output_async(name, address, size, 256, stream)
            else:
                address = allocator.reallocate_output(name, address, size, 256)
            allocator.notify_shape(name, Dims(array.shape))
        if address and array.nbytes:
            ctypes.memmove(address, array.ctypes.data, array.nbytes)
