"""Layers as onnxruntime sees them: the fused operators beside ONNX's own, with nothing but NumPy, onnx and onnxruntime.

Of this, what runs under AddressSanitizer must not import torch.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

Floats = npt.NDArray[np.float32]
Arrays = dict[str, npt.NDArray[Any]]
GATES = {"GRU": 3, "LSTM": 4, "RNN": 1}
DOMAIN = "ai.deploykit"
#: The nine inputs in their order, and which kind of tensor each is.
INPUTS = ("X", "W", "R", "W_scale", "R_scale", "B", "sequence_lens", "initial_h", "initial_c")
RUN_TIME = ("X", "sequence_lens", "initial_h", "initial_c")


def library() -> str:
    """The library under test: the installed one, or the one that DEPLOYKIT_KERNELS_LIBRARY names."""
    from deploykit.kernels import library_path

    return os.environ.get("DEPLOYKIT_KERNELS_LIBRARY") or str(library_path())


@dataclass(frozen=True)
class Layer:
    """One random layer: int8 weights and scales as the operators take them."""

    kind: str = "GRU"
    input: int = 17
    hidden: int = 17
    direction: str = "forward"
    activation: str = "Tanh"
    linear_before_reset: int = 0
    bias: bool = True
    seed: int = 0
    #: Constants or attributes that a test wants otherwise; None: an input of the model, or no such attribute.
    changed: dict[str, Any] = field(default_factory=dict)

    @property
    def directions(self) -> int:
        return 2 if self.direction == "bidirectional" else 1

    @property
    def outputs(self) -> tuple[str, ...]:
        return ("Y", "Y_h", "Y_c") if self.kind == "LSTM" else ("Y", "Y_h")

    @property
    def inputs(self) -> tuple[str, ...]:
        return INPUTS if self.kind == "LSTM" else INPUTS[:-1]

    @cached_property
    def constants(self) -> Arrays:
        random = np.random.default_rng(self.seed)
        width = GATES[self.kind] * self.hidden

        def scale(rows: int) -> Floats:
            return np.asarray(random.uniform(0.3, 1.0, (self.directions, width)) / (73 * rows**0.5), np.float32)

        found: Arrays = {
            "W": random.integers(-127, 128, (self.directions, self.input, width)).astype(np.int8),
            "R": random.integers(-127, 128, (self.directions, self.hidden, width)).astype(np.int8),
            "W_scale": scale(self.input),
            "R_scale": scale(self.hidden),
            "B": random.uniform(-0.3, 0.3, (self.directions, 2 * width)).astype(np.float32),
        }
        if not self.bias:
            del found["B"]
        return {
            name: value for name, value in {**found, **self.changed}.items() if name in INPUTS and value is not None
        }

    def feeds(self, steps: int, batch: int, *given: str, seed: int = 1) -> Arrays:
        """X, and those of the optional inputs that are ``given``."""
        random = np.random.default_rng(seed)
        state = (self.directions, batch, self.hidden)
        return {
            "X": random.normal(size=(steps, batch, self.input)).astype(np.float32),
            **(
                {"sequence_lens": random.integers(0, steps + 1, batch).astype(np.int32)}
                if "sequence_lens" in given
                else {}
            ),
            **{
                name: random.uniform(-0.9, 0.9, state).astype(np.float32)
                for name in given
                if name.startswith("initial")
            },
        }

    def session(self, *given: str, outputs: tuple[str, ...] | None = None, threads: int = 1) -> ort.InferenceSession:
        """The fused operator with the optional inputs that are ``given``."""
        attributes: dict[str, Any] = {"hidden_size": self.hidden, "direction": self.direction}
        if self.kind == "GRU":
            attributes["linear_before_reset"] = self.linear_before_reset
        if self.kind == "RNN":
            attributes["activation"] = self.activation
        attributes |= {name: value for name, value in self.changed.items() if name not in INPUTS}
        fed = {"X", *given, *(name for name, value in self.changed.items() if value is None)}
        names = [name if name in self.constants or name in fed else "" for name in self.inputs]
        return self._session(f"DynamicQuantize{self.kind}", DOMAIN, attributes, names, self.constants, outputs, threads)

    def float_session(self, *given: str) -> ort.InferenceSession:
        """ONNX's own operator with the same weights in float32."""
        attributes: dict[str, Any] = {"hidden_size": self.hidden, "direction": self.direction}
        if self.kind == "GRU":
            attributes["linear_before_reset"] = self.linear_before_reset
        if self.kind == "RNN":
            attributes["activations"] = [self.activation] * self.directions
        own = self.constants
        weights = {
            name: np.ascontiguousarray((own[name] * own[f"{name}_scale"][:, None, :]).swapaxes(1, 2)).astype(np.float32)
            for name in ("W", "R")
        } | {name: value for name, value in own.items() if name == "B"}
        order = [name for name in self.inputs if not name.endswith("_scale")]
        names = [name if name in weights or name in ("X", *given) else "" for name in order]
        return self._session(self.kind, "", attributes, names, weights, None, 1)

    def _session(
        self,
        op: str,
        domain: str,
        attributes: dict[str, Any],
        names: list[str],
        constants: Arrays,
        outputs: tuple[str, ...] | None,
        threads: int,
    ) -> ort.InferenceSession:
        wanted = self.outputs if outputs is None else outputs
        dims = {
            "X": [None, None, None],
            "sequence_lens": [None],
            "initial_h": [None, None, None],
            "initial_c": [None, None, None],
            "Y": [None, None, None, None],
            "Y_h": [None, None, None],
            "Y_c": [None, None, None],
        }
        types: dict[str, int] = {"sequence_lens": TensorProto.INT32, "W": TensorProto.INT8, "R": TensorProto.INT8}
        types |= self.changed.get("types", {})
        attributes = {name: value for name, value in attributes.items() if name != "types" and value is not None}

        def value(name: str) -> onnx.ValueInfoProto:
            rank = dims.get(name, [None] * 3)
            return helper.make_tensor_value_info(name, types.get(name, TensorProto.FLOAT), rank)

        node = helper.make_node(op, names, [name if name in wanted else "" for name in self.outputs], domain=domain)
        node.attribute.extend(helper.make_attribute(key, given) for key, given in attributes.items())
        graph = helper.make_graph(
            [node],
            "layer",
            [value(name) for name in names if name and name not in constants],
            [value(name) for name in wanted],
            [numpy_helper.from_array(array, name) for name, array in constants.items()],
        )
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid(DOMAIN, 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        options.register_custom_ops_library(library())
        return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def answer(session: ort.InferenceSession, feeds: Arrays) -> list[Floats]:
    return [np.asarray(value) for value in session.run(None, feeds)]


def same(a: list[Floats], b: list[Floats]) -> bool:
    """Whether they are the same bit for bit."""
    return [value.shape for value in a] == [value.shape for value in b] and all(
        one.tobytes() == other.tobytes() for one, other in zip(a, b, strict=True)
    )
