"""The stand-in has the true bindings' names and signatures, and refuses what they refuse. It is no TensorRT."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from tests.trt import api, names
from tests.trt.sessions import Session, expected, graph, inputs, quantized, recurrent, run

every_version = pytest.mark.parametrize("stand_in", api.VERSIONS, indirect=True)


def version(name: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("stand_in", [name], indirect=True)


@every_version
def test_it_has_no_name_that_the_true_one_lacks(stand_in: Any) -> None:
    known: Mapping[str, Any] = api.load(stand_in.__version__)
    found = [name for name in dir(stand_in) if not name.startswith("_")]
    assert [name for name in found if not names.exists(known, name)] == []
    assert {"Builder", "Runtime", "OnnxParser", "Logger", "float32", "nptype"} <= set(found)
    for name in found:
        if isinstance(kind := getattr(stand_in, name), type):
            public = [member for member in dir(kind) if not member.startswith("_")]
            members = set(public) - (set(dir(bytes)) if name == "IHostMemory" else set())
            assert [member for member in members if not names.exists(known, f"{name}.{member}")] == []


@every_version
def test_its_parameters_are_the_true_ones(stand_in: Any) -> None:
    for name, about in api.load(stand_in.__version__)["classes"].items():
        kind = getattr(stand_in, name, None)
        for method, signatures in about.get("methods", {}).items():
            played = getattr(vars(kind).get(method), "__wrapped__", None) if kind is not None else None
            if played is None or method == "__init__":
                continue
            mine = [parameter for parameter in inspect.signature(played).parameters if parameter != "self"]
            true = [[each.arg for each in arguments(text).args] for text in signatures]
            assert any(mine[: len(each)] == each for each in true), f"{name}.{method}: {mine}, not {true}"


def arguments(signature: str) -> ast.arguments:
    statement = ast.parse(f"def f{signature}: ...").body[0]
    assert isinstance(statement, ast.FunctionDef)
    return statement.args


@every_version
def test_it_builds_and_runs(stand_in: Any) -> None:
    model = recurrent()
    session = Session(stand_in, model)
    assert session.parsed
    engine = session.engine()
    assert [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)] == ["x", "out"]
    assert engine.get_tensor_mode("x") == stand_in.TensorIOMode.INPUT
    assert tuple(engine.get_tensor_shape("x")) == (-1, -1, 4)
    assert [tuple(shape) for shape in engine.get_tensor_profile_shape("x", 0)] == [(1, 1, 4), (4, 2, 4), (8, 4, 4)]
    context = engine.create_execution_context()
    assert context.infer_shapes() == ["x"]
    array = inputs()
    np.testing.assert_allclose(run(context, array), expected(model, array), atol=1e-6)
    assert context.infer_shapes() == []
    assert tuple(context.get_tensor_shape("out")) == (3, 2, 3)
    assert context.get_max_output_size("out") == 8 * 4 * 3 * 4


@every_version
def test_a_plan_begins_as_a_true_one_does(stand_in: Any) -> None:
    session = Session(stand_in, recurrent())
    session.profile()
    plan = session.plan()
    assert plan[:4] == (0x74727466).to_bytes(4, "little")
    assert ".".join(str(number) for number in plan[24:28]).startswith(stand_in.__version__)


@every_version
def test_what_a_context_refuses(stand_in: Any) -> None:
    session = Session(stand_in, recurrent())
    context, array = session.engine().create_execution_context(), inputs()
    assert not context.set_input_shape("x", (9, 1, 4))
    assert not context.set_input_shape("x", (3, 1, 5))
    assert not context.set_input_shape("x", (3, 4))
    assert not context.set_input_shape("y", (3, 1, 4))
    assert not context.execute_async_v3(1)
    assert context.set_input_shape("x", array.shape)
    assert context.set_tensor_address("x", array.ctypes.data)
    assert not context.execute_async_v3(1)
    assert not context.set_tensor_address("y", 1)
    assert not context.set_optimization_profile_async(1, 1)
    assert sum("API Usage Error" in line for line in session.said) == 8


@version("11.4.0.106")
@pytest.mark.parametrize("spoil", [b"", b"short", b"tag", b"cut", b"version"])
def test_plans_that_do_not_load(stand_in: Any, spoil: bytes) -> None:
    session = Session(stand_in, recurrent())
    session.profile()
    plan = session.plan()
    spoilt = {
        b"tag": b"none" + plan[4:],
        b"cut": plan[:-1],
        b"version": plan[:24] + bytes((10, 16, 1, 11)) + plan[28:],
    }.get(spoil, spoil)
    assert stand_in.Runtime(session.logger).deserialize_cuda_engine(spoilt) is None
    assert session.said


@version("11.4.0.106")
def test_a_compatible_plan_loads_in_newer_versions_where_its_code_is_allowed(stand_in: Any) -> None:
    session = Session(stand_in, recurrent(), VERSION_COMPATIBLE=True)
    session.profile()
    older = (plan := session.plan())[:24] + bytes((10, 16, 1, 11)) + plan[28:]
    runtime = stand_in.Runtime(session.logger)
    assert runtime.deserialize_cuda_engine(older) is None
    runtime.engine_host_code_allowed = True
    assert runtime.deserialize_cuda_engine(older) is not None


@every_version
@pytest.mark.parametrize("refused", ["DynamicQuantizeLinear", "MatMulInteger", "QLinearMatMul", "com.microsoft"])
def test_the_parser_names_what_it_refuses(stand_in: Any, refused: str) -> None:
    nodes = [
        helper.make_node(refused if refused != "com.microsoft" else "Gelu", ["x"], [f"y{each}"], name=f"bad{each}")
        for each in range(2)
    ]
    for node in nodes:
        node.domain = refused if refused == "com.microsoft" else ""
    session = Session(stand_in, graph([*nodes, helper.make_node("Identity", ["x"], ["out"])], []))
    assert not session.parsed
    newer = stand_in.__version__ != "8.6.1"
    assert session.parser.num_errors == (2 if newer else 1)
    first = session.parser.get_error(0)
    assert first.node() == 0 and "bad0" in first.desc() and first.code() == stand_in.ErrorCode.UNSUPPORTED_NODE
    assert hasattr(first, "node_name") == newer
    if newer:
        assert session.parser.get_error(1).node_name() == "bad1"
    assert session.builder.build_serialized_network(session.network, session.config) is None


@version("8.6.1")
def test_without_its_flag_an_fp16_network_computes_in_float32(stand_in: Any) -> None:
    model = recurrent(TensorProto.FLOAT16)
    session = Session(stand_in, model)
    assert '"Float"' in session.layers() and '"Half"' not in session.layers()
    array = inputs()
    wide, narrow = run(session.engine().create_execution_context(), array), expected(model, array)
    # The numbers are all but the same: onnxruntime computes 16 bits wide as well.
    np.testing.assert_allclose(wide, narrow, atol=1e-2)
    assert '"Half"' in Session(stand_in, model, FP16=True).layers()


@pytest.mark.parametrize("stand_in", ["10.0.1", "11.4.0.106"], indirect=True)
def test_a_strongly_typed_network_computes_as_it_says(stand_in: Any) -> None:
    model = recurrent(TensorProto.FLOAT16)
    assert '"Half"' in Session(stand_in, model).layers()
    array = inputs()
    found = run(Session(stand_in, model).engine().create_execution_context(), array)
    np.testing.assert_array_equal(found, expected(model, array))


@version("11.4.0.106")
def test_bfloat16_runs(stand_in: Any) -> None:
    model = recurrent(TensorProto.BFLOAT16)
    session = Session(stand_in, model)
    assert '"BFloat16"' in session.layers()
    assert np.isfinite(run(session.engine().create_execution_context(), inputs())).all()


@version("10.0.1")
def test_a_flag_for_a_type_is_refused_where_the_network_is_strongly_typed(stand_in: Any) -> None:
    session = Session(stand_in, recurrent(), FP16=True)
    session.profile()
    assert session.builder.build_serialized_network(session.network, session.config) is None


@every_version
def test_a_quantized_product_is_told_as_such(stand_in: Any) -> None:
    session = Session(stand_in, quantized())
    if stand_in.__version__ == "8.6.1":
        session.profile()
        assert session.builder.build_serialized_network(session.network, session.config) is None
        session = Session(stand_in, quantized(), INT8=True)
    told = session.layers()
    assert "product" in told
    assert ("[ONNX Layer: dq]\\u001f[ONNX Layer: wdq]\\u001f[ONNX Layer: product]" in told) == (
        stand_in.__version__ != "8.6.1"
    )
    assert '"Int8"' in told


@every_version
def test_a_layer_can_be_made_to_fall_back(stand_in: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert '"Half"' not in Session(stand_in, recurrent()).layers()
    monkeypatch.setenv("DEPLOYKIT_TEST_TENSORRT_FALLBACK", "gru")
    assert '"Half"' in Session(stand_in, recurrent()).layers()


@pytest.mark.parametrize("stand_in", ["10.0.1", "11.4.0.106"], indirect=True)
def test_a_monitor_follows_a_build_and_calls_it_off(stand_in: Any) -> None:
    told: list[str] = []

    class Monitor(stand_in.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            stand_in.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            told.append(phase_name)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return step < 1

        def phase_finish(self, phase_name: str) -> None:
            told.append(f"{phase_name} is over")

    session = Session(stand_in, recurrent())
    session.profile()
    session.config.progress_monitor = Monitor()
    assert session.builder.build_serialized_network(session.network, session.config) is None
    assert told[:2] == ["Building Engine", "Tactic Selection"]
    assert told[2:] == ["Tactic Selection is over", "Building Engine is over"]


@pytest.mark.parametrize("stand_in", ["10.16.1.11", "11.4.0.106"], indirect=True)
def test_a_stripped_plan_is_smaller_and_takes_its_weights_back(stand_in: Any) -> None:
    model, array = recurrent(), inputs()
    session = Session(stand_in, model, STRIP_PLAN=True)
    whole = Session(stand_in, model)
    whole.profile()
    engine = session.engine()
    assert len(session.plan()) < len(whole.plan())
    assert engine.refittable
    context = engine.create_execution_context()
    context.set_input_shape("x", array.shape)
    for name in ("x", "out"):
        context.set_tensor_address(name, array.ctypes.data)
    assert not context.execute_async_v3(1)
    refitter = stand_in.Refitter(engine, session.logger)
    assert not refitter.refit_cuda_engine()
    parser = stand_in.OnnxParserRefitter(refitter, session.logger)
    assert not parser.refit_from_bytes(quantized().SerializeToString()) and parser.num_errors == 1
    assert parser.refit_from_bytes(model.SerializeToString())
    assert refitter.refit_cuda_engine()
    np.testing.assert_allclose(run(context, array), expected(model, array), atol=1e-6)
    with pytest.raises(TypeError):
        stand_in.Refitter(whole.engine(), session.logger)


@every_version
def test_arguments_and_attributes_are_checked(stand_in: Any) -> None:
    session = Session(stand_in, recurrent())
    for wrong in (
        lambda: session.config.set_flag("TF32"),
        session.config.set_flag,
        lambda: session.config.set_flag(flags=stand_in.BuilderFlag.TF32),
        lambda: session.builder.create_network(1.0),
        lambda: session.parser.parse("text"),
        stand_in.IBuilderConfig,
        lambda: setattr(session.config, "profiling_verbosity", 2),
    ):
        with pytest.raises(TypeError):
            wrong()
    with pytest.raises(AttributeError):
        session.config.nothing_such = 1
    with pytest.raises(AttributeError):
        session.network.num_layers = 1


@every_version
def test_outputs_may_have_an_allocator(stand_in: Any) -> None:
    shapes: list[tuple[int, ...]] = []
    place = np.zeros((3, 2, 3), np.float32)

    class Allocator(stand_in.IOutputAllocator):  # type: ignore[misc]
        def __init__(self) -> None:
            stand_in.IOutputAllocator.__init__(self)

        def reallocate_output(self, tensor_name: str, memory: int, size: int, alignment: int) -> int:
            assert size == place.nbytes
            return int(place.ctypes.data)

        def notify_shape(self, tensor_name: str, shape: Any) -> None:
            shapes.append(tuple(shape))

    model, array, allocator = recurrent(), inputs(), Allocator()
    context = Session(stand_in, model).engine().create_execution_context()
    assert context.set_input_shape("x", array.shape) and context.set_tensor_address("x", array.ctypes.data)
    assert context.set_output_allocator("out", allocator) and context.execute_async_v3(1)
    assert shapes == [(3, 2, 3)]
    np.testing.assert_allclose(place, expected(model, array), atol=1e-6)


def test_processes_started_from_a_test_have_the_stand_in_too(stand_in: Any) -> None:
    lines = (
        "import tensorrt, importlib.util as u\n"
        "print(tensorrt.__version__)\n"
        "if u.find_spec('deploykit.trt.cuda'):\n"
        "    from deploykit.trt import cuda\n    print(cuda.gpu_missing())"
    )
    done = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, check=True)
    assert done.stdout.split() in (["11.4.0.106"], ["11.4.0.106", "None"])
