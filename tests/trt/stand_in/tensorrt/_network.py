"""A network: what the parser makes of an ONNX model, a layer for each node."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import _model
from ._api import NUMBERS, Bound, exposed, made
from ._enums import ENUMS, DataType, LayerType, TensorLocation, is_set
from ._values import Dims

if TYPE_CHECKING:
    import onnx

FLAGS = ENUMS["NetworkDefinitionCreationFlag"]
#: Layers by ONNX operator; what is not here is called an ELEMENTWISE layer.
LAYERS = {
    "MatMul": "MATRIX_MULTIPLY",
    "Gemm": "MATRIX_MULTIPLY",
    "Conv": "CONVOLUTION",
    "Cast": "CAST",
    "GRU": "LOOP_OUTPUT",
    "LSTM": "LOOP_OUTPUT",
    "RNN": "LOOP_OUTPUT",
    "Loop": "LOOP_OUTPUT",
    "Scan": "LOOP_OUTPUT",
    "Reshape": "SHUFFLE",
    "Transpose": "SHUFFLE",
    "Squeeze": "SHUFFLE",
    "Unsqueeze": "SHUFFLE",
    "Flatten": "SHUFFLE",
    "Slice": "SLICE",
    "Gather": "GATHER",
    "Concat": "CONCATENATION",
    "Shape": "SHAPE",
    "Softmax": "SOFTMAX",
    "Tanh": "ACTIVATION",
    "Sigmoid": "ACTIVATION",
    "Relu": "ACTIVATION",
    "QuantizeLinear": "QUANTIZE",
    "DequantizeLinear": "DEQUANTIZE",
    "Identity": "IDENTITY",
    "Constant": "CONSTANT",
    "ReduceMean": "REDUCE",
    "ReduceSum": "REDUCE",
    "ReduceMax": "REDUCE",
    "NonZero": "NON_ZERO",
    "Where": "SELECT",
    "LayerNormalization": "NORMALIZATION",
}


def data_type(name: str) -> Any:
    """The version's own type for one of ``_model.TYPES``: before 10.0 there was no int64."""
    return getattr(DataType, "INT32" if name == "INT64" and NUMBERS < (10,) else name)


@exposed
class ITensor(Bound):
    name: str
    dtype: Any
    shape: Dims
    location: Any

    def _begin(self, name: str, kind: str, shape: tuple[int, ...], role: str = "") -> None:
        super()._begin()
        self._kind, self._role = kind, role
        # A value inside a network that is not strongly typed counts as float32 until somebody sets its type.
        untyped = NUMBERS < (10,) and not role and kind in {"HALF", "BF16"}
        self._dtype = DataType.FLOAT if untyped else data_type(kind)
        self._default(name=name, shape=Dims(shape), location=TensorLocation.DEVICE, dtype=self._dtype)

    @property
    def is_network_input(self) -> bool:
        return self._role == "input"

    @property
    def is_network_output(self) -> bool:
        return self._role == "output"

    @property
    def is_shape_tensor(self) -> bool:
        return False

    @property
    def is_execution_tensor(self) -> bool:
        return True


if NUMBERS >= (11,):  # where it can be read alone
    ITensor.dtype = property(lambda self: self._dtype)


