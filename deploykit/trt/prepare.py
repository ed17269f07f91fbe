"""What TensorRT is given in a file's place: the same model, in the precision asked for, in the form its parser takes.

Nothing here depends on anything but the file, the precision and the version: a plan without weights is given them again
from a second preparation.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper
from onnx.inliner import inline_local_functions

from deploykit.coverage import RECURRENT
from deploykit.errors import BuildError, ExportError, QuantizationError
from deploykit.export._half import FLOAT16, Form, to_half
from deploykit.graphs import subgraphs
from deploykit.quantize._graph import Builder, Names, attributes, is_standard, name_of, prune, set_nodes
from deploykit.quantize._pass import Scope
from deploykit.quantize._recurrent import read, replace
from deploykit.quantize._source import opset_of
from deploykit.trt._recurrent import STATES, no_form, unnamed
from deploykit.trt._site import Problem
from deploykit.trt.check import of_precision, problems
from deploykit.trt.limits import HALF_LSTM, HALVES, Limits, limits
from deploykit.trt.options import Precision

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from deploykit.trt.library import Version

    Floats = NDArray[np.float32]

#: The oldest opset that a layer can be written out in.
_SCANNED = 13
_FORMS = {"fp16": (FLOAT16.kind, FLOAT16.name, FLOAT16.end), "bf16": (TensorProto.BFLOAT16, "bfloat16", "±3.39e38")}


def prepared(model: onnx.ModelProto, precision: Precision, version: Version) -> onnx.ModelProto:
    """The file that a version of TensorRT builds ``model`` from; ``model`` itself, with its weights in it, stays.

    Inputs and outputs keep their names, dims and dtypes. fp16 and bf16 cast a float32 file; int8 takes a file of
    ``deploykit quantize --int8 --target trt`` as it is.

    Raises:
        BuildError: the file is of another precision, or the version cannot take it; each reason is a line.
    """
    result = onnx.ModelProto()
    result.CopyFrom(inline_local_functions(model) if model.functions else model)
    _require(of_precision(result, version, precision))
    table = limits(version)
    try:
        opset_of(result)
    except QuantizationError as error:
        text = "the file is of an opset before 14, or of none, which deploykit does not prepare for TensorRT"
        raise BuildError(f"{text}: export the model again with --opset {min(table.opsets[1], 20)}.") from error
    if precision in _FORMS:
        result = _halved(result, precision, table)
    _mend(Scope.of(result), table, {})
    _require(problems(result, version, precision))
    return result


def saved(model: onnx.ModelProto, folder: Path) -> Path:
    """A file of the model in ``folder``: TensorRT reads it from there, as no message of protobuf exceeds 2 GiB."""
    file, large = folder / "model.onnx", model.ByteSize() > 2**31 - 2**20
    onnx.save_model(model, file, save_as_external_data=large, location="model.data")
    return file


def _require(found: Iterable[Problem]) -> None:
    refused = list(dict.fromkeys(problem.sentence for problem in found if problem.severity == "refuse"))
    if refused:
        raise BuildError("\n".join(refused))


def _halved(model: onnx.ModelProto, precision: Precision, table: Limits) -> onnx.ModelProto:
    """The model in 16 bits; as it is where it is in these already."""
    kind, name, end = _FORMS[precision]
    lacks = _Lacks(table, {"fp16": "FP16", "bf16": "BF16"}[precision])
    if any(tensor.data_type == kind for tensor in _stored(model.graph)):
        return model
    try:
        _write_out(Scope.of(model), name, table)
        return to_half(model, form=Form(kind, name, end, lacks, ort=False))
    except ExportError as error:
        # A mask of -1e9 is what float16 most often cannot hold, and bfloat16 can.
        way = "build it with --precision fp32" + (" or bf16" if precision == "fp16" else "")
        text = str(error).replace("export the model as fp32", way)
        raise BuildError(text) from error


@dataclass(frozen=True)
class _Lacks:
    """Whether an operator does not take a type, in this version; as a plain function it could not be compared."""

    table: Limits
    type: str

    def __call__(self, node: onnx.NodeProto) -> bool:
        return self.type not in self.table.types(node.op_type)


def _write_out(scope: Scope, half: str, table: Limits) -> None:
    """Make each recurrent layer that the parser has no form for in 16 bits a Scan of plain operators, in place."""
    build, used, nodes = Builder(scope.names, "trt", scope.opset), _used(scope.graph), []
    for node in scope.graph.node:
        for inner in subgraphs(node):
            _write_out(scope.inner(inner, node), half, table)
        if not _needs(node, half, table):
            nodes.append(node)
            continue
        try:
            layer = read(node, scope.constants, used)
        except QuantizationError as error:
            raise BuildError(str(error)) from error
        if isinstance(layer, str) or scope.opset < _SCANNED:
            why = layer if isinstance(layer, str) else f"it is of opset {scope.opset}, export it with --opset 17"
            raise BuildError(
                f"{node.op_type} {name_of(node)} cannot be built in {half} ({why}): build it with --precision fp32."
            )
        build.prefix = f"{name_of(node)}/{half}"
        replace(build, layer, _FloatProducts(layer.x))
        nodes += build.drain()
    if build.initializers:
        set_nodes(scope.graph, nodes)
        scope.graph.initializer.extend(build.initializers)
        prune(scope.graph)


def _needs(node: onnx.NodeProto, half: str, table: Limits) -> bool:
    if node.op_type not in RECURRENT or not is_standard(node) or (node.op_type == "LSTM" and table.version < HALF_LSTM):
        return False  # an LSTM that the version does not have is refused, not gone round
    lengths = len(node.input) > 4 and node.input[4]
    return bool(lengths or no_form(node.op_type, half, table.version))


@dataclass(frozen=True)
class _FloatProducts:
    """A layer's products in float: the input's for the whole sequence at once."""

    sized: str
    #: An engine's shapes follow from those of its inputs, not from their numbers.
    trims: bool = False

    def project(self, build: Builder, matrix: Floats, bias: Floats) -> str:
        product = build.op("MatMul", [self.sized, build.constant(matrix, "w")], "product")
        return build.op("Add", [product, build.constant(bias, "bias")], "x")

    def recurrent(self, matrix: Floats) -> None:
        return None


def _mend(scope: Scope, table: Limits, outer: Mapping[str, int]) -> None:
    """Bring a graph, and those inside it, into the form that the parser takes without changing what it computes.

    ``outer`` are the types of the weights stored around it.
    """
    build, nodes = Builder(scope.names, "trt", scope.opset), []
    kinds = {**outer, **{tensor.name: tensor.data_type for tensor in scope.graph.initializer}}
    for node in scope.graph.node:
        for inner in subgraphs(node):
            _mend(scope.inner(inner, node), table, kinds)
        if is_standard(node):
            build.prefix = f"{name_of(node)}/trt"
            _fold(scope, build, node, table)
            if node.op_type in RECURRENT:
                _name_outputs(scope.names, node)
                _give_states(build, node, scope, kinds)
            if node.op_type == "ConstantOfShape":
                _expand(build, node, table)
        nodes += [*build.drain(), node]
    set_nodes(scope.graph, nodes)
    scope.graph.initializer.extend(build.initializers)


def _fold(scope: Scope, build: Builder, node: onnx.NodeProto, table: Limits) -> None:
    """Store what the parser wants as a constant, and is one in the end, but is computed in the file."""
    made = {name: one.op_type for one in scope.graph.node for name in one.output}
    for index in table.rule(node.op_type).get("constant", ()):
        name = node.input[index] if index < len(node.input) else ""
        if made.get(name, "Constant") != "Constant":
            value = scope.constants.value(name)
            if value is not None:
                node.input[index] = build.constant(value, "constant")


def _name_outputs(names: Names, node: onnx.NodeProto) -> None:
    for index in unnamed(node):
        node.output[index] = names.fresh(f"{name_of(node)}/{('Y', 'Y_h', 'Y_c')[index]}")


def _give_states(build: Builder, node: onnx.NodeProto, scope: Scope, kinds: Mapping[str, int]) -> None:
    """Zeros of the right type for the states that a layer in 16 bits starts from."""
    kind = kinds.get(node.input[1]) or _kind(scope, node.input[1])
    if kind not in HALVES:
        return
    missing = [index for index in range(5, 5 + STATES[node.op_type]) if not [*node.input, *[""] * 8][index]]
    if not missing:
        return
    hidden = attributes(node).get("hidden_size") or _hidden(scope, node)
    directions = 2 if attributes(node).get("direction") == b"bidirectional" else 1
    batch = build.op("Gather", [build.op("Shape", [node.input[0]], "shape"), build.ints(1)], "batch", axis=0)
    shape = build.op("Concat", [build.ints(directions), batch, build.ints(hidden)], "initial_shape", axis=0)
    zero = TensorProto(name=build.fresh("zero"), data_type=kind, raw_data=b"\0\0")
    build.initializers.append(zero)
    zeros = build.op("Expand", [zero.name, shape], "initial")
    node.input.extend([""] * (max(missing) + 1 - len(node.input)))
    for index in missing:
        node.input[index] = zeros


def _kind(scope: Scope, name: str) -> int:
    """The type of a constant that is no initializer of this graph; 0 where it is none."""
    value = scope.constants.value(name)
    if value is None:
        return 0
    return int(onnx.helper.np_dtype_to_tensor_dtype(value.dtype))


def _hidden(scope: Scope, node: onnx.NodeProto) -> int:
    value = scope.constants.value(node.input[2])
    if value is None:
        raise BuildError(
            f"{node.op_type} {name_of(node)} says nowhere how wide it is: export the model again, with hidden_size."
        )
    return int(value.shape[2])


def _expand(build: Builder, node: onnx.NodeProto, table: Limits) -> None:
    """Make a ConstantOfShape of a type that the version's does not take an Expand, which takes it."""
    value = attributes(node).get("value") or numpy_helper.from_array(np.zeros(1, np.float32))
    if table.name(value.data_type) in table.types("ConstantOfShape"):
        return
    scalar = TensorProto()
    scalar.CopyFrom(value)
    scalar.name = build.fresh("value")
    del scalar.dims[:]
    build.initializers.append(scalar)
    shape = node.input[0]
    del node.attribute[:], node.input[:]
    node.op_type = "Expand"
    node.input.extend([scalar.name, shape])


def _used(graph: onnx.GraphProto) -> set[str]:
    used = {value.name for value in graph.output}
    for node in graph.node:
        used.update(node.input)
        for inner in subgraphs(node):
            used |= _used(inner)
    return used


def _stored(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        for inner in subgraphs(node):
            yield from _stored(inner)
