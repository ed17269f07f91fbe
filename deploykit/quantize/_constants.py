"""Values of a graph that do not depend on its inputs, worked out in NumPy, and bounds on some that do."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import numpy_helper

from deploykit.errors import QuantizationError
from deploykit.quantize._graph import attributes, is_standard

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Operators whose results hold no value that their data input does not hold.
_RELAYOUT = frozenset(
    {
        "Expand",
        "Flatten",
        "Gather",
        "Identity",
        "Reshape",
        "Slice",
        "Split",
        "Squeeze",
        "Tile",
        "Transpose",
        "Unsqueeze",
    }
)
#: Operators that exporters leave between a stored parameter and the node that uses it.
FOLDABLE = _RELAYOUT | {"Add", "Cast", "Concat", "Constant", "ConstantOfShape", "Div", "Mul", "Neg", "Range", "Sub"}
_UNIT = frozenset({"Tanh", "Sigmoid", "Softmax", "HardSigmoid", "Sin", "Cos", "Erf", "Softsign"})


class Constants:
    """Looks up constant values of one graph by name."""

    def __init__(self, graph: onnx.GraphProto, opset: int, outer: Constants | None = None) -> None:
        self._outer = outer
        self._outputs = {info.name for info in graph.output}
        # An initializer that is a graph input too is only a default: the caller may feed another value.
        self._inputs = {info.name for info in graph.input}
        self._stored = {tensor.name: tensor for tensor in graph.initializer if tensor.name not in self._inputs}
        self._producers = {name: node for node in graph.node for name in node.output if name}
        self._known = set(self._stored)
        for node in graph.node:
            if self._folds(node):
                self._known.update(filter(None, node.output))
        self._opset = opset
        self._values: dict[str, NDArray[Any]] = {}

    def is_output(self, name: str) -> bool:
        """Whether a graph gives the value, or an initializer that it is made from, to its caller."""
        outer = self._outer is not None and self._outer.is_output(name)
        return outer or not self._outputs.isdisjoint(self.sources(name))

    def is_known(self, name: str) -> bool:
        """Whether the value is constant, found without working it out."""
        if name in self._known or self._outer is None:
            return name in self._known
        return name not in self._producers and name not in self._inputs and self._outer.is_known(name)

    def value(self, name: str) -> NDArray[Any] | None:
        """The value, or None where it depends on the graph's inputs or on an operator that is not folded."""
        if not self.is_known(name):
            return None
        if name not in self._known:
            return self._outer.value(name) if self._outer else None
        if name not in self._values:
            if name in self._stored:
                self._values[name] = _array(self._stored[name])
            else:
                self._fold(self._producers[name])
        return self._values[name]

    def sources(self, name: str) -> tuple[str, ...]:
        """The initializers (or Constant nodes' outputs) that a constant value is made from."""
        node = self._producers.get(name)
        if node is None or node.op_type == "Constant":
            return (name,)
        found = [source for part in node.input if part for source in self.sources(part)]
        return tuple(dict.fromkeys(found))

    def check_finite(self, name: str) -> None:
        """Raise QuantizationError, naming the initializer, if a constant holds NaN or Inf."""
        for one in (*self.sources(name), name):
            value = self.value(one)
            if value is not None and value.dtype.kind == "f" and not np.isfinite(value).all():
                kind = "NaN" if np.isnan(value).any() else "Inf"
                raise QuantizationError(f"initializer {one!r} holds {kind}: export the model again from sound weights.")

    def bound(self, name: str) -> float:
        """An upper bound of the magnitude of a value's elements, inf where none is known."""
        known, node = self.value(name), self._producers.get(name)
        if known is not None:
            return float(np.abs(known.astype(np.float64)).max(initial=0.0)) if known.dtype.kind in "fiub" else math.inf
        if node is None or not is_standard(node):
            return math.inf
        if node.op_type == "ConstantOfShape":
            fill = attributes(node).get("value")
            return abs(float(_array(fill).item())) if fill is not None else 0.0
        if node.op_type in _RELAYOUT | {"Concat"}:
            return max(self.bound(part) for part in (node.input if node.op_type == "Concat" else node.input[:1]))
        return 1.0 if node.op_type in _UNIT else math.inf

    def _folds(self, node: onnx.NodeProto) -> bool:
        known = all(self.is_known(name) for name in node.input if name)
        return known and node.op_type in FOLDABLE and is_standard(node)

    def _fold(self, node: onnx.NodeProto) -> None:
        from onnx.reference import ReferenceEvaluator

        feeds = {name: self.value(name) for name in node.input if name}
        results = ReferenceEvaluator(node, opsets={"": self._opset}).run(None, feeds)
        for name, result in zip(node.output, results, strict=True):
            self._values[name] = np.asarray(result)


def _array(tensor: onnx.TensorProto) -> NDArray[Any]:
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        raise QuantizationError(f"initializer {tensor.name!r} lies outside the model: load it with its external data.")
    return numpy_helper.to_array(tensor)
