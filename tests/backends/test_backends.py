"""What is special to each backend, beyond the contract."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from deploykit import registry
from deploykit.artifact import Artifact
from deploykit.backends import RunOptions
from deploykit.backends._feeds import check_feeds
from deploykit.errors import BackendFailedError, BackendUnavailableError, ModelError, UnknownNameError, UsageError
from deploykit.types import TensorSpec
from tests.backends.models import onnx_artifact, torch_artifact

X = {"x": np.random.default_rng(0).standard_normal((2, 5, 4)).astype(np.float32)}


def infer(name: str, artifact: Artifact) -> dict[str, Any]:
    with registry.backend(name).open(artifact, RunOptions()) as runner:
        return runner.infer(X)


def test_onnxruntime_computes_what_pytorch_computes(tmp_path: Path) -> None:
    expected, found = infer("torch", torch_artifact()), infer("ort", onnx_artifact(tmp_path))
    for name in expected:
        assert np.allclose(expected[name], found[name], atol=1e-6)


def test_torch_names_nested_outputs_in_order() -> None:
    found = infer("torch", torch_artifact("nested"))
    assert list(found) == ["output_0", "a_0", "a_1"]
    assert np.array_equal(found["a_1"], X["x"] + 2)


@pytest.mark.parametrize(
    ("factory", "error", "message"),
    [
        ("stringly", ModelError, "the model returns a str"),
        ("brain", BackendFailedError, "'output' is torch.bfloat16"),
        ("breaks", BackendFailedError, "the PyTorch model failed: mat1 and mat2"),
        ("misnamed", ModelError, "returns 2"),
    ],
)
def test_torch_says_what_is_wrong_with_a_model(factory: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        infer("torch", torch_artifact(factory))


def test_torch_uses_the_threads_that_it_is_given() -> None:
    before = torch.get_num_threads()
    try:
        registry.backend("torch").open(torch_artifact(), RunOptions(threads=1)).close()
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_torch_needs_to_know_its_model() -> None:
    with pytest.raises(BackendFailedError, match="does not say which PyTorch model"):
        infer("torch", replace(torch_artifact(), model=None))


def test_ort_refuses_a_missing_or_damaged_file_in_one_sentence(tmp_path: Path) -> None:
    artifact = onnx_artifact(tmp_path)
    content = artifact.path.read_bytes()
    for damaged in (content[: len(content) // 2], b"", b"no protobuf at all"):
        artifact.path.write_bytes(damaged)
        with pytest.raises(BackendFailedError, match=r"cannot load contract\.onnx") as error:
            infer("ort", artifact)
        assert "\n" not in str(error.value)
        assert str(tmp_path) not in str(error.value)
    artifact.path.unlink()
    with pytest.raises(BackendFailedError, match="there is no file"):
        infer("ort", artifact)


def test_ort_says_that_it_is_closed(tmp_path: Path) -> None:
    runner = registry.backend("ort").open(onnx_artifact(tmp_path), RunOptions())
    runner.close()
    with pytest.raises(BackendFailedError, match="closed"):
        runner.infer(X)


@pytest.mark.parametrize("name", ["trt", "trt-graph"])
def test_trt_says_what_is_missing_one_after_another(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    backend = registry.backend(name)
    present: set[str] = set()
    monkeypatch.setattr("deploykit.trt.library.find_spec", lambda module: module if module in present else None)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    told = "is not installed: run pip install 'deploykit[trt]' (it needs an NVIDIA GPU)."
    assert backend.available() == f"TensorRT {told}"
    present.add("tensorrt")
    assert backend.available() == f"pycuda {told}"
    present.add("pycuda")
    assert "CUDA_VISIBLE_DEVICES hides every GPU from TensorRT" in str(backend.available())
    with pytest.raises(BackendUnavailableError, match="CUDA_VISIBLE_DEVICES"):
        backend.open(torch_artifact(), RunOptions())
    monkeypatch.setattr("deploykit.trt.cuda.gpu_missing", lambda: None)
    assert backend.available() is None


def test_torch_compile_says_which_compiler_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler -O3")
    reason = registry.backend("torch-compile").available()
    assert reason == "torch.compile needs a C++ compiler and there is no no-such-compiler: install one, or set CXX."
    with pytest.raises(BackendUnavailableError, match="no-such-compiler"):
        registry.backend("torch-compile").open(torch_artifact(), RunOptions())


@pytest.mark.parametrize("name", ["torch", "torch-int8"])
def test_the_torch_backends_say_that_they_are_closed(name: str) -> None:
    runner = registry.backend(name).open(torch_artifact("gated"), RunOptions())
    runner.close()
    with pytest.raises(BackendFailedError, match="is closed"):
        runner.infer(X)


def test_torch_int8_says_so_where_torch_has_no_quantization(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.ao.quantization", None)
    with pytest.raises(BackendUnavailableError, match=r"no torch\.ao\.quantization"):
        registry.backend("torch-int8").open(torch_artifact("gated"), RunOptions())


def test_openvino_says_what_it_cannot_read_or_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    backend = registry.backend("openvino")
    if backend.available() is not None:
        assert "deploykit[openvino]" in str(backend.available())
        pytest.skip("OpenVINO is not installed")
    artifact = onnx_artifact(tmp_path)
    for domain, step in (("com.microsoft", "upgrade it"), ("ai.deploykit", "quantize with --kernels portable")):
        model = onnx.load(artifact.path)
        model.graph.node[0].domain, model.graph.node[0].op_type = domain, "NoSuchOperator"
        model.opset_import.append(onnx.helper.make_opsetid(domain, 1))
        onnx.save(model, artifact.path)
        with pytest.raises(
            BackendUnavailableError, match=f"does not know the operators {domain}.NoSuchOperator: {step}, or use ort"
        ):
            backend.open(artifact, RunOptions())
    artifact.path.write_bytes(b"no protobuf at all")
    with pytest.raises(BackendFailedError, match=r"OpenVINO cannot load contract\.onnx") as error:
        backend.open(artifact, RunOptions())
    assert "core.cpp" not in str(error.value)
    monkeypatch.setattr("deploykit.backends.openvino.find_spec", lambda name: None)
    assert backend.available() == "OpenVINO is not installed: run pip install 'deploykit[openvino]'."


def test_the_default_set_is_quick_and_all_is_all(monkeypatch: pytest.MonkeyPatch) -> None:
    from deploykit.cli import _bench

    monkeypatch.setattr("deploykit.backends.openvino.find_spec", lambda name: None)
    assert _bench.wanted_backends(("default",)) == ("torch", "ort", "trt")
    assert _bench.wanted_backends(("torch-int8", "default")) == ("torch-int8", "torch", "ort", "trt")
    visible = [name for name in registry.backend_names() if not registry.backend(name).hidden]
    assert list(_bench.wanted_backends(("all",))) == visible
    monkeypatch.setattr("deploykit.backends.openvino.find_spec", lambda name: name)
    assert "openvino" in _bench.wanted_backends(("default",))


def test_a_backends_own_precision_is_that_of_its_rows() -> None:
    from deploykit.cli import _bench

    subjects = _bench.plan(("torch-int8",), torch_artifact(), [])
    assert [(one.backend, one.artifact and one.artifact.precision) for one in subjects] == [
        ("torch", "float32"),
        ("torch-int8", "int8"),
    ]


def test_null_returns_zeros_and_is_hidden() -> None:
    assert registry.backend("null").hidden
    assert not infer("null", torch_artifact())["y"].any()
    for outputs in ((), (TensorSpec.parse("y[batch,words]"),)):
        with pytest.raises(BackendFailedError, match="null backend needs outputs"):
            infer("null", replace(torch_artifact(), outputs=outputs))


def test_only_null_is_hidden() -> None:
    assert [name for name in registry.backend_names() if registry.backend(name).hidden] == ["null"]


def test_feeds_bind_the_dims_and_must_agree() -> None:
    specs = tuple(map(TensorSpec.parse, ("x[batch,time]", "h[1,batch]")))
    feeds = {"x": np.zeros((2, 5), np.float32), "h": np.zeros((1, 2), np.float32)}
    assert check_feeds(feeds, specs) == {"batch": 2, "time": 5}
    with pytest.raises(BackendFailedError, match="with batch=2"):
        check_feeds({**feeds, "h": np.zeros((1, 3), np.float32)}, specs)


def test_a_users_own_backend_is_named_by_module_and_attribute() -> None:
    assert registry.backend("deploykit.backends.null:BACKEND") is registry.backend("null")
    for name in ("no.such.module:X", "deploykit.backends.null:NOTHING", ":X", "null:"):
        with pytest.raises(UsageError, match="cannot find the backend"):
            registry.backend(name)
    with pytest.raises(UsageError, match="is no backend"):
        registry.backend("deploykit.backends.null:NullRunner")
    with pytest.raises(UnknownNameError, match="did you mean 'ort'"):
        registry.backend("orrt")


def test_looking_for_backends_imports_no_accelerator_library() -> None:
    assert importlib.util.find_spec("deploykit.backends.trt") is not None
    code = (
        "import sys; from deploykit import registry\n"
        "[registry.backend(name).available() for name in registry.backend_names()]\n"
        "print([name for name in ('torch', 'onnxruntime', 'openvino', 'tensorrt', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
