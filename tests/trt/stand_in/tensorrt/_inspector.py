"""What an engine tells of its layers, as JSON of the forms that public samples and documentation show.

- Top: ``{"Layers": [...], "Bindings": ["x", "y"]}``; from 11.0 on, "I/O Tensors" instead of "Bindings": a list of
  ``{"Name", "IOMode": "Input"|"Output", "DataType": "Float", "Dimensions", "Location", "IsShapeInferenceIO",
  "ProfileInfo": [{"MinShape", "OptShape", "MaxShape", "Format"}]}``.
- Layers are names alone unless the engine was built with ProfilingVerbosity.DETAILED, and none with NONE. Else each is
  ``{"Name", "LayerType", "Inputs": [tensor], "Outputs": [tensor], "ParameterType"?, "Weights": {"Type": "Half",
  "Count": n}?, "TacticName"?, "TacticValue"?, "StreamId"?, "Metadata"}``.
- A tensor's type, to 10.x, is ``"Format/Datatype"``, in one of two wordings. Layers that TensorRT implements itself say
  "Row major linear FP32", "Row major linear FP16 format", "Row major linear BFloat16 format", "Row major Int8 format",
  "Row major linear Int32", "Row major linear BOOL", "Channel major FP16 format where channel % 8 == 0",
  "Thirty-two wide channel vectorized row major Int8 format." and the like; "N/A due to dynamic shapes" where they are
  and the inspector has no execution context with shapes set. Kernels that the compiler made (LayerType "kgen", "gemm"
  and others, from 9.0 on; most of a recurrent network) say "Float", "Half", "BFloat16", "Int8", "Int32",
  "Int64", "Bool". From 11.0 on it is two keys: ``"Format"`` and ``"Datatype"``, with a word of the second kind.
- "Metadata" (from 10.0 on) names the ONNX nodes: "[ONNX Layer: a]\\x1f[ONNX Layer: b]"; \\x1e parts groups of them. In
  8.6 the names are in "Name": "a + b", or "{ForeignNode[a...b]}" with LayerType "Myelin".
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from ._api import NUMBERS, Bound, exposed

if TYPE_CHECKING:
    from ._context import IExecutionContext
    from ._engine import ICudaEngine
    from ._plan import Layer

WORDS = {
    "FLOAT": "Float",
    "HALF": "Half",
    "BF16": "BFloat16",
    "INT8": "Int8",
    "INT32": "Int32",
    "INT64": "Int64",
    "BOOL": "Bool",
    "UINT8": "UInt8",
}
SENTENCES = {
    "FLOAT": "Row major linear FP32",
    "HALF": "Row major linear FP16 format",
    "BF16": "Row major linear BFloat16 format",
    "INT8": "Row major Int8 format",
    "INT32": "Row major linear Int32",
    "INT64": "Row major linear Int64 format",
    "BOOL": "Row major linear BOOL",
    "UINT8": "Row major linear UInt8 format",
}
UNKNOWN = "N/A due to dynamic shapes"
RECURRENT = frozenset({"GRU", "LSTM", "RNN", "Loop", "Scan"})


@exposed
class EngineInspector(Bound):
    execution_context: IExecutionContext | None

    def _begin(self, engine: ICudaEngine) -> None:
        super()._begin()
        self._engine = engine

    def get_engine_information(self, format: Any) -> str:  # noqa: A002 - the true name
        names = self._engine._names
        layers = [self._layer(index) for index in range(self._engine.num_layers)]
        if self._engine._content.verbosity == "NONE":
            layers = []
        if format.name == "ONELINE":
            return "\n".join(["Layers:", *(str(layer) for layer in layers), "", "Bindings:", *names])
        if NUMBERS < (11,):
            return json.dumps({"Layers": layers, "Bindings": names}, indent=1)
        return json.dumps({"Layers": layers, "I/O Tensors": [self._io(name) for name in names]}, indent=1)

    def get_layer_information(self, layer_index: int, format: Any) -> str:  # noqa: A002
        return json.dumps(self._layer(layer_index)) if format.name == "JSON" else str(self._layer(layer_index))

    def _io(self, name: str) -> dict[str, Any]:
        engine = self._engine
        format_ = f"{SENTENCES[engine._types[name]].removesuffix(' format')} format (kLINEAR)"
        profiles = [
            {
                **dict(zip(("MinShape", "OptShape", "MaxShape"), profile.get(name, [[]] * 3), strict=True)),
                "Format": format_,
            }
            for profile in engine._profiles
        ]
        return {
            "Name": name,
            "IOMode": "Input" if name in engine._inputs else "Output",
            "DataType": WORDS[engine._types[name]],
            "Dimensions": list(engine._shapes[name]),
            "Location": "Device",
            "IsShapeInferenceIO": False,
            "ProfileInfo": profiles,
        }

    def _layer(self, index: int) -> Any:
        layer = self._engine._content.layers[index]
        name = shown(layer, index)
        if self._engine._content.verbosity != "DETAILED":
            return name
        found: dict[str, Any] = {
            "Name": name,
            "LayerType": layer_type(layer),
            "Inputs": [self._tensor(layer, *tensor) for tensor in layer.inputs],
            "Outputs": [self._tensor(layer, *tensor) for tensor in layer.outputs],
        }
        if not compiled(layer):
            found["ParameterType"] = layer.operator
        if layer.weights:
            found["Weights"] = {"Type": WORDS[layer.kind], "Count": layer.weights}
        if compiled(layer) and NUMBERS >= (10,):
            found["TacticName"] = f"__stand_in_{layer.operator.lower()}_{WORDS[layer.kind].lower()}"
        else:
            found["TacticValue"] = "0x0000000000000000"
        if NUMBERS >= (10,):
            found["Metadata"] = "\x1f".join(f"[ONNX Layer: {node}]" for node in layer.nodes)
        return found

    def _tensor(self, layer: Layer, name: str, kind: str) -> dict[str, Any]:
        found: dict[str, Any] = {"Name": name, "Location": "Device", "Dimensions": []}
        found["Dimensions"] = list(self._engine._shapes.get(name, ()))
        if NUMBERS >= (11,):
            return {**found, "Format": "Row major linear", "Datatype": WORDS[kind]}
        if compiled(layer) and NUMBERS >= (9,):
            return {**found, "Format/Datatype": WORDS[kind]}
        return {**found, "Format/Datatype": SENTENCES[kind] if self._resolved() else UNKNOWN}

    def _resolved(self) -> bool:
        """Whether formats are known: all shapes are fixed, or those of a context are set."""
        context = self.execution_context
        dynamic = len(self._engine._fixed()) < len(self._engine._inputs)
        return not dynamic or (context is not None and not context.infer_shapes())


def compiled(layer: Layer) -> bool:
    """Whether the compiler made its kernel: in 8.6 loops alone, later nearly everything."""
    return layer.operator in RECURRENT or (NUMBERS >= (10,) and layer.operator not in {"Conv", "QuantizeLinear"})


def shown(layer: Layer, index: int) -> str:
    if NUMBERS >= (10,):
        return f"{layer.name}_myl0_{index}" if compiled(layer) else layer.name
    if compiled(layer):
        return f"{{ForeignNode[{layer.nodes[0]}...{layer.nodes[-1]}]}}"
    return " + ".join(layer.nodes)


def layer_type(layer: Layer) -> str:
    if compiled(layer):
        if NUMBERS < (10,):
            return "Myelin"
        return "gemm" if layer.operator in {"MatMul", "Gemm"} else "kgen"
    return {"Conv": "CaskConvolution", "MatMul": "MatrixMultiply", "Gemm": "MatrixMultiply"}.get(
        layer.operator, layer.operator
    )
