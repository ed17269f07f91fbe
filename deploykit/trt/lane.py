"""One execution context of an engine and the memory that it works in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deploykit.errors import BackendFailedError
from deploykit.trt.dtypes import fetch, store
from deploykit.trt.engine import sizes

if TYPE_CHECKING:
    import tensorrt as trt

    from deploykit.trt.cuda import Device, Memory, Pinned
    from deploykit.trt.engine import Engine, Port
    from deploykit.types import Array, Feeds

    Shape = tuple[int, ...]


@dataclass(frozen=True)
class Held:
    """Where an input or output lies that stays on the GPU, and the shape that it must have."""

    address: int
    shape: Shape


class Lane:
    """Runs an engine for one set of inputs at a time. Everything is called with the device's context current."""

    def __init__(self, engine: Engine, device: Device) -> None:
        self._engine = engine
        self._device = device
        self._context: trt.IExecutionContext = engine.context()
        # Where each input and output lies: on the GPU, and in page-locked memory before or behind it.
        ports = {**engine.inputs, **engine.outputs}
        self._memory: dict[str, Memory] = {name: device.memory() for name in ports}
        self._pinned: dict[str, Pinned] = {name: device.pinned() for name in ports}
        self._allocators: dict[str, Any] = {}
        self._bound: tuple[object, ...] | None = None
        self._addresses: dict[str, int] = {}
        self._shapes: dict[str, Shape] = {}

    @property
    def open_sizes(self) -> list[str]:
        """The outputs whose sizes only the run itself tells, of the shapes that were bound last."""
        return [name for name, shape in self._shapes.items() if min(shape, default=0) < 0]

    def bind(self, profile: int, shapes: Mapping[str, Shape], feeds: Feeds, held: Mapping[str, Held]) -> None:
        """Set the shapes and all addresses for a run.

        Raises:
            BackendFailedError: TensorRT takes none of this, or a held output would have another shape.
        """
        hosts = [port for port in self._engine.inputs.values() if port.on_host]
        bound = (profile, *sorted(shapes.items()))
        if bound != self._bound or hosts:
            self._bound = None  # until all of it is set: a failure half-way leaves nothing to rely on
            self._set_shapes(profile, shapes, hosts, feeds)
            self._bound = bound
        for name, one in held.items():
            found = self._shapes.get(name, one.shape)
            if found != one.shape:
                raise BackendFailedError(
                    f"the output {name!r} has the shape {found}, and the state that it is taken for has {one.shape}: "
                    "these two do not make a stream."
                )
        for port in (*self._engine.inputs.values(), *self._engine.outputs.values()):
            if port.name in held:
                self._address(port.name, held[port.name].address)
            elif port.name not in self._allocators and not (port.on_host and port.ranges):
                self._address(port.name, self._own(port, shapes))

    def run(self, feeds: Feeds, held: Mapping[str, Held], launch: Callable[[], None]) -> None:
        """Copy the inputs in, and let ``launch`` put the work on the stream, with the time of it taken.

        Raises:
            BackendFailedError: an input cannot be given as the engine takes it, or the work cannot be begun.
        """
        for port in self._engine.inputs.values():
            if not port.on_host and port.name not in held:
                staged = self._pinned[port.name].array(feeds[port.name].shape, port.held)
                store(feeds[port.name], staged, port.kind, port.name)
                self._device.upload(self._addresses[port.name], staged)
        self._device.begin()
        launch()
        self._device.end()

    def enqueue(self) -> None:
        """Let TensorRT put its work on the stream.

        Raises:
            BackendFailedError: it refuses.
        """
        for allocator in self._allocators.values():
            allocator.error = None
        done = self._context.execute_async_v3(self._device.stream)
        # Why an allocator had no memory says more than what TensorRT makes of it.
        for allocator in self._allocators.values():
            if allocator.error is not None:
                raise allocator.error
        if not done:
            raise BackendFailedError(self._engine.failed("TensorRT failed"))

    def results(self, dtypes: Mapping[str, str]) -> dict[str, Array]:
        """Wait for the run, and return those outputs that ``dtypes`` names, as new arrays of these dtypes."""
        staged: dict[str, Array] = {}
        for name in dtypes:
            port = self._engine.outputs[name]
            allocator = self._allocators.get(name)
            shape = self._shapes[name] if allocator is None else allocator.shape
            staged[name] = self._pinned[name].array(shape, port.held)
            if allocator is not None:
                self._device.download(staged[name], allocator.memory.reserve(staged[name].nbytes))
            elif not port.on_host:
                self._device.download(staged[name], self._addresses[name])
        self._device.synchronize()
        return {name: fetch(array, self._engine.outputs[name].kind, dtypes[name]) for name, array in staged.items()}

    def close(self) -> None:
        """Release the context, then the memory that it worked in."""
        del self._context
        self._allocators.clear()
        self._device.drop(list(self._memory.values()), list(self._pinned.values()))

    def _set_shapes(self, profile: int, shapes: Mapping[str, Shape], hosts: list[Port], feeds: Feeds) -> None:
        context = self._context
        if context.active_optimization_profile != profile:
            self._need(context.set_optimization_profile_async(profile, self._device.stream), f"profile {profile}")
            self._device.synchronize()
            self._addresses.clear()  # whether they outlive a change of the profile, TensorRT does not say
        for name, shape in shapes.items():
            self._need(context.set_input_shape(name, shape), f"the shape {shape} of the input {name!r}")
        for port in hosts:
            values = self._pinned[port.name].array(shapes[port.name], port.held)
            store(feeds[port.name], values, port.kind, port.name)
            # Set each time: that is how TensorRT knows that the values changed.
            self._addresses.pop(port.name, None)
            self._address(port.name, values.ctypes.data)
        lacking = context.infer_shapes()
        if lacking:
            raise BackendFailedError(
                f"TensorRT cannot tell the outputs' shapes: {', '.join(lacking)} is not set enough."
            )
        self._shapes = {name: sizes(context.get_tensor_shape(name)) for name in self._engine.outputs}
        for name in self.open_sizes:
            if name not in self._allocators:
                self._allocators[name] = _allocator(self._memory[name])
                self._need(
                    context.set_output_allocator(name, self._allocators[name]), f"memory for the output {name!r}"
                )

    def _own(self, port: Port, shapes: Mapping[str, Shape]) -> int:
        """Our memory for an input or output of the bound shapes."""
        import math

        import numpy as np

        shape = shapes[port.name] if port.ranges else self._shapes[port.name]
        if port.on_host:
            return int(self._pinned[port.name].array(shape, port.held).ctypes.data)
        return self._memory[port.name].reserve(math.prod(shape) * np.dtype(port.held).itemsize)

    def _address(self, name: str, address: int) -> None:
        if self._addresses.get(name) != address:
            self._need(self._context.set_tensor_address(name, address), f"memory for {name!r}")
            self._addresses[name] = address

    def _need(self, taken: bool, what: str) -> None:
        if not taken:
            raise BackendFailedError(self._engine.failed(f"TensorRT does not take {what}"))


def _allocator(memory: Memory) -> Any:
    """What TensorRT asks for memory for an output whose size is known only while it runs."""
    import tensorrt as trt

    class Allocator(trt.IOutputAllocator):  # type: ignore[misc,unused-ignore] # no type where TensorRT has no stubs
        def __init__(self) -> None:
            trt.IOutputAllocator.__init__(self)
            self.memory = memory
            self.shape: Shape = ()
            self.error: Exception | None = None

        def reallocate_output(self, tensor_name: str, memory: int, size: int, alignment: int) -> int:
            # An exception cannot cross TensorRT: it is kept, and null says that there is no memory.
            try:
                return self.memory.reserve(int(size), in_use=True)
            except Exception as error:
                self.error = error
                return 0

        def reallocate_output_async(
            self,
            tensor_name: str,
            memory: int,
            size: int,
            alignment: int,
            stream: int,
        ) -> int:
            return self.reallocate_output(tensor_name, memory, size, alignment)

        def notify_shape(self, tensor_name: str, shape: Any) -> None:
            self.shape = sizes(shape)

    return Allocator()
