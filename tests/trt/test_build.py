"""Engines from ONNX files, with a stand-in for TensorRT: what is asked of it, what is written, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from deploykit import artifact as artifacts
from deploykit.artifact import Artifact, manifest_path
from deploykit.errors import BackendUnavailableError, BuildError, GateError, OutputError, UsageError
from deploykit.trt import library, plan
from deploykit.trt.build import build, target
from deploykit.trt.options import NAMES, PRECISIONS, BuildOptions, Precision
from tests.backends.models import onnx_artifact

VERSIONS = ("8.6.1", "10.0.1", "10.16.1.11", "11.4.0.106")
every_version = pytest.mark.parametrize("stand_in", VERSIONS, indirect=True)


@pytest.fixture
def source(tmp_path: Path) -> Artifact:
    """A float32 RNN, as somebody else's ONNX file."""
    return artifacts.read(onnx_artifact(tmp_path).path)


@pytest.fixture
def quantized(tmp_path: Path) -> Artifact:
    """One product between Q and DQ, as `deploykit quantize --int8 --target trt` makes them."""
    weights = np.random.default_rng(0).integers(-127, 128, (4, 3)).astype(np.int8)
    constants = {"s": np.float32(0.02), "ws": np.float32(0.01), "z": np.int8(0), "w": weights}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"], name="/q"),
        helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"], name="/dq"),
        helper.make_node("DequantizeLinear", ["w", "ws", "z"], ["wd"], name="/w"),
        helper.make_node("MatMul", ["xd", "wd"], ["y"], name="/head/MatMul"),
    ]
    graph = helper.make_graph(
        nodes,
        "quantized",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ("batch", 4))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ("batch", 3))],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    path = tmp_path / "net.qdq.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return replace(artifacts.read(path), format="onnx-qdq", precision="int8")


def config_of(made: Artifact, stand_in: ModuleType) -> dict[str, Any]:
    """What the stand-in was told, as its plan tells."""
    import zlib

    body = zlib.decompress(made.path.read_bytes()[32:])
    size = int.from_bytes(body[:8], "little")
    found: dict[str, Any] = json.loads(body[8 : 8 + size])
    return found


@every_version
def test_an_engine_and_its_manifest(source: Artifact, stand_in: ModuleType) -> None:
    made = build(source, shapes=("x=1x1x4:2x10x4:8x100x4",))
    assert made.path == source.path.with_name("contract.fp32.engine")
    assert artifacts.read(made.path) == replace(made, model=None)
    assert (made.format, made.precision, made.parent) == ("trt-engine", "float32", source.sha256)
    assert (made.inputs, made.outputs) == (source.inputs, source.outputs)
    engine = made.engine
    assert engine is not None
    assert engine.tensorrt == stand_in.__version__
    assert (engine.gpu, engine.compute_capability) == ("Stand-in GPU", "9.0")
    assert engine.profiles == ({"x": ((1, 1, 4), (2, 10, 4), (8, 100, 4))},)
    assert (engine.options, engine.fallbacks) == ({}, ())
    assert engine.layers["float32"] > 0
    plan.require_fits(made, stand_in.__version__, engine.gpu, engine.compute_capability)


@every_version
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_it_computes_in_what_was_asked_for(source: Artifact, stand_in: ModuleType, precision: Precision) -> None:
    if precision == "bf16" and library.parse_version(stand_in.__version__) < (10,):
        with pytest.raises(BuildError, match="cannot do --precision bf16"):
            build(source, precision=precision)
        return
    made = build(source, precision=precision)
    engine = made.engine
    assert engine is not None
    assert made.precision == NAMES[precision]
    assert engine.layers.get(NAMES[precision], 0) > engine.layers.get("float32", 0)
    assert [spec.dtype for spec in (*made.inputs, *made.outputs)] == ["float32"] * 3


@every_version
def test_int8_is_what_the_file_says(quantized: Artifact, stand_in: ModuleType) -> None:
    made = build(quantized, precision="int8")
    assert made.path.name == "net.int8.engine"
    assert made.engine is not None
    assert made.engine.layers["int8"] == 1


