"""What a graph's integer inputs mean: indices of a table, or lengths of the sequences of a recurrent layer.

A file of somebody else comes with no word on that. Noise of 0 and 1 would look up two rows of a table, and a length of
0 is more than some kernels take.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx

from deploykit.coverage import RECURRENT
from deploykit.graphs import subgraphs
from deploykit.quantize._graph import attributes
from deploykit.types import TensorSpec, ValueRange

#: What hands on the numbers of its first input, or some of them.
_SAME = frozenset(
    {
        *("Cast", "Clip", "Expand", "Flatten", "Gather", "GatherElements", "Identity", "Reshape", "Slice", "Split"),
        *("Squeeze", "Tile", "TopK", "Transpose", "Unsqueeze"),
    }
)
_COMPARE = frozenset({"Less", "LessOrEqual", "Greater", "GreaterOrEqual"})


def ranges_of(model: onnx.ModelProto, inputs: Sequence[TensorSpec]) -> dict[str, ValueRange]:
    """Ranges by input name, for those that are known."""
    integers = {spec.name: spec for spec in inputs if spec.dtype.startswith("int")}
    walk = _Walk(_time_of(inputs, integers), {name for name, spec in integers.items() if len(spec.dims) == 1})
    walk.visit(model.graph, {name: name for name in integers}, {})
    return walk.found


class _Walk:
    """``rows``: names of the inputs that have one number for each row, which a comparison shows to be lengths."""

    def __init__(self, time: str, rows: set[str]) -> None:
        self.found: dict[str, ValueRange] = {}
        self._time = time
        self._rows = rows

    def visit(self, graph: onnx.GraphProto, aliases: dict[str, str], tables: dict[str, int]) -> None:
        """``aliases``: values that hold an input's numbers; ``tables``: sizes of stored ones; both from outside too."""
        aliases = dict(aliases)
        tables = tables | {tensor.name: int(tensor.dims[0]) for tensor in graph.initializer if tensor.dims}
        for node in graph.node:
            if node.op_type == "Constant" and node.attribute and node.attribute[0].t.dims:
                tables[node.output[0]] = int(node.attribute[0].t.dims[0])
            self._node(node, aliases, tables)
            if node.op_type in _SAME and node.input and node.input[0] in aliases:
                # TopK's second output holds places, not numbers.
                aliases |= dict.fromkeys(node.output[: 1 if node.op_type == "TopK" else None], aliases[node.input[0]])
            for inner in subgraphs(node):
                self.visit(inner, aliases, tables)

    def _node(self, node: onnx.NodeProto, aliases: dict[str, str], tables: dict[str, int]) -> None:
        if node.op_type == "Gather" and node.input[1] in aliases and node.input[0] in tables:
            if attributes(node).get("axis", 0) == 0:
                self._narrow(aliases[node.input[1]], ValueRange(0, tables[node.input[0]] - 1))
        elif node.op_type in RECURRENT and len(node.input) > 4 and node.input[4] in aliases:
            self._length(aliases[node.input[4]])
        elif node.op_type in _COMPARE:
            for name in {aliases[one] for one in node.input if one in aliases} & self._rows:
                self._length(name)

    def _length(self, name: str) -> None:
        if self._time:
            self.found[name] = ValueRange(1, self._time)

    def _narrow(self, name: str, wanted: ValueRange) -> None:
        """The smaller of two ranges: an input may index several tables."""
        before = self.found.get(name)
        smaller = before is not None and isinstance(before.high, int) and isinstance(wanted.high, int)
        if before is None or (smaller and wanted.top({}) < before.top({})):
            self.found[name] = wanted


def _time_of(inputs: Sequence[TensorSpec], integers: dict[str, TensorSpec]) -> str:
    """The dim that sequences run along: ``time``, or the first dynamic one that the lengths do not have themselves."""
    rows = {dim for spec in integers.values() if len(spec.dims) == 1 for dim in spec.dynamic}
    dims = [dim for spec in inputs for dim in spec.dynamic if dim not in rows]
    return "time" if "time" in dims else next(iter(dims), "")
