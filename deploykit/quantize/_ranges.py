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

_SAME = frozenset({"Cast", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})


def ranges_of(model: onnx.ModelProto, inputs: Sequence[TensorSpec]) -> dict[str, ValueRange]:
    """Ranges by input name, for those that are known."""
    integers = {spec.name: spec for spec in inputs if spec.dtype.startswith("int")}
    found: dict[str, ValueRange] = {}
    _visit(model.graph, {name: name for name in integers}, {}, found, _time_of(inputs, integers))
    return found


def _visit(
    graph: onnx.GraphProto, aliases: dict[str, str], rows: dict[str, int], found: dict[str, ValueRange], time: str
) -> None:
    """``aliases`` are values that hold an input's numbers, ``rows`` sizes of stored tables, both from outside too."""
    aliases = dict(aliases)
    rows = rows | {tensor.name: int(tensor.dims[0]) for tensor in graph.initializer if tensor.dims}
    for node in graph.node:
        if node.op_type in _SAME and node.input and node.input[0] in aliases:
            aliases[node.output[0]] = aliases[node.input[0]]
        elif node.op_type == "Gather" and node.input[1] in aliases and node.input[0] in rows:
            if attributes(node).get("axis", 0) == 0:
                _narrow(found, aliases[node.input[1]], ValueRange(0, rows[node.input[0]] - 1))
        elif node.op_type in RECURRENT and len(node.input) > 4 and node.input[4] in aliases and time:
            found[aliases[node.input[4]]] = ValueRange(1, time)
        for inner in subgraphs(node):
            _visit(inner, aliases, rows, found, time)


def _narrow(found: dict[str, ValueRange], name: str, wanted: ValueRange) -> None:
    """The smaller of two ranges: an input may index several tables."""
    before = found.get(name)
    if before is None or (isinstance(before.high, int) and isinstance(wanted.high, int) and wanted.high < before.high):
        found[name] = wanted


def _time_of(inputs: Sequence[TensorSpec], integers: dict[str, TensorSpec]) -> str:
    """The dim that sequences run along: ``time``, or the first dynamic one that the lengths do not have themselves."""
    rows = {dim for spec in integers.values() if len(spec.dims) == 1 for dim in spec.dynamic}
    dims = [dim for spec in inputs for dim in spec.dynamic if dim not in rows]
    return "time" if "time" in dims else next(iter(dims), "")
