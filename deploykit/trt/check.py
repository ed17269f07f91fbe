"""Holds a graph against the documented limits of TensorRT's ONNX parser, before TensorRT sees it.

The parser stops at its first errors, in words of its own source; and some things it takes without a word and computes
something else (``layout=1``, a negative axis of a Scan). Here each node is named, with what to do.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Literal

import onnx
from onnx import TensorProto
from onnx.inliner import inline_local_functions

from deploykit import graphs, kernels
from deploykit.errors import first_line
from deploykit.graphs import subgraphs
from deploykit.quantize._graph import attributes, is_standard, name_of
from deploykit.trt import _quantized, _recurrent
from deploykit.trt._site import Problem, Site, precision_name
from deploykit.trt.limits import BFLOAT16, HALVES, INT64, Limits, limits, told

if TYPE_CHECKING:
    from deploykit.trt.library import Version

__all__ = ["Problem", "problems"]

_QUANTIZE = (
    "make the int8 file for TensorRT from the float one: deploykit quantize --int8 --target trt --calibration FILE.npz"
)
#: Operators of onnxruntime's int8 that belong to ONNX all the same.
_INT8_ONLY = {"ConvInteger", "DynamicQuantizeLinear", "MatMulInteger", "QLinearConv", "QLinearMatMul"}
#: Which inputs and outputs a type of the table is that of, where it is not the type of the first input.
_TYPED: dict[str, tuple[tuple[int, ...], bool]] = {
    "Where": ((1, 2), True),
    "Cast": ((0,), True),
    "CastLike": ((0,), True),
    "ConstantOfShape": ((), True),
    "Constant": ((), True),
    "EyeLike": ((), True),
    "If": ((), True),
    "OneHot": ((2,), True),
}


def problems(model: onnx.ModelProto, version: Version, precision: str) -> list[Problem]:
    """Everything about a file that a version's parser does not take, or takes for something else, in graph order.

    ``model`` is what TensorRT shall be given, that is what ``prepare.prepared`` returns, weights included;
    ``precision`` is fp32, fp16, bf16 or int8. What is refused would not build, or would build into something else.
    """
    if model.functions:
        model = inline_local_functions(model)
    table = limits(version)
    found = [*_of_opset(model, table), *of_precision(model, version, precision), *_of_interface(model.graph, table)]
    try:
        typed = graphs.inferred(model)
    except onnx.shape_inference.InferenceError as error:
        return [*found, _whole(f"the graph contradicts itself ({first_line(error)}): export the model again")]
    opset = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)
    site = Site.outermost(model.graph, typed, opset, table, precision)
    return [*found, *_inside(site)]


def of_precision(model: onnx.ModelProto, version: Version, precision: str) -> Iterator[Problem]:
    """Whether the file is of the precision that is asked for, and the version has that."""
    kinds = set(_kinds(model.graph))
    name = precision_name(precision)
    wanted = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}.get(precision)
    if precision == "bf16" and version < BFLOAT16:
        yield _whole(f"{told(version)} has no bfloat16: choose --precision fp16 or fp32, or TensorRT 10")
    for kind, half in HALVES.items():
        if kind in kinds and kind != wanted:
            way = "fp16" if half == "float16" else "bf16"
            yield _whole(f"the file is {half} already, not {name}: say --precision {way}, or give the float32 file")
    held = {*_stored(model.graph), *(value.type.tensor_type.elem_type for value in model.graph.input)}
    if wanted is not None and TensorProto.DOUBLE in held and TensorProto.FLOAT not in held:
        # Nothing casts float64, so that the engine would be a float32 one, called after the precision asked for.
        text = f"the file is float64, which TensorRT computes in float32, not {name}"
        yield _whole(f"{text}: say --precision fp32, or export the model in float32")
    yield from _of_quantization(model.graph, precision)


def _of_quantization(graph: onnx.GraphProto, precision: str) -> Iterator[Problem]:
    floats = "give the float32 file that it was made from"
    operators = {node.op_type for node in _nodes(graph)}
    foreign = next((node for node in _nodes(graph) if _is_int8_of_onnxruntime(node)), None)
    if foreign is not None:
        named = f"{foreign.op_type} {name_of(foreign)}"
        what = f"the file is int8 for onnxruntime, with operators that TensorRT does not have ({named})"
    elif "QuantizeLinear" in operators:
        if precision != "int8":
            name = precision_name(precision)
            yield _whole(f"the file is quantized to int8, not {name}: say --precision int8, or {floats}")
        return
    elif "DequantizeLinear" in operators or {TensorProto.INT8, TensorProto.UINT8} & set(_stored(graph)):
        what = "the file only stores its weights in int8, and computes in float"
    elif precision == "int8":
        what = "the file is not quantized, and TensorRT's int8 is QuantizeLinear and DequantizeLinear"
    else:
        return
    yield _whole(f"{what}: {_QUANTIZE if precision == 'int8' else f'{floats}; for int8, {_QUANTIZE}'}")


def _is_int8_of_onnxruntime(node: onnx.NodeProto) -> bool:
    if is_standard(node):
        return node.op_type in _INT8_ONLY
    return node.domain == kernels.DOMAIN or any(part in node.op_type for part in ("Quant", "Integer", "QLinear"))


def _whole(text: str, severity: Literal["refuse", "warn"] = "refuse") -> Problem:
    """A problem of the whole file."""
    return Problem("", "", f"{text}.", severity)


def _of_opset(model: onnx.ModelProto, table: Limits) -> Iterator[Problem]:
    low, high = table.opsets
    for entry in model.opset_import:
        if entry.domain in ("", "ai.onnx") and not low <= entry.version <= high:
            text = f"the file is of opset {entry.version}, and {told(table.version)} reads {low} to {high}"
            yield _whole(f"{text}: export the model again with --opset {min(high, 20)}")


def _of_interface(graph: onnx.GraphProto, table: Limits) -> Iterator[Problem]:
    asked = {value.name for value in graph.input} - {tensor.name for tensor in graph.initializer}
    for value in (*graph.input, *graph.output):
        kind = value.type.tensor_type.elem_type
        if value.type.WhichOneof("value") != "tensor_type" or table.name(kind) is None:
            name = TensorProto.DataType.Name(kind).lower() if kind else "no tensor"
            text = f"{value.name} is {name}, and TensorRT has no such inputs and outputs"
            yield _whole(f"{text}: cast it to a type of TensorRT's outside of the model")
        elif kind == TensorProto.DOUBLE:
            yield _whole(f"{value.name} is float64, which TensorRT computes in float32", "warn")
        elif value.name in asked and not value.type.tensor_type.HasField("shape"):
            text = f"{value.name} has no dims in the file, so that nobody can say which shapes to build for"
            yield _whole(f"{text}: export the model again with them")
        elif kind == TensorProto.INT64 and table.version < INT64:
            yield _whole(f"{value.name} is int64, which {told(table.version)} reads as int32", "warn")


def _inside(site: Site) -> Iterator[Problem]:
    for node, inner in site.nodes():
        yield from _node(site, node)
        for one in inner:
            yield from _inside(one)


def _node(site: Site, node: onnx.NodeProto) -> Iterator[Problem]:
    table, kind = site.table, node.op_type
    if not is_standard(node):
        yield site.problem(node, _foreign(node))
        return
    types = table.types(kind)
    if not types:
        yield site.problem(node, _unknown(kind, table))
        return
    yield from _of_types(site, node, types)
    yield from _of_rule(site, node)
    yield from _special(site, node)
    if table.sized_by_data(kind):
        text = "makes an output whose size depends on the numbers in it: the engine tells it only after it has run"
        yield site.problem(node, text, "warn")


def _foreign(node: onnx.NodeProto) -> str:
    if node.domain == kernels.DOMAIN:
        return f"is an operator of deploykit's own for onnxruntime: {_QUANTIZE}"
    if _is_int8_of_onnxruntime(node):
        return f"is an int8 operator of onnxruntime's own ({node.domain}): {_QUANTIZE}"
    return (
        f"is an operator of {node.domain}, which TensorRT does not have: export the model with operators of ONNX alone"
    )


def _unknown(kind: str, table: Limits) -> str:
    if kind in _INT8_ONLY:
        return f"is int8 in a form that TensorRT does not read: {_QUANTIZE}"
    first = table.first(kind)
    if first is not None:
        return f"is there from TensorRT {first} on, not in {told(table.version)}: use that, or change the model"
    return f"is an operator that {told(table.version)} does not take: change the model so that it needs none"


def _of_types(site: Site, node: onnx.NodeProto, types: frozenset[str]) -> Iterator[Problem]:
    for value in dict.fromkeys(_typed_values(site, node)):
        kind = site.types.get(value, 0)
        name = site.table.name(kind)
        if kind and (name is None or name not in types):
            what = TensorProto.DataType.Name(kind).lower()
            if name == "UINT8":
                advice = "TensorRT has uint8 in inputs and outputs of the model alone: cast it before"
            else:
                advice = f"it takes {', '.join(sorted(types))}: cast {value} before"
            yield site.problem(node, f"reads or makes {value} as {what} in {told(site.table.version)}: {advice}")
        rank = len(site.dims.get(value, ()))
        if rank > site.table.most_dims:
            text = f"has {value} with {rank} dims, and TensorRT ends at {site.table.most_dims}: reshape it"
            yield site.problem(node, text)


def _typed_values(site: Site, node: onnx.NodeProto) -> Iterator[str]:
    """The values whose type is the one that the table is about."""
    if node.op_type in _TYPED:
        indices, outputs = _TYPED[node.op_type]
        yield from (node.input[index] for index in indices if index < len(node.input))
        yield from node.output if outputs else ()
        return
    if node.op_type in ("Loop", "Scan"):
        yield from (name for name in (*node.input[2 if node.op_type == "Loop" else 0 :], *node.output) if name)
        return
    try:
        schema = onnx.defs.get_schema(node.op_type, site.opset, "")
    except onnx.defs.SchemaError:
        yield from node.input[:1]
        return
    variable = schema.inputs[0].type_str if schema.inputs else ""
    for values, formals in ((node.input, schema.inputs), (node.output, schema.outputs)):
        for index, name in enumerate(values):
            if name and formals[min(index, len(formals) - 1)].type_str == variable:
                yield name


def _of_rule(site: Site, node: onnx.NodeProto) -> Iterator[Problem]:
    rule, given = site.table.rule(node.op_type), attributes(node)
    for name, allowed in rule.get("attributes", {}).items():
        value = given.get(name, allowed[0])
        value = value.decode() if isinstance(value, bytes) else value
        if value not in allowed:
            what = f"{name}={value}, and TensorRT computes as with {name}={' or '.join(map(str, allowed))}"
            yield site.problem(node, f"has {what}: {_ATTRIBUTE_ADVICE.get(name, 'change the model')}")
    for name in rule.get("ones", ()):
        if any(value != 1 for value in given.get(name, ())):
            yield site.problem(node, f"has {name} other than 1, which TensorRT does not take: change the model")
    for index in rule.get("constant", ()):
        if index < len(node.input) and node.input[index] and not site.constants.is_known(node.input[index]):
            text = f"computes {node.input[index]} at run time, and TensorRT wants it when it builds: make it constant"
            yield site.problem(node, text)
    for index in rule.get("static", ()):
        if not site.is_static(node.input[index]):
            yield site.problem(
                node, f"needs a fixed shape of {node.input[index]} in TensorRT: write its dims as numbers"
            )
    for name in node.output[rule.get("first_outputs", len(node.output)) :]:
        if name and name in site.used:
            yield site.problem(node, f"makes {name}, which TensorRT does not: change the model so that it needs none")
    for index, end in rule.get("below", {}).items():
        value = site.number(node.input[int(index)]) if int(index) < len(node.input) else None
        if value is not None and value >= end:
            yield site.problem(
                node, f"has {node.input[int(index)]} = {value}, and TensorRT ends before {end}: take fewer"
            )


_ATTRIBUTE_ADVICE = {
    "layout": "transpose around it, as deploykit's export does",
    "input_forget": "change the model",
    "training_mode": "export the model in eval mode",
}


def _special(site: Site, node: onnx.NodeProto) -> Iterable[Problem]:
    if node.op_type in ("RNN", "GRU", "LSTM"):
        return _recurrent.problems(site, node)
    if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
        return _quantized.problems(site, node)
    special = {"Loop": _loop, "Scan": _scan, "If": _if, "Gemm": _gemm}.get(node.op_type)
    return special(site, node) if special else ()


def _loop(site: Site, node: onnx.NodeProto) -> Iterator[Problem]:
    (body,) = subgraphs(node)
    states = len(node.input) - 2
    collects = len(body.output) > 1 + states
    trips = site.number(node.input[0]) if node.input[0] else None
    if collects and (not node.input[0] or (trips is not None and trips >= 2**31 - 1)):
        text = "collects an output of each turn without a number of turns, so that TensorRT cannot tell its size"
        yield site.problem(node, f"{text}: give the loop a trip count")
    elif collects and len(node.input) > 1 and node.input[1] and site.number(node.input[1]) != 1:
        text = "may end before its trip count: what it collects then has a wrong size in TensorRT"
        yield site.problem(node, text, "warn")


def _scan(site: Site, node: onnx.NodeProto) -> Iterator[Problem]:
    given = attributes(node)
    if len(node.input) == given["num_scan_inputs"]:
        yield site.problem(node, "carries no state, which TensorRT's Scan must: write its body without the Scan")
    if any(axis < 0 for name in ("scan_input_axes", "scan_output_axes") for axis in given.get(name, ())):
        yield site.problem(node, "counts an axis from the end, which TensorRT reads as another: count from the front")


def _if(site: Site, node: onnx.NodeProto) -> Iterator[Problem]:
    then, other = subgraphs(node)
    shared = {value.name for value in then.output} & {value.name for value in other.output}
    if shared:
        text = f"makes {sorted(shared)[0]} under one name in both branches, which TensorRT cannot tell apart"
        yield site.problem(node, f"{text}: give each its own")


def _gemm(site: Site, node: onnx.NodeProto) -> Iterator[Problem]:
    given = attributes(node)
    scaled = [name for name in ("alpha", "beta") if given.get(name, 1.0) != 1.0]
    if site.half(node.input[0]) and scaled:
        text = f"has {scaled[0]}={given[scaled[0]]:g}, which TensorRT multiplies with in float32"
        yield site.problem(node, f"{text}: fold it into the weights")


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for inner in subgraphs(node):
            yield from _nodes(inner)


def _kinds(graph: onnx.GraphProto) -> Iterator[int]:
    """The types that a graph says that it has: of its interface, its weights, its constants and its casts."""
    yield from (value.type.tensor_type.elem_type for value in (*graph.input, *graph.output))
    yield from (tensor.data_type for tensor in graph.initializer)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t.data_type
            elif node.op_type == "Cast" and attribute.name == "to":
                yield attribute.i
        for inner in subgraphs(node):
            yield from _kinds(inner)


def _stored(graph: onnx.GraphProto) -> Iterator[int]:
    """The types of a graph's weights."""
    yield from (tensor.data_type for tensor in graph.initializer)
    for node in graph.node:
        for inner in subgraphs(node):
            yield from _stored(inner)
