"""What is said of a machine's GPU, TensorRT, pycuda and onnxruntime-gpu, from facts that are made up here."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest

from deploykit.trt import doctor
from deploykit.trt.doctor import Facts, Finding, Load, examine
from deploykit.trt.packages import version_of

GPU = {"name": "NVIDIA H100", "driver": "580.95.05"}
CU13 = dict.fromkeys(("tensorrt", "tensorrt-cu13", "tensorrt-cu13-bindings", "tensorrt-cu13-libs"), "11.4.0.106")
CU12 = {"tensorrt-cu12": "10.16.1.11", "tensorrt-cu12-bindings": "10.16.1.11", "tensorrt-cu12-libs": "10.16.1.11"}
#: A machine on which everything goes together.
GOOD = Facts(
    {**CU13, "pycuda": "2026.1", "onnxruntime": "1.31.1"},
    gpus=(GPU,),
    tensorrt=Load("11.4.0.106"),
    pycuda=Load("2026.1", cuda=13),
)


def gpu(driver: str) -> tuple[dict[str, str], ...]:
    return ({**GPU, "driver": driver},)


def said(facts: Facts, what: str) -> list[str]:
    return [str(finding) for finding in examine(facts) if finding.what == what]


def wrong(facts: Facts) -> list[str]:
    return [finding.what for finding in examine(facts) if finding.wrong]


def test_a_machine_with_nothing_is_one_line() -> None:
    facts = Facts({"onnxruntime": "1.32.0"}, no_gpu="no NVIDIA GPU is visible to this system, and TensorRT needs one.")
    assert [str(finding) for finding in examine(facts)] == [
        "no NVIDIA GPU is visible, and nothing for one is installed: where there is one, run pip install "
        "'deploykit[trt]'."
    ]


def test_everything_that_goes_together_has_no_step() -> None:
    assert examine(GOOD) == [
        Finding("GPU", "NVIDIA H100, driver 580.95.05"),
        Finding("TensorRT", "11.4.0.106"),
        Finding("pycuda", "2026.1, built for CUDA 13"),
    ]


def test_a_gpu_alone_gets_the_next_step() -> None:
    assert said(Facts(gpus=(GPU,)), "TensorRT") == ["not installed: run pip install 'deploykit[trt]'."]
    assert said(Facts(gpus=gpu("550.54.14")), "TensorRT") == [
        "not installed; the driver 550 is too old for CUDA 13, which pip's tensorrt is made for: install NVIDIA's "
        "driver 580 or newer, or run pip install 'tensorrt-cu12>=10.0,<12' pycuda."
    ]
    assert said(Facts(gpus=gpu("470.1")), "driver") == [
        "470 is too old for CUDA 12: install NVIDIA's driver 580 or newer."
    ]
    assert "not made for Python 3.15" in said(Facts(gpus=(GPU,), python=(3, 15)), "TensorRT")[0]
    assert wrong(Facts(gpus=gpu("470.1"), python=(3, 15))) == []


def test_a_driver_that_does_not_answer() -> None:
    assert "nvidia-smi does not answer" in said(replace(GOOD, gpus=()), "GPU")[0]
    hidden = replace(GOOD, gpus=(), no_gpu="CUDA_VISIBLE_DEVICES hides every GPU.")
    assert said(hidden, "GPU") == ["CUDA_VISIBLE_DEVICES hides every GPU"]
    assert said(replace(hidden, gpus=(GPU,)), "GPU")[1] == "CUDA_VISIBLE_DEVICES hides every GPU"
    # The oldest of several GPUs' drivers counts, and what is no version is none.
    assert replace(GOOD, gpus=(GPU, {"name": "other", "driver": None})).driver == 580
    assert replace(GOOD, gpus=({"name": "other", "driver": None},)).driver is None


@pytest.mark.parametrize(
    ("driver", "packages", "needed"),
    [
        ("575.57", CU13, 580),
        ("580.1", CU13, None),
        ("520.1", CU12, 525),
        ("525.1", CU12, None),
        ("525.1", dict.fromkeys(CU12, "11.4.0.106"), 535),
        ("535.1", dict.fromkeys(CU12, "11.4.0.106"), None),
    ],
)
def test_a_driver_too_old_for_tensorrts_cuda(driver: str, packages: dict[str, str], needed: int | None) -> None:
    facts = Facts(packages, gpus=gpu(driver), tensorrt=Load(version_of(packages)))
    assert wrong(facts) == ([] if needed is None else ["TensorRT"])
    if needed is not None:
        assert f"needs the driver {needed}, and this one is {facts.driver}" in said(facts, "TensorRT")[-1]
        # NVIDIA's package for older drivers may mend it: told, but no contradiction.
        assert wrong(replace(facts, compatible=True)) == []
        assert said(replace(facts, compatible=True), "TensorRT") == said(facts, "TensorRT")


def test_packages_for_two_cudas() -> None:
    facts = replace(GOOD, packages={**GOOD.packages, **dict.fromkeys(CU12, "11.4.0.106")})
    assert wrong(facts) == ["TensorRT"]
    assert "its packages for CUDA 12 and 13 are installed together: pip uninstall" in said(facts, "TensorRT")[0]


def test_parts_of_different_versions() -> None:
    facts = replace(GOOD, packages={**GOOD.packages, "tensorrt-cu13-libs": "11.3.0.99"})
    assert wrong(facts) == ["TensorRT"]
    assert "tensorrt-cu13-libs 11.3.0.99" in said(facts, "TensorRT")[0]
    # A repaired package of the same version is the same version.
    assert wrong(replace(GOOD, packages={**GOOD.packages, "tensorrt": "11.4.0.106.post1"})) == []


def test_a_tensorrt_that_cannot_be_loaded() -> None:
    broken = replace(GOOD, tensorrt=Load(error="ImportError: libnvinfer.so.11: cannot open shared object file"))
    assert wrong(broken) == []
    assert "cannot be loaded (ImportError: libnvinfer.so.11" in said(broken, "TensorRT")[0]
    without = replace(broken, packages={"tensorrt": "11.4.0.106", "tensorrt-cu13": "11.4.0.106"})
    assert wrong(without) == ["TensorRT"]
    assert "without tensorrt-cu13-bindings and tensorrt-cu13-libs" in said(without, "TensorRT")[0]
    # NVIDIA's own wheel brings the bindings in itself, and its libraries lie in the system.
    assert said(replace(GOOD, packages={"tensorrt": "10.16.1.11"}, tensorrt=Load("10.16.1.11")), "TensorRT") == [
        "10.16.1.11"
    ]


@pytest.mark.parametrize(
    ("version", "known"), [("8.5.3.1", False), ("8.6.1", True), ("11.9.0", True), ("12.0.0", False)]
)
def test_versions_that_nobody_knows(version: str, known: bool) -> None:
    facts = replace(GOOD, packages={"tensorrt": version, "pycuda": "2026.1"}, tensorrt=Load(version))
    assert ("none that deploykit knows" in said(facts, "TensorRT")[0]) is not known
    assert wrong(facts) == []


def test_pycuda() -> None:
    without = replace(GOOD, packages=CU13, pycuda=None)
    assert "not installed: run pip install 'deploykit[trt]', with a C++ compiler" in said(without, "pycuda")[0]
    no_driver = replace(GOOD, pycuda=Load(error="ImportError: libcuda.so.1: cannot open shared object file"))
    assert "it needs NVIDIA's driver" in said(no_driver, "pycuda")[0]
    broken = replace(GOOD, pycuda=Load(error="ImportError: undefined symbol: cuCtxCreate_v4"))
    assert "build it again: pip install --force-reinstall" in said(broken, "pycuda")[0]
    other = replace(GOOD, pycuda=Load("2026.1", cuda=12))
    assert "it is built for CUDA 12, and TensorRT for 13" in said(other, "pycuda")[1]
    too_new = replace(GOOD, packages={**CU12, "pycuda": "2026.1"}, gpus=gpu("550.1"), tensorrt=Load("10.16.1.11"))
    assert wrong(too_new) == ["pycuda"]


def test_onnxruntime_gpu() -> None:
    gpu_ort = replace(GOOD, packages={**GOOD.packages, "onnxruntime-gpu": "1.31.1"}, ort_cuda=13, ort_tensorrt=10)
    assert said(gpu_ort, "onnxruntime-gpu") == [
        "1.31.1, built for CUDA 13",
        "it is built for TensorRT 10, and 11.4.0.106 is installed, so ort-trt cannot run: use the trt backend, or pip "
        "install 'tensorrt==10.*' in an environment of its own.",
    ]
    assert wrong(gpu_ort) == []
    assert wrong(replace(gpu_ort, gpus=gpu("570.1"))) == ["TensorRT", "pycuda", "onnxruntime-gpu"]
    overwritten = replace(gpu_ort, ort_cuda=None, ort_tensorrt=None)
    assert "the package onnxruntime has overwritten it: run pip install" in said(overwritten, "onnxruntime-gpu")[0]
    mixed = replace(gpu_ort, packages={**gpu_ort.packages, "onnxruntime": "1.32.0"})
    assert wrong(mixed) == ["onnxruntime-gpu"]
    assert "1.31.1 and onnxruntime 1.32.0 lie in one folder" in said(mixed, "onnxruntime-gpu")[1]


@pytest.mark.parametrize(
    ("code", "loaded"),
    [
        ('print(\'noise\'); print(\'{"version": "1.2", "cuda": 13}\')', Load("1.2", cuda=13)),
        ("import no_such_library", Load(error="ModuleNotFoundError: No module named 'no_such_library'")),
        ("print('no answer')", Load(error="it answered nothing that can be read")),
        ("pass", Load(error="it answered nothing that can be read")),
        ("import sys; sys.exit(3)", Load(error="it ended with 3")),
    ],
)
def test_a_library_is_loaded_in_a_process_of_its_own(code: str, loaded: Load) -> None:
    assert doctor._load(code) == loaded


@pytest.mark.skipif(sys.platform == "win32", reason="has no signals")
def test_a_library_that_crashes_or_hangs_takes_nobody_along() -> None:
    assert doctor._load("import os; os.kill(os.getpid(), 11)") == Load(error="it crashed with signal 11")
    assert doctor._load("import time; time.sleep(600)", timeout=0.5).error == "it did not answer within 0 s"


def test_the_facts_of_this_machine_are_gathered_and_judged() -> None:
    facts = doctor.collect()
    assert facts.python == sys.version_info[:2]
    assert facts.packages.get("onnxruntime") or "onnxruntime-gpu" in facts.packages
    assert all(str(finding) for finding in examine(facts))
