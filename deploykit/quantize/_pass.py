"""The walk that every scheme makes over a graph: each weighted node is read, replaced or left, and put on record."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Generic, TypeVar

import onnx
from onnx.inliner import inline_local_functions

from deploykit.coverage import RECURRENT, CoverageRow
from deploykit.quantize import QuantizeOptions
from deploykit.quantize._constants import Constants
from deploykit.quantize._graph import Builder, Names, is_standard, name_of, prune, set_nodes, uses
from deploykit.quantize._linear import read_gather
from deploykit.quantize._source import check_source, float_row, inner_nodes, opset_of

_WEIGHTED = RECURRENT | {"MatMul", "Gemm", "Conv", "ConvTranspose"}

NO_CONV = "convolutions stay in float: int8 costs most of a model's accuracy there"

Found = TypeVar("Found")


def copied(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy to work on, without local functions.

    Raises:
        QuantizationError: the model is quantized already, or is not in float32.
    """
    check_source(model)
    copy = onnx.ModelProto()
    copy.CopyFrom(inline_local_functions(model) if model.functions else model)
    return copy


class Pass(ABC, Generic[Found]):
    """One walk over the nodes of a graph, which it changes in place. A scheme says how to read and replace a node."""

    def __init__(self, model: onnx.ModelProto, options: QuantizeOptions) -> None:
        self.opset = opset_of(model)
        self.graph = model.graph
        self.constants = Constants(model.graph, self.opset)
        self.build = Builder(Names(model.graph), "int8", self.opset)
        self.used = set(uses(model.graph))
        self._exclude = options.exclude
        self._rows: list[CoverageRow] = []

    @abstractmethod
    def read(self, node: onnx.NodeProto) -> Found | str | None:
        """What to replace, the reason why the node stays in float, or None where it has no weights."""

    @abstractmethod
    def replace(self, node: onnx.NodeProto, found: Found) -> list[CoverageRow]:
        """Add to ``build`` what stands in the node's place now, and say what became of it."""

    def run(self) -> list[CoverageRow]:
        """Walk, clear away what is dead, and return the rows in graph order."""
        nodes: list[onnx.NodeProto] = []
        for node in self.graph.node:
            nodes.extend(self._node(node))
            for inner, graph, place in inner_nodes(node):
                self._leave_inner(inner, graph, place)
        set_nodes(self.graph, nodes)
        self.graph.initializer.extend(self.build.initializers)
        prune(self.graph)
        return self._rows

    def chosen(self, node: onnx.NodeProto) -> Found | str | None:
        """What ``read`` says, unless the node is excluded by name."""
        found = self.read(node) if is_standard(node) else None
        excluded = name_of(node) in self._exclude and found is not None and not isinstance(found, str)
        return "excluded by name" if excluded else found

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

    def _leave_inner(self, node: onnx.NodeProto, graph: onnx.GraphProto, place: str) -> None:
        constants = Constants(graph, self.opset, outer=self.constants)
        weighted = node.op_type in _WEIGHTED or (node.op_type == "Gather" and read_gather(node, constants))
        if is_standard(node) and weighted:
            self._rows.append(float_row(graph, node, constants, f"it lies inside {place}"))
