"""Engines for tests, made with the stand-in's builder: what runs them is under test here, and not what builds them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, helper

from deploykit import artifact
from deploykit.artifact import Artifact, Engine
from deploykit.files import sha256_file
from deploykit.trt import cuda
from deploykit.trt.log import Messages, hearing, logger
from deploykit.types import TensorSpec

Shape = tuple[int, ...]
Profile = Mapping[str, tuple[Shape, Shape, Shape]]

KINDS = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
    "int64": TensorProto.INT64,
    "int32": TensorProto.INT32,
    "uint8": TensorProto.UINT8,
    "bool": TensorProto.BOOL,
}


def model(
    nodes: Sequence[onnx.NodeProto], inputs: Sequence[str], outputs: Sequence[str], **constants: Any
) -> onnx.ModelProto:
    """``x:float32[batch,4]`` and the like in, nodes between, the same out."""

    def values(texts: Sequence[str]) -> list[onnx.ValueInfoProto]:
        found = []
        for text in texts:
            name, _, rest = text.partition(":")
            kind, _, dims = rest.rstrip("]").partition("[")
            shape = [int(dim) if dim.isdecimal() else dim for dim in dims.split(",") if dim]
            found.append(helper.make_tensor_value_info(name, KINDS[kind], shape))
        return found

    weights = [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(list(nodes), "test", values(inputs), values(outputs), weights)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(made)
    return made


def build(
    folder: Path,
    source: Path | onnx.ModelProto,
    profiles: Sequence[Profile],
    inputs: Sequence[TensorSpec] = (),
    outputs: Sequence[TensorSpec] = (),
    *,
    flags: Sequence[str] = (),
    **options: Any,
) -> Artifact:
    """A plan of the ONNX file beside it, with its manifest."""
    import tensorrt as trt

    if not isinstance(source, Path):
        path = folder / "model.onnx"
        onnx.save(source, path)
        source = path
    messages = Messages()
    with hearing(messages):
        plan = _plan(trt, source, profiles, flags)
    assert plan is not None, messages.errors
    gpu = cuda.describe()
    engine = Engine(str(trt.__version__), gpu.name, gpu.compute_capability, tuple(profiles), options)
    made = Artifact(
        folder / "model.float32.engine",
        "trt-engine",
        "float32",
        "",
        tuple(inputs),
        tuple(outputs),
        parent=sha256_file(source),
        engine=engine,
    )
    return artifact.write(made, bytes(plan))


def _plan(trt: Any, source: Path, profiles: Sequence[Profile], flags: Sequence[str]) -> Any:
    builder = trt.Builder(logger())
    creation = trt.NetworkDefinitionCreationFlag
    name = next((name for name in ("STRONGLY_TYPED", "EXPLICIT_BATCH") if hasattr(creation, name)), None)
    network = builder.create_network(0 if name is None else 1 << int(getattr(creation, name)))
    parser = trt.OnnxParser(network, logger())
    assert parser.parse(source.read_bytes()), [parser.get_error(index).desc() for index in range(parser.num_errors)]
    config = builder.create_builder_config()
    for flag in flags:
        config.set_flag(getattr(trt.BuilderFlag, flag))
    for shapes in profiles:
        profile = builder.create_optimization_profile()
        for tensor, (low, tuned, high) in shapes.items():
            profile.set_shape(tensor, low, tuned, high)
        assert config.add_optimization_profile(profile) >= 0
    return builder.build_serialized_network(network, config)
