"""The walk that every scheme makes over a graph: each weighted node is read, replaced or left, and put on record."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Generic, TypeVar

import onnx
from onnx.inliner import inline_local_functions

from deploykit.coverage import RECURRENT, CoverageRow
from deploykit.errors import QuantizationError
from deploykit.graphs import subgraphs
from deploykit.quantize import QuantizeOptions
from deploykit.quantize._constants import Constants
from deploykit.quantize._graph import Builder, Names, is_standard, name_of, prune, set_inputs, set_nodes, uses
from deploykit.quantize._linear import read_gather
from deploykit.quantize._source import check_source, float_row, opset_of, other_rows

_WEIGHTED = RECURRENT | {"MatMul", "Gemm", "Conv", "ConvTranspose"}

Found = TypeVar("Found")


def copied(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy to work on, without local functions.

    Raises:
        QuantizationError: the model is quantized already, or is not in float32.
    """
    check_source(model)
    copy = onnx.ModelProto()
    copy.CopyFrom(inline_local_functions(model) if model.functions else model)
    if copy.ir_version < 4:
        # Until then every initializer had to be listed as an input too, and could not be fed for all that.
        stored = {tensor.name for tensor in copy.graph.initializer}
        inputs = [info for info in copy.graph.input if info.name not in stored]
        set_inputs(copy.graph, inputs)
        copy.ir_version = 4
    prune(copy.graph)  # what nobody reads shall not be counted
    return copy


@dataclass(frozen=True)
class Scope:
    """A graph with what is known around it.

    ``place`` names the node that it lies inside, empty for a model's own; ``repeated`` says that a loop is around it.
    """

    graph: onnx.GraphProto
    opset: int
    constants: Constants
    names: Names
    place: str = ""
    repeated: bool = False

    @classmethod
    def of(cls, model: onnx.ModelProto) -> Scope:
        """The outermost graph of a model."""
        opset = opset_of(model)
        return cls(model.graph, opset, Constants(model.graph, opset), Names(model.graph))

    def inner(self, graph: onnx.GraphProto, node: onnx.NodeProto) -> Scope:
        """A graph that ``node`` holds: the body of a Scan or Loop, or a branch of an If."""
        constants = Constants(graph, self.opset, outer=self.constants)
        repeated = self.repeated or node.op_type in ("Scan", "Loop")
        return Scope(graph, self.opset, constants, self.names, f"{node.op_type} {name_of(node)!r}", repeated)


class Pass(ABC, Generic[Found]):
    """One walk over the nodes of a graph, which it changes in place. A scheme says how to read and replace a node."""

    def __init__(self, scope: Scope, options: QuantizeOptions, outer: Pass[Found] | None = None) -> None:
        self.scope = scope
        self.options = options
        self.graph = scope.graph
        self.constants = scope.constants
        self.build = Builder(scope.names, "int8", scope.opset)
        if outer is not None:
            # One matrix that several branches use is stored once, outside.
            self.build.share(outer.build)
        self.used = set(uses(scope.graph))
        self._root: Pass[Found] = self if outer is None else outer._root
        self._rows: list[CoverageRow] = []

    @abstractmethod
    def read(self, node: onnx.NodeProto) -> Found | str | None:
        """What to replace, the reason why the node stays in float, or None where it has no weights."""

    @abstractmethod
    def replace(self, node: onnx.NodeProto, found: Found) -> list[CoverageRow]:
        """Add to ``build`` what stands in the node's place now, and say what became of it."""

    def inside(self, scope: Scope) -> Pass[Found] | None:
        """The pass for a graph inside this one; None where such graphs stay as they are."""
        return None

    def storing(self) -> Builder:
        """Where float weights are made from stored ones: in the outermost graph, so that no step does it again."""
        self._root.build.prefix = self.build.prefix
        return self._root.build

    def run(self) -> list[CoverageRow]:
        """Walk, clear away what is dead, and return the rows in graph order."""
        nodes: list[onnx.NodeProto] = []
        for node in self.graph.node:
            for graph in subgraphs(node):
                self._inside(node, graph)
                nodes.extend(self.build.drain())
            nodes.extend(self._node(node))
        set_nodes(self.graph, nodes)
        outermost = self._root is self
        if outermost:
            self.graph.initializer.extend(self.build.initializers)
        prune(self.graph)
        if outermost:
            self._rows += other_rows(self.graph, self._rows)
        return self._rows

    def chosen(self, node: onnx.NodeProto) -> Found | str | None:
        """What ``read`` says, unless the node is excluded by name."""
        named = name_of(node) in self.options.exclude
        try:
            found = self.read(node) if is_standard(node) else None
        except QuantizationError:
            if not named:  # NaN weights, say, of a node that nobody wants quantized
                raise
            return "excluded by name"
        return "excluded by name" if named and found is not None and not isinstance(found, str) else found

    def _node(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """What stands in the node's place now; notes what became of it, if it has weights."""
        found = self.chosen(node)
        if found is None:
            return [node]
        if isinstance(found, str):
            self._rows.append(float_row(self.graph, node, self.constants, found))
            return [node]
        self.build.prefix = f"{name_of(node)}/int8"
        self._rows.extend(self.replace(node, found))
        return self.build.drain()

    def _inside(self, node: onnx.NodeProto, graph: onnx.GraphProto) -> None:
        scope = self.scope.inner(graph, node)
        inner = self.inside(scope)
        if inner is not None:
            self._rows.extend(inner.run())
            return
        self._leave(graph, scope)

    def _leave(self, graph: onnx.GraphProto, scope: Scope) -> None:
        for node in graph.node:
            weighted = node.op_type in _WEIGHTED or (node.op_type == "Gather" and read_gather(node, scope.constants))
            if is_standard(node) and weighted:
                self._rows.append(float_row(graph, node, scope.constants, f"it lies inside {scope.place}"))
            for inner in subgraphs(node):
                self._leave(inner, scope.inner(inner, node))
