"""Small models, and builds and runs of them with a module like TensorRT's, for tests of the stand-in."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def recurrent(kind: int = TensorProto.FLOAT) -> onnx.ModelProto:
    """A GRU with a projection behind it; float32 outside, ``kind`` inside."""
    draws = np.random.default_rng(0)

    def weights(name: str, *shape: int) -> TensorProto:
        array = draws.normal(size=shape).astype(np.float32)
        return helper.make_tensor(name, kind, shape, array.ravel())

    nodes = [
        helper.make_node("Cast", ["x"], ["x_in"], name="cast_in", to=kind),
        helper.make_node("GRU", ["x_in", "W", "R"], ["Y"], name="gru", hidden_size=8),
        helper.make_node("Squeeze", ["Y", "axes"], ["y"], name="squeeze"),
        helper.make_node("MatMul", ["y", "M"], ["z"], name="head"),
        helper.make_node("Cast", ["z"], ["out"], name="cast_out", to=TensorProto.FLOAT),
    ]
    constants = [weights("W", 1, 24, 4), weights("R", 1, 24, 8), weights("M", 8, 3)]
    return graph(nodes, [*constants, numpy_helper.from_array(np.array([1]), "axes")])


def graph(nodes: list[onnx.NodeProto], constants: list[TensorProto], kind: int = TensorProto.FLOAT) -> onnx.ModelProto:
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", kind, ["time", "batch", 4])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["time", "batch", 3])],
        constants,
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def quantized() -> onnx.ModelProto:
    """A product of eight-bit numbers, each with its quantizers."""
    scale = numpy_helper.from_array(np.array(0.05, np.float32), "scale")
    zero = numpy_helper.from_array(np.array(0, np.int8), "zero")
    weights = numpy_helper.from_array(np.ones((4, 3), np.int8), "W")
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["xq"], name="q"),
        helper.make_node("DequantizeLinear", ["xq", "scale", "zero"], ["xd"], name="dq"),
        helper.make_node("DequantizeLinear", ["W", "scale", "zero"], ["wd"], name="wdq"),
        helper.make_node("MatMul", ["xd", "wd"], ["out"], name="product"),
    ]
    return graph(nodes, [scale, zero, weights])


@lru_cache(maxsize=1)
def logger(trt: Any) -> Any:
    """The one logger of the module: TensorRT keeps to the first."""

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.said = list[str]()

        def log(self, severity: Any, msg: str) -> None:
            self.said.append(msg)

    return Log()


class Session:
    """A build in one version, step by step, with what the logger was told."""

    def __init__(self, trt: Any, model: onnx.ModelProto, **flags: bool) -> None:
        self.trt, self.logger = trt, logger(trt)
        self.logger.said = self.said = list[str]()
        self.builder = trt.Builder(self.logger)
        creation = trt.NetworkDefinitionCreationFlag
        wanted = [name for name in ("EXPLICIT_BATCH", "STRONGLY_TYPED") if hasattr(creation, name)]
        self.network = self.builder.create_network(sum(1 << int(getattr(creation, name)) for name in wanted))
        self.parser = trt.OnnxParser(self.network, self.logger)
        self.parsed = self.parser.parse(model.SerializeToString())
        self.config = self.builder.create_builder_config()
        self.config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        for name in flags:
            self.config.set_flag(getattr(trt.BuilderFlag, name))

    def profile(self, low: int = 1, tuned: int = 4, high: int = 8) -> None:
        made = self.builder.create_optimization_profile()
        made.set_shape("x", (low, 1, 4), (tuned, 2, 4), (high, 4, 4))
        assert self.config.add_optimization_profile(made) >= 0

    def plan(self) -> bytes:
        built = self.builder.build_serialized_network(self.network, self.config)
        assert built is not None, self.said
        return bytes(built)

    def engine(self) -> Any:
        if not self.config.num_optimization_profiles:
            self.profile()
        return self.trt.Runtime(self.logger).deserialize_cuda_engine(self.plan())

    def layers(self) -> str:
        inspector = self.engine().create_engine_inspector()
        return str(inspector.get_engine_information(self.trt.LayerInformationFormat.JSON))


def run(context: Any, array: Any) -> Any:
    out = np.zeros((*array.shape[:2], 3), np.float32)
    assert context.set_input_shape("x", array.shape)
    assert context.set_tensor_address("x", array.ctypes.data)
    assert context.set_tensor_address("out", out.ctypes.data)
    assert context.execute_async_v3(1)
    return out


def expected(model: onnx.ModelProto, array: Any) -> Any:
    import onnxruntime

    return onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": array})[0]


def inputs(time: int = 3, batch: int = 2) -> Any:
    return np.random.default_rng(1).normal(size=(time, batch, 4)).astype(np.float32)
