"""onnxruntime's GPU backends, as far as that goes without a GPU: on a session that tells what it was asked for."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from deploykit import registry
from deploykit.backends import RunOptions, _gpu, _ort_gpu
from deploykit.backends.ort_trt import other_tensorrt, profile_of, trt_options
from deploykit.errors import BackendFailedError, BackendUnavailableError
from deploykit.types import DimRange, TensorSpec
from tests.backends.models import onnx_artifact

X = {"x": np.random.default_rng(0).standard_normal((2, 5, 4)).astype(np.float32)}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Mapping[str, str]]]:
    """The providers that sessions are asked for; they run on the CPU, and say that they took all of them."""
    found: list[dict[str, Mapping[str, str]]] = []
    true = onnxruntime.InferenceSession

    class Session(true):  # type: ignore[misc,valid-type]
        def __init__(self, source: Any, options: Any, providers: list[Any], **further: Any) -> None:
            found.append(dict(one if isinstance(one, tuple) else (one, {}) for one in providers))
            assert further == {"enable_fallback": 0}
            super().__init__(source, options, providers=["CPUExecutionProvider"], **further)

        def get_providers(self) -> list[str]:
            return list(found[-1])

    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    for name in ("ort_cuda", "ort_trt"):
        monkeypatch.setattr(f"deploykit.backends.{name}.missing", lambda *_: None)
    monkeypatch.setattr("deploykit.backends.ort_trt.wanted_tensorrt", lambda: None)
    return found


def test_cuda_is_asked_for_float32_that_is_float32(
    asked: list[dict[str, Mapping[str, str]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE", raising=False)
    with registry.backend("ort-cuda").open(onnx_artifact(tmp_path), RunOptions()) as runner:
        assert runner.infer(X)["y"].shape == (2, 5, 3)
    assert list(asked[0]) == ["CUDAExecutionProvider", "CPUExecutionProvider"]
    assert asked[0]["CUDAExecutionProvider"] == {"device_id": "0", "use_tf32": "0"}
    assert os.environ["NVIDIA_TF32_OVERRIDE"] == "0"


def test_tensorrt_is_told_the_sizes_and_has_cuda_behind_it(
    asked: list[dict[str, Mapping[str, str]]], tmp_path: Path
) -> None:
    artifact = replace(onnx_artifact(tmp_path), dims={"time": DimRange(1, 8)})
    with registry.backend("ort-trt").open(artifact, RunOptions()) as runner:
        assert runner.infer(X)["y"].shape == (2, 5, 3)
        with pytest.raises(BackendFailedError, match=r"x has the shape \(2, 9, 4\), .* \(1, 1, 4\) to \(32, 8, 4\)"):
            runner.infer({"x": np.zeros((2, 9, 4), np.float32)})
    assert list(asked[0]) == ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    assert {key: value for key, value in asked[0]["TensorrtExecutionProvider"].items() if "profile" in key} == {
        "trt_profile_min_shapes": "x:1x1x4",
        "trt_profile_opt_shapes": "x:1x8x4",
        "trt_profile_max_shapes": "x:32x8x4",
    }


def test_a_graph_that_tensorrt_takes_in_parts_is_opened_without_sizes(
    asked: list[dict[str, Mapping[str, str]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    true = onnxruntime.InferenceSession

    def strict(source: Any, options: Any, providers: list[Any], **further: Any) -> Any:
        if "trt_profile_min_shapes" in providers[0][1]:
            raise RuntimeError("Following input(s) has no associated shape profiles provided: hidden_3")
        return true(source, options, providers, **further)

    monkeypatch.setattr(onnxruntime, "InferenceSession", strict)
    with registry.backend("ort-trt").open(onnx_artifact(tmp_path), RunOptions()) as runner:
        assert "builds an engine again at each size" in runner.notes[-1]
        runner.infer({"x": np.zeros((2, 5000, 4), np.float32)})
    assert "trt_profile_min_shapes" not in asked[-1]["TensorrtExecutionProvider"]

    def broken(source: Any, options: Any, providers: list[Any], **further: Any) -> Any:
        raise RuntimeError("TensorRT EP failed to create engine")

    monkeypatch.setattr(onnxruntime, "InferenceSession", broken)
    with pytest.raises(BackendFailedError, match="failed to create engine"):
        registry.backend("ort-trt").open(onnx_artifact(tmp_path), RunOptions())


def test_tensorrt_may_use_no_less_precision_than_the_artifact(tmp_path: Path) -> None:
    artifact = onnx_artifact(tmp_path)
    kinds = [
        artifact,
        replace(artifact, precision="float16"),
        replace(artifact, precision="bfloat16"),
        replace(artifact, format="onnx-qdq", precision="int8"),
    ]
    names = ("trt_fp16_enable", "trt_bf16_enable", "trt_int8_enable")
    found = [tuple(trt_options(kind, {}).get(name) for name in names) for kind in kinds]
    assert found == [("0", None, "0"), ("1", None, "0"), ("0", "1", "0"), ("0", None, "1")]
    assert "trt_engine_cache_enable" not in trt_options(artifact, {})


def test_only_inputs_with_dynamic_dims_are_in_the_profile(tmp_path: Path) -> None:
    artifact = onnx_artifact(tmp_path)
    fixed = TensorSpec.parse("h:float32[1,1,3]")
    assert list(profile_of(replace(artifact, inputs=(*artifact.inputs, fixed)))) == ["x"]
    assert profile_of(replace(artifact, inputs=(fixed,))) == {}
    named = TensorSpec("a:b", "float32", ("batch",))
    assert profile_of(replace(artifact, inputs=(named,))) == {}


def test_operators_that_only_the_cpu_has_are_refused(asked: list[dict[str, Mapping[str, str]]], tmp_path: Path) -> None:
    artifact = replace(onnx_artifact(tmp_path), format="onnx-int8", operators={"ai.deploykit": 1})
    with pytest.raises(BackendUnavailableError, match=r"ai\.deploykit, which run on the CPU alone: use the ort"):
        registry.backend("ort-cuda").open(artifact, RunOptions())
    assert asked == []


def test_int8_files_say_that_their_products_run_on_the_cpu(
    asked: list[dict[str, Mapping[str, str]]], tmp_path: Path
) -> None:
    artifact = replace(onnx_artifact(tmp_path), format="onnx-int8", precision="int8")
    assert _ort_gpu.INT8_ON_CPU in registry.backend("ort-cuda").open(artifact, RunOptions()).notes


def test_a_provider_that_onnxruntime_leaves_out_is_an_error_and_never_the_cpu(tmp_path: Path) -> None:
    artifact = onnx_artifact(tmp_path)
    with pytest.raises(BackendFailedError, match="left NoSuchProvider out and would run on CPUExecutionProvider"):
        _ort_gpu.open_on("NoSuchProvider", {}, artifact, RunOptions())


def test_what_a_gpus_latency_is_and_its_nodes_on_the_cpu_are_told(tmp_path: Path) -> None:
    runner = _ort_gpu.open_on("CPUExecutionProvider", {}, onnx_artifact(tmp_path), RunOptions())
    if not hasattr(runner._session, "get_provider_graph_assignment_info"):
        assert runner.notes == (_ort_gpu.END_TO_END,)
        return
    assert runner.notes[0] == _ort_gpu.END_TO_END
    assert runner.notes[1].startswith("4 of its nodes run on the CPU: 2 Transpose, 1 RNN")
    # A recurrent layer is what the GPU was wanted for.
    assert "export with --opset 20" in runner.notes[2]


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The folder capi of an onnxruntime without providers."""
    folder = tmp_path / "onnxruntime"
    (folder / "capi").mkdir(parents=True)
    (folder / "__init__.py").touch()
    monkeypatch.setattr(
        "deploykit.backends._ort_gpu.find_spec",
        lambda name: importlib.util.spec_from_file_location(
            name, folder / "__init__.py", submodule_search_locations=[str(folder)]
        ),
    )
    return folder / "capi"


