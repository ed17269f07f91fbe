"""Turns a float32 graph into a float16 or bfloat16 one, recurrence and all.

Written here because the converter of onnxruntime puts the Casts of a Scan's body outside of it, clamps weights that
float16 cannot hold, and extends ``sys.path`` when it is imported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx.inliner
from onnx import TensorProto, helper, numpy_helper

from deploykit.errors import ExportError
from deploykit.export._opset import STANDARD, inferred
from deploykit.graphs import subgraphs

if TYPE_CHECKING:
    from deploykit.types import Array

_FLOAT = TensorProto.FLOAT
# Counting in float16 ends at 2048, and long sums lose their small terms: these stay float32, between Casts.
_EXACT = {"CumSum", "Range"}
# The attribute that says which dtype an operator makes, and whether it makes float32 where it does not say.
_MAKERS = {
    **{"Cast": ("to", False), "DequantizeLinear": ("output_dtype", False)},
    **dict.fromkeys(("Bernoulli", "EyeLike", "RandomNormalLike", "RandomUniformLike"), ("dtype", False)),
    **dict.fromkeys(("RandomNormal", "RandomUniform", "SequenceEmpty"), ("dtype", True)),
    **dict.fromkeys(("BlackmanWindow", "HammingWindow", "HannWindow", "MelWeightMatrix"), ("output_datatype", True)),
}


@dataclass(frozen=True)
class Form:
    """A float of 16 bits: its number in ONNX, its name, and where its numbers end.

    Where an operator takes float32 or float16, ``lacks`` says whether it does not take this one for all that; ``ort``
    that onnxruntime shall run the result, which takes a detour around an error of its own.
    """

    kind: int
    name: str
    end: str
    lacks: Callable[[onnx.NodeProto], bool] = lambda node: False
    ort: bool = True


FLOAT16 = Form(TensorProto.FLOAT16, "float16", "±65504")


def to_half(model: onnx.ModelProto, keep_io: bool = True, form: Form = FLOAT16) -> onnx.ModelProto:
    """The model in float16, or another ``form``; ``model`` itself stays as it is.

    Names and dims of inputs and outputs stay. With ``keep_io`` their dtypes do too: a Cast stands at each. What ONNX
    does not define for float16 runs in float32, between Casts as well.

    Raises:
        ExportError: a weight lies beyond float16's range, or a value has no known type; the message names it.
    """
    if model.functions:
        half: onnx.ModelProto = onnx.inliner.inline_local_functions(model)
    else:
        half = onnx.ModelProto()
        half.CopyFrom(model)
    opsets = {_domain(entry.domain): entry.version for entry in half.opset_import}
    conversion = _Conversion(form, opsets, set(_names(half.graph)))
    conversion.note_readers(half.graph)
    conversion.whole(half.graph, inferred(half), keep_io)
    return half


@dataclass
class _Scope:
    """What the nodes of one graph see. Every float32 value becomes float16 under its own name, but for ``renamed``."""

    floats: set[str] = field(default_factory=set)
    known: set[str] = field(default_factory=set)
    renamed: dict[str, str] = field(default_factory=dict)
    # Values that are at hand as float32, too or only, and under which name.
    as_float: dict[str, str] = field(default_factory=dict)

    def inside(self, graph: onnx.GraphProto, typed: onnx.GraphProto) -> _Scope:
        """The scope of a graph within: the same, but for the names that it gives to values of its own."""
        own = set(_own(graph))
        types = dict(_types(typed))
        return _Scope(
            (self.floats - own) | {name for name, floating in types.items() if floating},
            self.known | set(types),
            {name: new for name, new in self.renamed.items() if name not in own},
            {name: new for name, new in self.as_float.items() if name not in own},
        )


@dataclass
class _Conversion:
    form: Form
    opsets: Mapping[str, int]
    taken: set[str]
    # Values that something reads as float16; a constant that only float32 readers have stays as it is.
    half_read: set[str] = field(default_factory=set)

    def note_readers(self, graph: onnx.GraphProto) -> None:
        self.half_read |= {value.name for value in graph.output}
        for node in graph.node:
            self.half_read |= {name for index, name in enumerate(node.input) if not self._stays(node, index)}
            for inner in subgraphs(node):
                self.note_readers(inner)

    def whole(self, graph: onnx.GraphProto, typed: onnx.GraphProto, keep_io: bool) -> None:
        """Convert the outermost graph in place, with its interface or, to keep that, between Casts."""
        scope = _Scope().inside(graph, typed)
        before: list[onnx.NodeProto] = []
        after: list[onnx.NodeProto] = []
        interface = {value.name: _is_float(value.type) for value in (*graph.input, *graph.output)}
        kept = {name for name, floating in interface.items() if keep_io and floating}
        inputs = {value.name for value in graph.input}
        for value in graph.input:
            if value.name in kept:
                scope.as_float[value.name] = value.name
                if value.name in self.half_read:
                    scope.renamed[value.name] = self._fresh(f"{value.name}_half")
                    before.append(self._cast(value.name, scope.renamed[value.name], self.form.kind))
        for value in graph.output:
            if value.name in kept - inputs:
                scope.renamed[value.name] = self._fresh(f"{value.name}_half")
                after.append(self._cast(scope.renamed[value.name], value.name, _FLOAT))
        self._graph(graph, typed, scope, kept)
        nodes = [*before, *graph.node, *after]
        del graph.node[:]
        graph.node.extend(nodes)

    def _graph(self, graph: onnx.GraphProto, typed: onnx.GraphProto, scope: _Scope, kept: set[str]) -> None:
        given = {value.name for value in graph.input}
        for tensor in graph.initializer:
            if tensor.data_type != _FLOAT or tensor.name in kept & given:
                continue
            if tensor.name in self.half_read:
                _halve(tensor, tensor.name, self.form)
                tensor.name = scope.renamed.get(tensor.name, tensor.name)
            else:
                scope.as_float[tensor.name] = tensor.name
        nodes: list[onnx.NodeProto] = []
        for node, typed_node in zip(graph.node, typed.node, strict=True):
            for inner, typed_inner in zip(subgraphs(node), subgraphs(typed_node), strict=True):
                self._graph(inner, typed_inner, scope.inside(inner, typed_inner), set())
            nodes += self._node(node, scope)
        del graph.node[:]
        graph.node.extend(nodes)
        # A value that is float32 only is a constant of this graph: its own readers know its type.
        for value in (*graph.input, *graph.output, *graph.value_info):
            if value.name not in kept and scope.as_float.get(value.name) != value.name:
                _retype(value.type, self.form)
        for value in graph.output:
            if value.name not in kept:
                value.name = scope.renamed.get(value.name, value.name)

    def _node(self, node: onnx.NodeProto, scope: _Scope) -> list[onnx.NodeProto]:
        """The node, rewritten, between the Casts that it needs."""
        unknown = [name for name in node.output if name and name not in scope.known]
        if unknown:
            raise ExportError(
                f"the graph has {node.op_type} ({node.name or unknown[0]}), and ONNX cannot tell the dtype of its "
                f"output {unknown[0]}: export the model as fp32."
            )
        if node.op_type == "Constant" and not self.half_read & set(node.output):
            scope.as_float |= {name: name for name in node.output if name in scope.floats}
            return [node]
        before, after = [], []
        made = [(index, name) for index, name in enumerate(node.output) if name in scope.floats]
        stays = [name for index, name in made if self._stays(node, index, of_output=True)]
        if len(made) > len(stays):
            _make_halves(node, self.form)
        for index, name in enumerate(node.input):
            if name in scope.floats and self._stays(node, index):
                if name not in scope.as_float:
                    scope.as_float[name] = self._fresh(f"{name}_float")
                    before.append(self._cast(scope.renamed.get(name, name), scope.as_float[name], _FLOAT))
                node.input[index] = scope.as_float[name]
            else:
                node.input[index] = scope.renamed.get(name, name)
        for index, name in enumerate(node.output):
            node.output[index] = scope.renamed.get(name, name)
            if name in stays:
                scope.as_float[name] = self._fresh(f"{name}_float")
                after.append(self._cast(scope.as_float[name], node.output[index], self.form.kind))
                node.output[index] = scope.as_float[name]
        return [*before, node, *after]

    def _stays(self, node: onnx.NodeProto, index: int, of_output: bool = False) -> bool:
        """Whether what a node reads or makes there, if it is float32, has to stay so."""
        domain = _domain(node.domain)
        if not domain and (node.op_type in _EXACT or (self.form.ort and _crashes(node)) or self.form.lacks(node)):
            return True
        try:
            schema = onnx.defs.get_schema(node.op_type, self.opsets.get(domain, 1), domain)
        except onnx.defs.SchemaError:
            return True
        formal = schema.outputs if of_output else schema.inputs
        return not any("tensor(float16)" in kind for kind in formal[min(index, len(formal) - 1)].types)

    def _cast(self, source: str, target: str, dtype: int) -> onnx.NodeProto:
        name = self._fresh(f"{source}/Cast")
        return helper.make_node("Cast", [source], [target], name=name, to=dtype)

    def _fresh(self, wanted: str) -> str:
        name, number = wanted, 1
        while name in self.taken:
            number += 1
            name = f"{wanted}_{number}"
        self.taken.add(name)
        return name


def _crashes(node: onnx.NodeProto) -> bool:
    """Whether onnxruntime on x86 may crash while it loads this node in float16: it may from 1.24 to 1.32 at least.

    It joins a Transpose that moves the first axis to the end, or next to it, with a MatMul by a constant weight, and
    leaves a broken node behind (https://github.com/microsoft/onnxruntime/issues/28392). Just so does a recurrent layer
    with ``batch_first`` come before a Linear. Between Casts of its own the Transpose is not joined.
    """
    if node.op_type != "Transpose":
        return False
    perm = next((list(attribute.ints) for attribute in node.attribute if attribute.name == "perm"), [])
    last = len(perm) - 1
    return last >= 2 and perm in ([*range(1, last), 0, last], [*range(1, last + 1), 0])


def _make_halves(node: onnx.NodeProto, form: Form) -> None:
    """Have an operator that chooses its dtype, and has chosen float32, make the other."""
    attributes = {attribute.name: attribute for attribute in node.attribute}
    if node.op_type in _MAKERS:
        name, by_default = _MAKERS[node.op_type]
        if name in attributes and attributes[name].i == _FLOAT:
            attributes[name].i = form.kind
        elif name not in attributes and by_default:
            node.attribute.append(helper.make_attribute(name, form.kind))
    elif node.op_type in ("Constant", "ConstantOfShape"):
        if not attributes and node.op_type == "ConstantOfShape":
            node.attribute.append(helper.make_attribute("value", numpy_helper.from_array(np.zeros(1, np.float32))))
        for name in ("value_float", "value_floats"):
            if name in attributes:
                value = np.asarray(helper.get_attribute_value(attributes[name]), np.float32)
                node.attribute[0].CopyFrom(helper.make_attribute("value", numpy_helper.from_array(value)))
        _halve(node.attribute[0].t, node.name or node.output[0], form)


def _halve(tensor: onnx.TensorProto, name: str, form: Form) -> None:
    """Rewrite a tensor in 16 bits, in place."""
    if tensor.data_location == TensorProto.EXTERNAL:
        raise ExportError(f"the values of {name} lie in a file of their own: load the model together with them.")
    values: Array = numpy_helper.to_array(tensor)
    content, infinite = _float16(values) if form.kind == TensorProto.FLOAT16 else _bfloat16(values)
    lost = infinite & np.isfinite(values)
    if lost.any():
        raise ExportError(
            f"{name} holds {values[lost].flat[0]:.6g}, and {form.name} ends at {form.end}: export the model as fp32."
        )
    tensor.ClearField("float_data")
    tensor.data_type = form.kind
    tensor.raw_data = content


def _float16(values: Array) -> tuple[bytes, Array]:
    """The bytes of an array in float16, and where they are infinite."""
    with np.errstate(over="ignore", under="ignore"):
        halves = values.astype("<f2")
    return halves.tobytes(), np.isinf(halves)


def _bfloat16(values: Array) -> tuple[bytes, Array]:
    """The bytes of an array in bfloat16, rounded to the nearest, ties to even; and where they are infinite."""
    bits = values.astype("<f4").view("<u4")
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1)).astype(np.uint32)) >> 16
    # A NaN whose low bits alone say so would round to infinity.
    rounded = np.where(np.isnan(values), (bits >> 16) | 0x40, rounded).astype("<u2")
    return rounded.tobytes(), (rounded & 0x7FFF) == 0x7F80


def _domain(domain: str) -> str:
    return "" if domain in STANDARD else domain


def _is_float(kind: onnx.TypeProto) -> bool:
    """Whether it is float32, or a sequence or an optional value of that."""
    if kind.HasField("sequence_type"):
        return _is_float(kind.sequence_type.elem_type)
    if kind.HasField("optional_type"):
        return _is_float(kind.optional_type.elem_type)
    return bool(kind.tensor_type.elem_type == _FLOAT)


def _retype(kind: onnx.TypeProto, form: Form) -> None:
    if kind.HasField("sequence_type"):
        _retype(kind.sequence_type.elem_type, form)
    elif kind.HasField("optional_type"):
        _retype(kind.optional_type.elem_type, form)
    elif kind.tensor_type.elem_type == _FLOAT:
        kind.tensor_type.elem_type = form.kind


def _types(graph: onnx.GraphProto) -> Iterator[tuple[str, bool]]:
    """The names of a graph's values whose type is known, and whether that is float32."""
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.WhichOneof("value"):
            yield value.name, _is_float(value.type)
    for tensor in graph.initializer:
        yield tensor.name, tensor.data_type == _FLOAT


def _own(graph: onnx.GraphProto) -> Iterable[str]:
    """The names that a graph itself gives to values."""
    yield from (value.name for value in graph.input)
    yield from (tensor.name for tensor in graph.initializer)
    for node in graph.node:
        yield from node.output


def _names(graph: onnx.GraphProto) -> Iterable[str]:
    """Every name in a graph and in those within, of values and of nodes."""
    yield from _own(graph)
    for node in graph.node:
        yield node.name
        for inner in subgraphs(node):
            yield from _names(inner)
