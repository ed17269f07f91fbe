"""A model as PyTorch runs it on a GPU, for ``tests.benchmarks.gpu``. Like that, it was never run on a GPU so far."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import nn

    from deploykit.types import Array


def tensors(outputs: Any) -> Iterable[torch.Tensor]:
    """What a module returned, one tensor after the other: one alone, several, or several by name."""
    if isinstance(outputs, torch.Tensor):
        return (outputs,)
    return outputs.values() if isinstance(outputs, dict) else outputs


class InTorch:
    """The model on the GPU as PyTorch runs it, with buffers that stay: ``call`` is what happens between the events."""

    def __init__(self, module: nn.Module, inputs: list[Array], half: bool, way: str) -> None:
        kind = torch.float16 if half else torch.float32
        self._given = inputs
        self._pinned = [torch.from_numpy(value).to(kind).pin_memory() for value in inputs]
        self._inputs = [value.cuda() for value in self._pinned]
        cuda: Any = torch.cuda  # its classes have no types
        self._begin, self._end = (cuda.Event(enable_timing=True) for _ in range(2))
        self._module = module.to("cuda", kind)
        self._call: Callable[[], Any] = lambda: self._module(*self._inputs)
        if way == "compiled":
            compiled = torch.compile(self._module)
            self._call = lambda: compiled(*self._inputs)
        if way == "graph":
            self._call = self._recorded()

    def _recorded(self) -> Callable[[], Any]:
        cuda: Any = torch.cuda
        stream = cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.inference_mode():
            with torch.cuda.stream(stream):
                for _ in range(3):  # what is allocated or chosen at the first runs must not be recorded
                    self._module(*self._inputs)
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                outputs = self._module(*self._inputs)

        def replay() -> Any:
            graph.replay()
            return outputs

        return replay

    def __call__(self) -> float:
        with torch.inference_mode():
            for buffer, pinned, value in zip(self._inputs, self._pinned, self._given, strict=True):
                pinned.copy_(torch.from_numpy(value))
                buffer.copy_(pinned, non_blocking=True)
            self._begin.record()
            outputs = self._call()
            self._end.record()
            for output in tensors(outputs):
                output.cpu().numpy()
        torch.cuda.synchronize()
        return float(self._begin.elapsed_time(self._end))
