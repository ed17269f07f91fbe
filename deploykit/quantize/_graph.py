"""Building blocks for graph surgery: fresh names, new nodes, uses of a value, and the clearing away of what is dead."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from deploykit.graphs import subgraphs

if TYPE_CHECKING:
    from numpy.typing import NDArray

MICROSOFT = "com.microsoft"


def walk(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Every node of a graph and of the graphs inside it, outer ones first."""
    for node in graph.node:
        yield node
        for inner in subgraphs(node):
            yield from walk(inner)


def is_standard(node: onnx.NodeProto) -> bool:
    """Whether a node's operator is one of ai.onnx."""
    return node.domain in ("", "ai.onnx")


def name_of(node: onnx.NodeProto) -> str:
    """A node's name, or that of its first output, for people and for new names."""
    return str(node.name or next(filter(None, node.output), "") or node.op_type)


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """A node's attributes as Python values (strings as bytes)."""
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def uses(graph: onnx.GraphProto) -> Counter[str]:
    """How often each value is read, inner graphs included; a graph output counts as a reading."""
    count: Counter[str] = Counter(output.name for output in graph.output)
    for node in graph.node:
        count.update(name for name in node.input if name)
        for inner in subgraphs(node):
            count.update(uses(inner))
    return count


def prune(graph: onnx.GraphProto) -> None:
    """Remove nodes whose results nobody reads, then initializers and value infos that are left over."""
    count = uses(graph)
    kept = []
    for node in reversed(graph.node):
        if any(count[name] for name in node.output if name):
            kept.append(node)
            continue
        count.subtract(name for name in node.input if name)
        for inner in subgraphs(node):
            count.subtract(uses(inner))
    kept.reverse()
    set_nodes(graph, kept)
    # The default of an input is part of the interface, read or not.
    inputs = {info.name for info in graph.input}
    _replace(graph.initializer, [one for one in graph.initializer if count[one.name] > 0 or one.name in inputs])
    _replace(graph.sparse_initializer, [one for one in graph.sparse_initializer if count[one.values.name] > 0])
    alive = {name for node in kept for name in node.output}
    _replace(graph.value_info, [info for info in graph.value_info if info.name in alive])


def set_inputs(graph: onnx.GraphProto, inputs: Iterable[onnx.ValueInfoProto]) -> None:
    """Make these a graph's inputs; some may be its own."""
    _replace(graph.input, inputs)


def set_nodes(graph: onnx.GraphProto, nodes: Iterable[onnx.NodeProto]) -> None:
    """Make these a graph's nodes; some may be its own."""
    _replace(graph.node, nodes)


def _replace(field: Any, items: Iterable[Any]) -> None:
    copies = []
    for item in items:
        copies.append(type(item)())
        copies[-1].CopyFrom(item)
    del field[:]
    field.extend(copies)


class Names:
    """Hands out names that no value, node or graph of a model has yet."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._taken: set[str] = set()
        self._add(graph)

    def _add(self, graph: onnx.GraphProto) -> None:
        self._taken.add(graph.name)
        self._taken.update(info.name for info in (*graph.input, *graph.output, *graph.value_info))
        self._taken.update(tensor.name for tensor in graph.initializer)
        for node in graph.node:
            self._taken.update((node.name, *node.input, *node.output))
            for inner in subgraphs(node):
                self._add(inner)

    def fresh(self, wish: str) -> str:
        """``wish``, or ``wish_1``, ``wish_2``, … if it is taken."""
        name, number = wish, 0
        while name in self._taken:
            number += 1
            name = f"{wish}_{number}"
        self._taken.add(name)
        return name


class Builder:
    """Collects the nodes and initializers of one graph (or of a Scan body), named after ``prefix``."""

    def __init__(self, names: Names, prefix: str, opset: int) -> None:
        self.names = names
        self.prefix = prefix
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self._constants: dict[bytes, str] = {}

    def share(self, outer: Builder) -> None:
        """Keep initializers with those of a builder for a graph around this one, which sees them too."""
        self.initializers = outer.initializers
        self._constants = outer._constants

    def inner(self) -> Builder:
        """A builder for a body: its own nodes and initializers, the same pool of names."""
        return Builder(self.names, f"{self.prefix}/step", self.opset)

    def fresh(self, wish: str) -> str:
        """A new value name under the prefix."""
        return self.names.fresh(f"{self.prefix}/{wish}")

    def constant(self, array: NDArray[Any], wish: str) -> str:
        """The name of an initializer with that value; equal ones are stored once."""
        key = _digest(array)
        if key not in self._constants:
            name = self.fresh(wish)
            self.initializers.append(numpy_helper.from_array(np.asarray(array, order="C"), name))
            self._constants[key] = name
        return self._constants[key]

    def has(self, array: NDArray[Any]) -> bool:
        """Whether there is an initializer with that value."""
        return _digest(array) in self._constants

    def ints(self, *values: int) -> str:
        """A 1-D int64 constant."""
        return self.constant(np.array(values, np.int64), "ints")

    def scalar(self, value: float) -> str:
        """A float32 scalar constant."""
        return self.constant(np.array(value, np.float32), "scalar")

    def op(self, op_type: str, inputs: Sequence[str], wish: str, domain: str = "", **attrs: Any) -> str:
        """Add a node with one output and return that output's name."""
        return self.ops(op_type, inputs, [self.fresh(wish)], domain, **attrs)[0]

    def ops(
        self, op_type: str, inputs: Sequence[str], outputs: Sequence[str], domain: str = "", **attrs: Any
    ) -> list[str]:
        """Add a node with the given output names."""
        node = helper.make_node(op_type, list(inputs), list(outputs), name=outputs[0], domain=domain, **attrs)
        self.nodes.append(node)
        return list(outputs)

    def rename(self, old: str, new: str) -> None:
        """Give a value that was made here, and is read nowhere yet, the name that the graph around expects."""
        for node in self.nodes:
            for index, name in enumerate(node.output):
                if name == old:
                    node.output[index] = new

    def drain(self) -> list[onnx.NodeProto]:
        """The nodes collected since the last call, in order."""
        nodes, self.nodes = self.nodes, []
        return nodes

    def split(self, value: str, sizes: Sequence[int], wishes: Sequence[str], axis: int = -1) -> list[str]:
        """Split along an axis into parts of the given sizes."""
        return self.ops("Split", [value, self.ints(*sizes)], [self.fresh(wish) for wish in wishes], axis=axis)

    def reduce(self, op_type: str, value: str, wish: str, axis: int = -1) -> str:
        """ReduceMax or ReduceSum over an axis, which is kept; the axes became an input in opset 18 and 13."""
        if self.opset >= {"ReduceSum": 13}.get(op_type, 18):
            return self.op(op_type, [value, self.ints(axis)], wish, keepdims=1)
        return self.op(op_type, [value], wish, axes=[axis], keepdims=1)


def _digest(array: NDArray[Any]) -> bytes:
    return hashlib.sha256(f"{array.dtype} {array.shape} ".encode() + array.tobytes()).digest()
