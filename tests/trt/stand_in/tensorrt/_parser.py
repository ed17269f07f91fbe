"""The ONNX parser: it takes what TensorRT takes, as far as tests need to see it refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto
from onnx.external_data_helper import load_external_data_for_model

from . import _model
from ._api import NUMBERS, Bound, exposed, made
from ._enums import ErrorCode
from ._log import ILogger, error
from ._network import INetworkDefinition

#: Operators of ONNX itself that TensorRT has no importer for.
REFUSED = frozenset(
    {
        "DynamicQuantizeLinear",
        "MatMulInteger",
        "QLinearMatMul",
        "QLinearConv",
        "ConvInteger",
        "BitShift",
        "Det",
        "ImageDecoder",
        "MaxUnpool",
        "RegexFullMatch",
        "SequenceAt",
        "SequenceConstruct",
        "SplitToSequence",
        "StringConcat",
        "StringNormalizer",
        "StringSplit",
        "TfIdfVectorizer",
    }
)


@exposed
class ParserError(Bound):
    def _begin(self, code: str, desc: str, node: int = -1, where: onnx.NodeProto | None = None) -> None:
        super()._begin()
        self._code, self._desc, self._node = getattr(ErrorCode, code, ErrorCode.UNSUPPORTED_NODE), desc, node
        self._name, self._operator = (where.name, where.op_type) if where is not None else ("", "")

    def code(self) -> Any:
        return self._code

    def desc(self) -> str:
        return self._desc

    def node(self) -> int:
        return self._node

    def node_name(self) -> str:
        return self._name

    def node_operator(self) -> str:
        return self._operator

    def func(self) -> str:
        return "parseNode"

    def file(self) -> str:
        return "ModelImporter.cpp"

    def line(self) -> int:
        return 1

    def local_function_stack(self) -> list[str]:
        return []

    def local_function_stack_size(self) -> int:
        return 0


def failed(why: str) -> ParserError:
    found: ParserError = made(ParserError, "MODEL_DESERIALIZE_FAILED", why)
    return found


def loaded(content: bytes, path: str | None) -> onnx.ModelProto | ParserError:
    """The model with its weights, or why there is none."""
    try:
        model = onnx.load_model_from_string(content)
        load_external_data_for_model(model, str(Path(path).parent) if path else ".")
    except Exception as problem:  # whatever protobuf makes of bytes that are no model
        return failed(f"Failed to parse the model: {problem}")
    return model if model.graph.output else failed("Failed to parse the model: it has no outputs")


def refused(node: onnx.NodeProto) -> str | None:
    """Why TensorRT has nothing for a node."""
    if node.domain not in {"", "ai.onnx"}:
        return "Plugin not found, are the plugin name, version, and namespace correct?"
    if node.op_type in REFUSED:
        return f"No importer registered for op: {node.op_type}. Attempting to import as plugin. Plugin not found"
    layout = next((attribute.i for attribute in node.attribute if attribute.name == "layout"), 0)
    if node.op_type in {"GRU", "LSTM", "RNN"} and layout:
        return "This version of TensorRT does not support the layout attribute"
    return None


def problems(model: onnx.ModelProto) -> list[ParserError]:
    """Of each node that is refused, also inside loops; until 10.0 the parser stopped at the first."""
    found: list[ParserError] = []
    for index, node in enumerate(model.graph.node):
        inner = [node, *(each for a in node.attribute if a.type == a.GRAPH for each in _model.nodes(a.g))]
        for each in inner:
            if (reason := refused(each)) is not None:
                desc = f"In node {index} with name: {each.name} and operator: {each.op_type} (checkSupport): {reason}"
                found.append(made(ParserError, "UNSUPPORTED_NODE", desc, index, each))
    half = {tensor.data_type for graph in _model.graphs(model.graph) for tensor in graph.initializer}
    if NUMBERS < (10,) and TensorProto.BFLOAT16 in half:
        found.append(made(ParserError, "UNSUPPORTED_NODE", "Found unsupported datatype BFLOAT16 in an initializer"))
    return found if NUMBERS >= (10,) else found[:1]


@exposed
class OnnxParser(Bound):
    flags: int

    def __init__(self, network: INetworkDefinition, logger: ILogger) -> None:
        self._begin()
        self._network, self._logger = network, logger
        self.flags = 0
        self._errors: list[ParserError] = []

    def parse(self, model: bytes, path: str | None = None) -> bool:
        found = loaded(model, path)
        if isinstance(found, ParserError):
            errors = [found]
        elif not self._network._explicit:
            why = "The ONNX parser takes networks with an explicit batch dimension only."
            errors = [made(ParserError, "INVALID_VALUE", why)]
        else:
            errors = problems(found)
            if not errors:
                self._network._take(found)
        self._errors += errors
        for each in errors:
            error(each.desc())
        return not errors

    def parse_from_file(self, model: str) -> bool:
        if not Path(model).is_file():
            self._errors.append(made(ParserError, "MODEL_DESERIALIZE_FAILED", f"Failed to open file: {model}"))
            return False
        return bool(self.parse(Path(model).read_bytes(), model))

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, index: int) -> ParserError:
        return self._errors[index]

    def clear_errors(self) -> None:
        self._errors.clear()

    def set_flag(self, flag: Any) -> None:
        self.flags |= 1 << int(flag)

    def clear_flag(self, flag: Any) -> None:
        self.flags &= ~(1 << int(flag))

    def get_flag(self, flag: Any) -> bool:
        return bool(self.flags >> int(flag) & 1)

    def supports_operator(self, op_name: str) -> bool:
        return op_name not in REFUSED
