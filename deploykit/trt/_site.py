"""Where a node of a graph stands: the types, dims and constants that it sees, and how a problem with it is told."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import onnx

from deploykit.graphs import subgraphs
from deploykit.quantize._constants import Constants
from deploykit.quantize._graph import name_of, uses
from deploykit.trt.limits import HALVES, Limits


@dataclass(frozen=True)
class Problem:
    """Something about a file that TensorRT does not take; names are empty where it is about the whole file."""

    node: str
    op_type: str
    sentence: str
    severity: Literal["refuse", "warn"] = "refuse"


def precision_name(precision: str) -> str:
    """``float32`` of ``fp32``."""
    return {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}.get(precision, precision)


@dataclass(frozen=True)
class Site:
    """One graph with what is known of the values in sight: their types and dims, ONNX's own, and their numbers."""

    graph: onnx.GraphProto
    typed: onnx.GraphProto
    opset: int
    table: Limits
    precision: str
    constants: Constants
    types: Mapping[str, int]
    dims: Mapping[str, tuple[int | None, ...]]
    used: frozenset[str]

    @classmethod
    def outermost(
        cls, graph: onnx.GraphProto, typed: onnx.GraphProto, opset: int, table: Limits, precision: str
    ) -> Site:
        """The graph of a model; ``typed`` is the same with inferred types."""
        types, dims = _known(graph, typed)
        return cls(graph, typed, opset, table, precision, Constants(graph, opset), types, dims, frozenset(uses(graph)))

    def nodes(self) -> Iterator[tuple[onnx.NodeProto, list[Site]]]:
        """Each node with the graphs inside it."""
        for node, typed_node in zip(self.graph.node, self.typed.node, strict=True):
            yield node, [self._inner(*pair) for pair in zip(subgraphs(node), subgraphs(typed_node), strict=True)]

    def _inner(self, graph: onnx.GraphProto, typed: onnx.GraphProto) -> Site:
        types, dims = _known(graph, typed)
        constants = Constants(graph, self.opset, outer=self.constants)
        return Site(
            graph,
            typed,
            self.opset,
            self.table,
            self.precision,
            constants,
            {**self.types, **types},
            {**self.dims, **dims},
            frozenset(uses(graph)),
        )

    def problem(self, node: onnx.NodeProto, text: str, severity: Literal["refuse", "warn"] = "refuse") -> Problem:
        """``<operator> <node> <text>.``"""
        return Problem(name_of(node), node.op_type, f"{node.op_type} {name_of(node)} {text}.", severity)

    def half(self, name: str) -> str:
        """``float16`` or ``bfloat16`` where a value is that, else nothing."""
        return HALVES.get(self.types.get(name, 0), "")

    def number(self, name: str) -> int | None:
        """A constant of one element as a whole number."""
        value = self.constants.value(name) if name else None
        return int(value.item()) if value is not None and value.size == 1 else None

    def is_static(self, name: str) -> bool:
        """Whether every dim of a value is known."""
        return name in self.dims and None not in self.dims[name]


def _known(graph: onnx.GraphProto, typed: onnx.GraphProto) -> tuple[dict[str, int], dict[str, tuple[int | None, ...]]]:
    types: dict[str, int] = {}
    dims: dict[str, tuple[int | None, ...]] = {}
    for value in (*typed.input, *typed.value_info, *typed.output):
        tensor = value.type.tensor_type
        if tensor.elem_type:
            types[value.name] = tensor.elem_type
        if tensor.HasField("shape"):
            sizes = tensor.shape.dim
            dims[value.name] = tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in sizes)
    for stored in graph.initializer:
        types[stored.name], dims[stored.name] = stored.data_type, tuple(stored.dims)
    return types, dims
