"""Small ONNX graphs to quantize, their inputs, and what runs and compares them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from deploykit import kernels as library
from deploykit.coverage import Coverage
from deploykit.opsets import operators_of
from deploykit.quantize import Preference, QuantizeOptions, Scheme
from deploykit.quantize.dynamic import SCHEME

Array = NDArray[Any]
Feeds = dict[str, Array]

#: The two forms that a recurrent layer takes in dynamic int8, which answer alike.
Form = Literal["portable", "fused"]

_MISSING = library.why_missing()
needs_library = pytest.mark.skipif(_MISSING is not None, reason=f"THE FUSED KERNELS ARE NOT TESTED: {_MISSING}")
both_forms = pytest.mark.parametrize("kernels", ["portable", pytest.param("fused", marks=needs_library)])

GATES = {"GRU": 3, "LSTM": 4, "RNN": 1}


@dataclass(frozen=True)
class Net:
    """A stack of recurrent layers with weights as PyTorch draws them; ``variant`` is the RNN's activation, or ``0`` for
    a GRU with linear_before_reset=0."""

    kind: str = "GRU"
    variant: str = ""
    inputs: int = 11
    hidden: int = 21
    direction: str = "forward"
    layers: int = 1
    bias: bool = True
    lengths: bool = False
    initial: bool = False
    opset: int = 17

    @property
    def directions(self) -> int:
        return 2 if self.direction == "bidirectional" else 1

    @property
    def states(self) -> tuple[str, ...]:
        return ("h", "c") if self.kind == "LSTM" else ("h",)

    def model(self, seed: int = 0) -> onnx.ModelProto:
        """Inputs x, lengths, h0_0, c0_0, …; outputs y ``[time, directions, batch, hidden]``, h_0, c_0, …"""
        rng = np.random.default_rng(seed)
        limit = 1 / np.sqrt(self.hidden)
        state: list[int | str] = [self.directions, "batch", self.hidden]
        nodes, weights = [], []
        inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["time", "batch", self.inputs])]
        outputs = [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, ["time", self.directions, "batch", self.hidden])
        ]
        if self.lengths:
            inputs.append(helper.make_tensor_value_info("lengths", TensorProto.INT32, ["batch"]))
        value, width = "x", self.inputs
        for layer in range(self.layers):
            gates = GATES[self.kind] * self.hidden
            shapes = {"W": (gates, width), "R": (gates, self.hidden), "B": (2 * gates,)}
            for letter in "WRB" if self.bias else "WR":
                drawn = rng.uniform(-limit, limit, (self.directions, *shapes[letter])).astype(np.float32)
                weights.append(numpy_helper.from_array(drawn, f"{letter}{layer}"))
            given = [value, f"W{layer}", f"R{layer}", f"B{layer}" if self.bias else ""]
            given.append("lengths" if self.lengths else "")
            if self.initial:
                given += [f"{one}0_{layer}" for one in self.states]
                inputs += [
                    helper.make_tensor_value_info(f"{one}0_{layer}", TensorProto.FLOAT, state) for one in self.states
                ]
            last = layer == self.layers - 1
            made = ["y" if last else f"y_{layer}", *(f"{one}_{layer}" for one in self.states)]
            outputs += [helper.make_tensor_value_info(name, TensorProto.FLOAT, state) for name in made[1:]]
            nodes.append(helper.make_node(self.kind, given, made, name=f"{self.kind.lower()}_{layer}", **self._attrs()))
            if not last:
                width = self.directions * self.hidden
                turned, value = f"turned_{layer}", f"x_{layer + 1}"
                nodes.append(helper.make_node("Transpose", [made[0]], [turned], perm=[0, 2, 1, 3]))
                shape = numpy_helper.from_array(np.array([0, 0, width], np.int64), f"shape_{layer}")
                weights.append(shape)
                nodes.append(helper.make_node("Reshape", [turned, shape.name], [value]))
        return build(nodes, inputs, outputs, weights, self.opset)

    def _attrs(self) -> dict[str, Any]:
        attrs: dict[str, Any] = {"hidden_size": self.hidden, "direction": self.direction}
        if self.kind == "GRU":
            attrs["linear_before_reset"] = int(self.variant != "0")
        elif self.variant:
            attrs["activations"] = [self.variant] * self.directions
        return attrs

    def feeds(self, time: int, batch: int, seed: int = 1) -> Feeds:
        """Normal inputs and states (so that some |h0| exceed 1), and lengths with the longest and the shortest."""
        rng = np.random.default_rng(seed)
        feeds: Feeds = {"x": rng.standard_normal((time, batch, self.inputs)).astype(np.float32)}
        if self.lengths:
            lengths = rng.integers(1, time + 1, batch).astype(np.int32)
            lengths[0], lengths[-1] = time, 1 if batch > 1 else time
            feeds["lengths"] = lengths
        if self.initial:
            for layer in range(self.layers):
                for one in self.states:
                    drawn = rng.standard_normal((self.directions, batch, self.hidden))
                    feeds[f"{one}0_{layer}"] = drawn.astype(np.float32)
        return feeds


def with_one_state(net: Net, state: str) -> tuple[onnx.ModelProto, Feeds]:
    """The net of one LSTM with one of its two initial states alone, ``h0_0`` or ``c0_0``, and its feeds."""
    model = net.model()
    node = model.graph.node[0]
    node.input[:] = [name if name not in {"h0_0", "c0_0"} - {state} else "" for name in node.input]
    kept = [one for one in model.graph.input if one.name in ("x", state)]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    return model, {name: value for name, value in net.feeds(9, 2).items() if name in ("x", state)}


VARIANTS = [("GRU", "1"), ("GRU", "0"), ("LSTM", ""), ("RNN", "Tanh"), ("RNN", "Relu")]
DIRECTIONS = ["forward", "reverse", "bidirectional"]


def build(
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    weights: list[onnx.TensorProto],
    opset: int = 17,
) -> onnx.ModelProto:
    """A checked model."""
    graph = helper.make_graph(nodes, "net", inputs, outputs, weights)
    opsets = [helper.make_opsetid("", opset)]
    version = min(helper.find_min_ir_version_for(opsets), 10)
    model = helper.make_model(graph, opset_imports=opsets, ir_version=version)
    onnx.checker.check_model(model)
    return model


def floats(name: str, *dims: int | str) -> onnx.ValueInfoProto:
    """A float32 input or output."""
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, list(dims))


def tensor(name: str, *shape: int, seed: int = 0, scale: float = 0.2) -> onnx.TensorProto:
    """A normally distributed float32 initializer."""
    return numpy_helper.from_array(
        (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32), name
    )


def quantize(
    model: onnx.ModelProto,
    *exclude: str,
    scheme: Scheme = SCHEME,
    prefer: Preference = "int8",
    kernels: Form = "portable",
) -> tuple[onnx.ModelProto, Coverage]:
    """The checked result of a scheme, which has left its source alone; small layers are int8 too, unless told else."""
    before = model.SerializeToString(deterministic=True)
    options = QuantizeOptions(exclude=frozenset(exclude), prefer=prefer, fused=kernels == "fused")
    result, coverage = scheme.apply(model, options)
    assert model.SerializeToString(deterministic=True) == before
    onnx.checker.check_model(result)
    return result, coverage


def session(
    model: onnx.ModelProto, severity: int = 3, threads: int = 1, level: str = "ORT_ENABLE_ALL"
) -> onnxruntime.InferenceSession:
    """A CPU session that says nothing below the severity, with the fused operators where the model has some."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = severity
    options.intra_op_num_threads = threads
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    content = model.SerializeToString()
    if operators_of(content):
        options.register_custom_ops_library(str(library.library_path()))
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def run(model: onnx.ModelProto | onnxruntime.InferenceSession, feeds: Feeds) -> dict[str, Array]:
    """All outputs by name."""
    opened = session(model) if isinstance(model, onnx.ModelProto) else model
    names = [output.name for output in opened.get_outputs()]
    return dict(zip(names, opened.run(names, feeds), strict=True))


def snr(reference: Array, value: Array) -> float:
    """Signal-to-noise ratio in dB."""
    noise = float(((reference.astype(np.float64) - value) ** 2).sum())
    return float("inf") if not noise else float(10 * np.log10((reference.astype(np.float64) ** 2).sum() / noise))


def worst_snr(model: onnx.ModelProto, quantized: onnx.ModelProto, feeds: Feeds) -> float:
    """The lowest SNR of any output."""
    expected, actual = run(model, feeds), run(quantized, feeds)
    assert expected.keys() == actual.keys()
    assert all(expected[name].shape == actual[name].shape for name in expected)
    return min(snr(expected[name], actual[name]) for name in expected)


def all_initializers(graph: onnx.GraphProto) -> list[onnx.TensorProto]:
    """Initializers of a graph and of every graph inside it."""
    found = list(graph.initializer)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                found += all_initializers(attribute.g)
    return found


def all_ops(graph: onnx.GraphProto) -> list[str]:
    """Operator types of a graph and of every graph inside it."""
    found = []
    for node in graph.node:
        found.append(node.op_type)
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                found += all_ops(attribute.g)
    return found