@exposed
class ILayer(Bound):
    name: str
    metadata: str
    precision: Any

    def _begin(self, node: onnx.NodeProto, name: str, tensors: tuple[list[ITensor], list[ITensor]]) -> None:
        super()._begin()
        self._node, self._inputs, self._outputs = node, *tensors
        self._set_outputs: dict[int, Any] = {}
        self._default(name=name, metadata=f"[ONNX Layer: {name}]", precision=DataType.FLOAT)
        self._set_precision = False

    def __setattr__(self, name: str, value: object) -> None:
        super().__setattr__(name, value)
        if name == "precision":
            self._set_precision = True

    @property
    def type(self) -> Any:
        return getattr(LayerType, LAYERS.get(self._node.op_type, "ELEMENTWISE"), LayerType.ELEMENTWISE)

    @property
    def num_inputs(self) -> int:
        return len(self._inputs)

    @property
    def num_outputs(self) -> int:
        return len(self._outputs)

    @property
    def precision_is_set(self) -> bool:
        return self._set_precision

    def reset_precision(self) -> None:
        self._set_precision = False

    def get_input(self, index: int) -> ITensor | None:
        return self._inputs[index] if 0 <= index < len(self._inputs) else None

    def get_output(self, index: int) -> ITensor | None:
        return self._outputs[index] if 0 <= index < len(self._outputs) else None

    def get_output_type(self, index: int) -> Any:
        return self._set_outputs.get(index, data_type(self._outputs[index]._kind))

    def set_output_type(self, index: int, dtype: Any) -> None:
        self._set_outputs[index] = dtype

    def output_type_is_set(self, index: int) -> bool:
        return index in self._set_outputs

    def reset_output_type(self, index: int) -> None:
        self._set_outputs.pop(index, None)


@exposed
class INetworkDefinition(Bound):
    name: str

    def _begin(self, flags: int, builder: Any) -> None:
        super()._begin()
        self._flags, self._builder = flags, builder
        self.name = "Unnamed Network 0"
        self._model: onnx.ModelProto | None = None
        self._inputs: list[ITensor] = []
        self._outputs: list[ITensor] = []
        self._layers: list[ILayer] = []

    @property
    def _explicit(self) -> bool:
        """Since 10.0 every network's batch is explicit."""
        return NUMBERS >= (10,) or is_set(self._flags, FLAGS, "EXPLICIT_BATCH")

    @property
    def _strong(self) -> bool:
        """Since 11.0 every network is strongly typed."""
        return NUMBERS >= (11,) or is_set(self._flags, FLAGS, "STRONGLY_TYPED")

    @property
    def builder(self) -> Any:
        return self._builder

    @property
    def flags(self) -> int:
        return self._flags

    @property
    def has_implicit_batch_dimension(self) -> bool:
        return not self._explicit

    @property
    def has_explicit_precision(self) -> bool:
        return False

    @property
    def num_inputs(self) -> int:
        return len(self._inputs)

    @property
    def num_outputs(self) -> int:
        return len(self._outputs)

    @property
    def num_layers(self) -> int:
        return len(self._layers)

    def get_flag(self, flag: Any) -> bool:
        return is_set(self._flags, FLAGS, flag.name)

    def get_input(self, index: int) -> ITensor | None:
        return self._inputs[index] if 0 <= index < len(self._inputs) else None

    def get_output(self, index: int) -> ITensor | None:
        return self._outputs[index] if 0 <= index < len(self._outputs) else None

    def get_layer(self, index: int) -> ILayer | None:
        return self._layers[index] if 0 <= index < len(self._layers) else None

    def __getitem__(self, arg0: int) -> ILayer:
        return self._layers[arg0]

    def __len__(self) -> int:
        return len(self._layers)

    def _take(self, model: onnx.ModelProto) -> None:
        """Layers and tensors of a model that the parser has passed."""
        types = _model.tensor_types(model)
        tensors: dict[str, ITensor] = {}
        for role, values, into in (
            ("input", _model.inputs(model), self._inputs),
            ("output", model.graph.output, self._outputs),
        ):
            for value in values:
                tensor = made(ITensor, value.name, types[value.name], _model.shape(value), role)
                tensors[value.name] = tensor
                into.append(tensor)
        for index, node in enumerate(model.graph.node):
            lists = [
                [tensors.setdefault(name, made(ITensor, name, types.get(name, "FLOAT"), ())) for name in names if name]
                for names in (node.input, node.output)
            ]
            name = node.name or f"(Unnamed Layer* {index}) [{node.op_type}]"
            self._layers.append(made(ILayer, node, name, tuple(lists)))
        self.name = model.graph.name
        self._model = model