def test_the_gpu_backends_look_for_the_provider_and_then_for_a_gpu(package: Path) -> None:
    for name in ("ort-cuda", "ort-trt"):
        assert "deploykit[cuda]" in str(registry.backend(name).available())
    (package / "libonnxruntime_providers_cuda.so").touch()
    assert "deploykit[cuda]" not in str(registry.backend("ort-cuda").available())
    assert "deploykit[cuda]" in str(registry.backend("ort-trt").available())


def test_what_the_providers_were_built_for(package: Path) -> None:
    assert (_ort_gpu.built_for_cuda(), _ort_gpu.wanted_tensorrt()) == (None, None)
    (package / "libonnxruntime_providers_tensorrt.so").write_bytes(b"\x00libcublas.so.13\x00libnvinfer.so.10\x00")
    (package / "libonnxruntime_providers_cuda.so").touch()
    (package / "build_and_package_info.py").write_text("package_name = 'x'\ncuda_version = '13.0'\n", encoding="utf-8")
    assert (_ort_gpu.built_for_cuda(), _ort_gpu.wanted_tensorrt()) == (13, 10)
    (package / "libonnxruntime_providers_tensorrt.so").write_bytes(b"\x00")
    assert _ort_gpu.wanted_tensorrt() is None


def test_another_tensorrt_than_onnxruntime_was_built_for_is_told_before_it_fails() -> None:
    assert other_tensorrt(10, "10.16.1.11") is None
    assert other_tensorrt(None, "11.4.0.106") is None
    assert other_tensorrt(10, None) is None
    assert "built for TensorRT 10, and 11.4.0.106 is installed: run pip install 'tensorrt==10.*'" in str(
        other_tensorrt(10, "11.4.0.106")
    )


@pytest.mark.parametrize(
    ("hidden", "devices", "said"),
    [
        (None, ("nvidia0", "nvidiactl"), None),
        (None, ("dxg",), None),
        (None, ("nvidiactl", "null"), "no NVIDIA GPU is visible to this system, and TensorRT needs one."),
        ("", ("nvidia0",), "CUDA_VISIBLE_DEVICES hides every GPU from TensorRT"),
        ("-1", ("nvidia0",), "CUDA_VISIBLE_DEVICES hides every GPU from TensorRT"),
        ("1,-1", ("nvidia0",), None),
    ],
)
def test_a_gpu_is_seen_by_its_file(
    hidden: str | None, devices: tuple[str, ...], said: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in devices:
        (tmp_path / name).touch()
    monkeypatch.setattr(_gpu, "DEVICES", tmp_path)
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if hidden is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    found = _gpu.gpu_missing("TensorRT")
    assert found is None if said is None else str(found).startswith(said)
