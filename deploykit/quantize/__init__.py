"""What a quantization scheme is. Each lies in a file of its own here, defines ``SCHEME``, and is found by its name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deploykit.coverage import Coverage

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class QuantizeOptions:
    """``exclude``: names of nodes to leave in float."""

    exclude: frozenset[str] = frozenset()


class Scheme(ABC):
    """A way to make an int8 graph from a float one."""

    #: Artifact formats that it takes.
    accepts: frozenset[str] = frozenset({"onnx"})
    #: The format that it makes.
    produces: str = "onnx-int8"

    @abstractmethod
    def apply(self, model: onnx.ModelProto, options: QuantizeOptions) -> tuple[onnx.ModelProto, Coverage]:
        """A quantized copy of ``model``, which is left as it was, and what became of each of its weighted nodes.

        Raises:
            QuantizationError: the graph is not one that it can quantize.
        """