@every_version
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_layer_in_another_precision_is_named_and_nothing_is_written(
    source: Artifact, stand_in: ModuleType, precision: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = artifacts.load_onnx(source.path)
    for number, node in enumerate(model.graph.node):
        node.name = f"/{node.op_type}" if node.op_type == "RNN" else f"/{number}"
    onnx.save(model, source.path)
    monkeypatch.setenv("DEPLOYKIT_TEST_TENSORRT_FALLBACK", "/RNN")
    named = artifacts.read(source.path)
    with pytest.raises(GateError, match=r"/RNN.*was asked for") as error:
        build(named, precision=precision)
    assert "--allow-fallback" in str(error.value)
    assert error.value.exit_code == 3
    assert not list(source.path.parent.glob("*.engine*"))
    made = build(named, precision=precision, allow_fallback=True)
    assert made.engine is not None
    assert any("/RNN" in one for one in made.engine.fallbacks)
    # It was allowed that once: the engine that lies there now is not what others ask for.
    with pytest.raises(GateError, match=r"/RNN.*was asked for"):
        build(named, precision=precision)
    assert build(named, precision=precision, allow_fallback=True) == made


def test_an_int8_product_that_runs_in_float_is_named(
    quantized: Artifact, stand_in: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEPLOYKIT_TEST_TENSORRT_FALLBACK", "/head/MatMul")
    with pytest.raises(GateError, match=r"/head/MatMul.*int8 was asked for"):
        build(quantized, precision="int8")


@pytest.mark.usefixtures("stand_in")
def test_one_that_fits_is_left_as_it_is(source: Artifact) -> None:
    first = build(source)
    stamp = first.path.stat().st_mtime_ns
    assert build(source) == first
    assert first.path.stat().st_mtime_ns == stamp
    assert build(source, shapes=("time=5",)) != first
    assert first.path.stat().st_mtime_ns != stamp
    second = build(source, shapes=("time=5",), options=BuildOptions(tf32=True))
    third = build(source, shapes=("time=5",), options=BuildOptions(tf32=True), rebuild=True)
    assert second.created != third.created
    # One that was changed on the disk is no longer the one that its manifest describes.
    third.path.write_bytes(third.path.read_bytes() + b"!")
    assert artifacts.read(build(source, shapes=("time=5",), options=BuildOptions(tf32=True)).path)


@every_version
def test_settings_reach_the_builder(source: Artifact, stand_in: ModuleType) -> None:
    plain = config_of(build(source), stand_in)
    assert "TF32" not in plain["flags"]
    assert plain["verbosity"] == "DETAILED"
    options = BuildOptions(tf32=True, optimization_level=2, workspace_mib=64, version_compatible=True, refit=True)
    made = build(source, options=replace(options, hardware_compatible="ampere+"))
    told = config_of(made, stand_in)
    assert {"TF32", "VERSION_COMPATIBLE", "REFIT"} <= set(told["flags"])
    assert told["compatibility"] == "AMPERE_PLUS"
    assert made.engine is not None
    assert made.engine.options == {
        "tf32": True,
        "optimization_level": 2,
        "workspace_mib": 64,
        "version_compatible": True,
        "hardware_compatible": "ampere+",
        "refit": True,
    }


@every_version
def test_plans_without_weights(source: Artifact, stand_in: ModuleType) -> None:
    if library.parse_version(stand_in.__version__) < (10,):
        with pytest.raises(BuildError, match="cannot do --strip"):
            build(source, options=BuildOptions(strip=True))
        return
    assert "STRIP_PLAN" in config_of(build(source, options=BuildOptions(strip=True)), stand_in)["flags"]


@every_version
def test_several_profiles(source: Artifact, stand_in: ModuleType) -> None:
    made = build(source, shapes=("time=1", "time=2:50:100"))
    assert made.engine is not None
    assert [profile["x"][2][1] for profile in made.engine.profiles] == [1, 100]
    assert len(config_of(made, stand_in)["profiles"]) == 2


@every_version
def test_the_timing_cache_is_used_and_kept(source: Artifact, stand_in: ModuleType, tmp_path: Path) -> None:
    cache = tmp_path / "timing.cache"
    build(source, timing_cache=cache)
    first = cache.read_bytes()
    assert first
    build(source, timing_cache=cache, rebuild=True)
    assert cache.read_bytes()
    # A damaged one, or one of another machine, is no reason not to build.
    cache.write_bytes(b"no cache")
    build(source, timing_cache=cache, rebuild=True)
    assert cache.read_bytes() != b"no cache"


@pytest.mark.usefixtures("stand_in")
def test_progress_is_told_and_a_callback_s_error_stops_the_build(source: Artifact) -> None:
    told: list[str] = []
    build(source, progress=told.append)
    assert any("/" in step for step in told)

    def interrupt(step: str) -> None:
        if "/" in step:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(source, progress=interrupt, rebuild=True, shapes=("time=3",))


def _unknown(node: onnx.NodeProto) -> None:
    node.domain, node.op_type = "com.example", "Mystery"


def _layout(node: onnx.NodeProto) -> None:
    node.attribute.append(helper.make_attribute("layout", 1))


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize("spoil", [_unknown, _layout])
def test_what_the_parser_does_not_take_is_told_before_a_gpu_is_kept_busy(
    source: Artifact, spoil: Callable[[onnx.NodeProto], None]
) -> None:
    model = artifacts.load_onnx(source.path)
    spoil(next(node for node in model.graph.node if node.op_type == "RNN"))
    onnx.save(model, source.path)
    with pytest.raises(BuildError, match=r"cannot build contract\.onnx") as error:
        build(replace(source, sha256="0"))
    assert "\n" not in str(error.value)
    assert not list(source.path.parent.glob("*.engine*"))


@every_version
def test_the_parser_s_own_errors_carry_the_node(
    source: Artifact, stand_in: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = artifacts.load_onnx(source.path)
    model.graph.node.append(helper.make_node("DynamicQuantizeLinear", ["y"], ["q", "s", "z"], name="/head/Quantize"))
    monkeypatch.setattr("deploykit.trt.build.ready", lambda *_: model)
    with pytest.raises(BuildError, match=r"cannot read contract.*/head/Quantize \(DynamicQuantizeLinear\)"):
        build(source)


@every_version
def test_a_builder_that_fails_says_why(source: Artifact, stand_in: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(self: object, network: object, config: object) -> None:
        from tensorrt import ILogger

        builder: Any = self
        builder.logger.log(ILogger.Severity.ERROR, "no tactic for node /rnn/RNN\n in 4 GiB.")

    monkeypatch.setattr(stand_in.Builder, "build_serialized_network", failing)
    with pytest.raises(BuildError, match=r"could not build .*: no tactic for node /rnn/RNN in 4 GiB;"):
        build(source)


def test_precisions_of_other_files_are_refused(source: Artifact, quantized: Artifact, stand_in: ModuleType) -> None:
    with pytest.raises(BuildError, match="quantize --int8 --target trt"):
        build(source, precision="int8")
    others: tuple[Precision, ...] = ("fp32", "fp16", "bf16")
    for precision in others:
        with pytest.raises(BuildError, match="--precision int8"):
            build(quantized, precision=precision)


@pytest.mark.usefixtures("stand_in")
def test_nothing_is_left_where_it_cannot_be_written(source: Artifact, tmp_path: Path) -> None:
    (tmp_path / "taken.engine").mkdir()
    with pytest.raises(OutputError):
        build(source, tmp_path / "taken.engine")
    assert not manifest_path(tmp_path / "taken.engine").exists()


@pytest.mark.usefixtures("stand_in")
def test_a_level_of_hardware_that_nobody_knows(source: Artifact) -> None:
    with pytest.raises(UsageError, match="unknown --hardware-compatible"):
        build(source, options=BuildOptions(hardware_compatible="volta"))


def test_without_tensorrt_it_says_what_to_install(source: Artifact) -> None:
    with pytest.raises(BackendUnavailableError, match=r"pip install 'deploykit\[trt\]'"):
        build(source)


def test_where_an_engine_goes(tmp_path: Path) -> None:
    for name in ("net.onnx", "net.qdq.onnx", "net.int8.onnx", "net.fp16.onnx"):
        made = replace(onnx_artifact(tmp_path), path=tmp_path / name)
        assert [target(made, one).name for one in PRECISIONS] == [f"net.{one}.engine" for one in PRECISIONS]


def test_no_builder_is_a_sentence(source: Artifact, stand_in: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> None:
        raise TypeError("pybind11::init(): factory function returned nullptr")  # with a driver that is too old, say

    monkeypatch.setattr(stand_in.Builder, "__init__", none)
    with pytest.raises(BuildError, match="TensorRT cannot start: "):
        build(source)


def test_a_refused_shape_is_a_sentence(source: Artifact, stand_in: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    from tensorrt import _config

    original = _config.IOptimizationProfile.set_shape

    def backwards(self: Any, name: str, low: Any, tuned: Any, high: Any) -> None:
        original(self, name, high, tuned, low)

    monkeypatch.setattr(_config.IOptimizationProfile, "set_shape", backwards)
    with pytest.raises(BuildError, match="TensorRT refuses the shapes of x: Shape provided for min"):
        build(source)


def test_a_timing_cache_of_no_use_is_no_reason_for_a_later_failure(
    source: Artifact, stand_in: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "timing.cache"
    cache.write_bytes(b"of another version")
    monkeypatch.setattr(stand_in.Builder, "build_serialized_network", lambda *_: None)
    with pytest.raises(BuildError, match=r"could not build .*: it gave no reason"):
        build(source, timing_cache=cache)


@pytest.mark.parametrize("stand_in", ["8.6.1"], indirect=True)
def test_constants_and_sizes_keep_their_own_precision_in_8_6(
    source: Artifact, stand_in: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tensorrt import _network

    # Everything but the products and loops is what the host computes sizes from.
    monkeypatch.setattr(
        _network.ITensor,
        "is_execution_tensor",
        property(lambda self: self.name in computed),
    )
    graph = onnx.load(source.path).graph
    node = next(node for node in graph.node if node.op_type in ("RNN", "GRU", "LSTM", "MatMul", "Gemm"))
    computed = set(node.output)
    set_for: list[str] = []
    original = _network.ILayer.set_output_type

    def noted(self: Any, index: int, dtype: Any) -> None:
        set_for.append(self.get_output(index).name)
        original(self, index, dtype)

    monkeypatch.setattr(_network.ILayer, "set_output_type", noted)
    build(source, precision="fp16")
    assert set_for
    assert set(set_for) <= computed


def test_an_engine_without_an_inspector_tells_no_types(
    source: Artifact, stand_in: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stand_in.ICudaEngine, "create_engine_inspector", lambda *_: None)
    engine = build(source).engine
    assert engine is not None
    assert engine.layers == {}


def test_what_tensorrt_made_is_released_while_the_context_is_current(source: Artifact, stand_in: ModuleType) -> None:
    from pycuda import _state

    from deploykit.trt.adopt import adopted

    state = _state.reset()
    made = build(source)
    assert state.adrift == []
    adopted(made.path)
    assert state.adrift == []


@pytest.mark.usefixtures("stand_in")
def test_graphs_that_contradict_themselves_and_weights_that_are_no_numbers(source: Artifact) -> None:
    model = artifacts.load_onnx(source.path)
    whole = model.SerializeToString()
    model.graph.node[1].input[0] = "nowhere"
    onnx.save(model, source.path)
    with pytest.raises(BuildError, match="no valid ONNX model") as error:
        build(source)
    assert "\n" not in str(error.value)
    sound = onnx.load_model_from_string(whole)
    weights = sound.graph.initializer[0]
    values = numpy_helper.to_array(weights).copy()
    values.flat[0] = np.nan
    weights.CopyFrom(numpy_helper.from_array(values, weights.name))
    onnx.save(sound, source.path)
    with pytest.raises(BuildError, match="hold a NaN"):
        build(source)
