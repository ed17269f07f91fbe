"""What a machine has for TensorRT and for onnxruntime on a GPU, what does not go together, and the next step.

``collect`` gathers the facts and ``examine`` judges them, so that each can be tested without the other.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deploykit.errors import first_line
from deploykit.trt.library import OLDEST, UNKNOWN, parse_version
from deploykit.trt.packages import NAMES, cudas_of, version_of

#: The oldest driver that runs each CUDA (minor versions of one CUDA share it), and from TensorRT 11 on.
DRIVERS: Mapping[int, int] = {11: 450, 12: 525, 13: 580}
DRIVER_OF_TENSORRT_11_ON_CUDA_12 = 535
#: The Python versions that TensorRT has bindings for.
PYTHONS = ((3, 8), (3, 14))
_TIMEOUT = 60.0
_AGAIN = "pip uninstall the tensorrt packages that `pip list` shows, then run pip install 'deploykit[trt]'"
_RENEW_DRIVER = "install NVIDIA's driver 580 or newer"


@dataclass(frozen=True)
class Load:
    """How importing a library in a process of its own ended: with its version, or with why not."""

    version: str | None = None
    error: str | None = None
    #: The CUDA that pycuda was compiled with.
    cuda: int | None = None


@dataclass(frozen=True)
class Facts:
    """What there is. ``gpus`` is what nvidia-smi told, and ``no_gpu`` says why none is visible."""

    packages: Mapping[str, str] = field(default_factory=dict)
    gpus: tuple[Mapping[str, Any], ...] = ()
    no_gpu: str | None = None
    python: tuple[int, int] = (3, 11)
    tensorrt: Load | None = None
    pycuda: Load | None = None
    #: Whether there is NVIDIA's package that lets an older driver of a data-center GPU run this CUDA.
    compatible: bool = False
    #: What onnxruntime's GPU providers were built for, where it has any.
    ort_cuda: int | None = None
    ort_tensorrt: int | None = None

    @property
    def nothing(self) -> bool:
        """Whether there is neither a GPU nor anything that needs one."""
        return not self.gpus and self.no_gpu is not None and not self.packages.keys() - {"onnxruntime"}

    @property
    def driver(self) -> int | None:
        """The major version of the oldest driver told."""
        told = [parse_version(str(gpu.get("driver") or "")) for gpu in self.gpus]
        return min((version[0] for version in told if version), default=None)


@dataclass(frozen=True)
class Finding:
    """One thing: how it stands, the next step where there is one, and whether installed parts contradict each other."""

    what: str
    state: str
    step: str | None = None
    wrong: bool = False

    def __str__(self) -> str:
        return self.state if self.step is None else f"{self.state}: {self.step}."


def collect() -> Facts:
    """The facts of this machine. Nothing heavy is imported here, and nothing is started where there is nothing."""
    from deploykit.backends import _ort_gpu
    from deploykit.backends._gpu import gpu_missing
    from deploykit.bench.environment import gpus
    from deploykit.versions import versions

    packages = versions((*NAMES, "pycuda", "onnxruntime", "onnxruntime-gpu"))
    has_tensorrt = version_of(packages) is not None
    has_gpu_ort = "onnxruntime-gpu" in packages
    return Facts(
        packages,
        tuple(gpus() or ()),
        gpu_missing("TensorRT"),
        (sys.version_info.major, sys.version_info.minor),
        _load(_TENSORRT) if has_tensorrt else None,
        _load(_PYCUDA) if "pycuda" in packages else None,
        any(Path("/usr/local/cuda/compat").glob("libcuda.so*")),
        _ort_gpu.built_for_cuda() if has_gpu_ort else None,
        _ort_gpu.wanted_tensorrt() if has_gpu_ort else None,
    )


def examine(facts: Facts) -> list[Finding]:
    """How everything stands; one line where there is nothing."""
    if facts.nothing:
        return [
            Finding(
                "GPU",
                "no NVIDIA GPU is visible, and nothing for one is installed",
                "where there is one, run pip install 'deploykit[trt]'",
            )
        ]
    checks: tuple[Callable[[Facts], Iterator[Finding]], ...] = (_gpu, _tensorrt, _pycuda, _onnxruntime)
    return [finding for check in checks for finding in check(facts)]


def _gpu(facts: Facts) -> Iterator[Finding]:
    if facts.gpus:
        told = ", ".join(f"{gpu.get('name')}, driver {gpu.get('driver')}" for gpu in facts.gpus)
        yield Finding("GPU", told)
    if facts.no_gpu is not None:  # beside what nvidia-smi tells, which CUDA_VISIBLE_DEVICES does not concern
        yield Finding("GPU", facts.no_gpu.rstrip("."))
    elif not facts.gpus:
        yield Finding(
            "GPU",
            "one may be visible, but nvidia-smi does not answer",
            f"{_RENEW_DRIVER}; in a container, give it the GPU (--gpus all)",
        )
    if facts.driver is not None and facts.driver < DRIVERS[12]:
        yield Finding("driver", f"{facts.driver} is too old for CUDA 12", _RENEW_DRIVER)


def _tensorrt(facts: Facts) -> Iterator[Finding]:
    packages = {name: version for name, version in facts.packages.items() if name in NAMES}
    version = version_of(packages)
    if version is None:
        yield _no_tensorrt(facts)
        return
    cudas = cudas_of(packages)
    if len(cudas) > 1:
        told = " and ".join(map(str, cudas))
        yield Finding("TensorRT", f"its packages for CUDA {told} are installed together", _AGAIN, wrong=True)
    elif len({parse_version(found) for found in packages.values()}) > 1:
        told = ", ".join(f"{name} {found}" for name, found in packages.items())
        yield Finding("TensorRT", f"its parts are of different versions ({told})", _AGAIN, wrong=True)
    yield _loaded_tensorrt(facts, packages, version)
    yield from (finding for cuda in cudas for finding in _old_driver(facts, "TensorRT", cuda, parse_version(version)))


def _no_tensorrt(facts: Facts) -> Finding:
    low, high = PYTHONS
    if not low <= facts.python <= high:
        return Finding(
            "TensorRT",
            f"not installed, and not made for Python {facts.python[0]}.{facts.python[1]}",
            f"use a Python from 3.11 to {high[0]}.{high[1]}",
        )
    if facts.driver is not None and facts.driver < DRIVERS[13]:
        return Finding(
            "TensorRT",
            f"not installed; the driver {facts.driver} is too old for CUDA 13, which pip's tensorrt is made for",
            f"{_RENEW_DRIVER}, or run pip install 'tensorrt-cu12>=10.0,<12' pycuda",
        )
    return Finding("TensorRT", "not installed", "run pip install 'deploykit[trt]'")


def _loaded_tensorrt(facts: Facts, packages: Mapping[str, str], version: str) -> Finding:
    loaded = facts.tensorrt
    if loaded is not None and loaded.error is not None:
        absent = _absent_parts(packages)
        if absent:
            return Finding("TensorRT", f"{version} is installed without {' and '.join(absent)}", _AGAIN, wrong=True)
        return Finding("TensorRT", f"{version} is installed, and cannot be loaded ({loaded.error})", _AGAIN)
    found = loaded.version if loaded is not None and loaded.version else version
    if not OLDEST <= parse_version(found) < UNKNOWN:
        return Finding(
            "TensorRT",
            f"{found} is none that deploykit knows",
            f"install one from {_dotted(OLDEST)} to before {_dotted(UNKNOWN)}",
        )
    return Finding("TensorRT", found)


def _absent_parts(packages: Mapping[str, str]) -> list[str]:
    """The parts that a kind of package lacks. NVIDIA's own wheels have no such parts, so only what fails is asked."""
    kinds = [f"tensorrt-cu{cuda}" for cuda in cudas_of(packages)] or ["tensorrt"]
    return [f"{kind}-{part}" for kind in kinds for part in ("bindings", "libs") if f"{kind}-{part}" not in packages]


def _pycuda(facts: Facts) -> Iterator[Finding]:
    version = facts.packages.get("pycuda")
    if version is None:
        if version_of(facts.packages) is not None:
            needs = "with a C++ compiler and CUDA's headers (CPATH=/usr/local/cuda/include)"
            yield Finding("pycuda", "not installed", f"run pip install 'deploykit[trt]', {needs}")
        return
    loaded = facts.pycuda
    if loaded is not None and loaded.error is not None:
        step = (
            f"it needs NVIDIA's driver: {_RENEW_DRIVER}"
            if "libcuda.so" in loaded.error
            else "build it again: pip install --force-reinstall --no-cache-dir --no-binary :all: --no-deps pycuda"
        )
        yield Finding("pycuda", f"{version} is installed, and cannot be loaded ({loaded.error})", step)
        return
    cuda = None if loaded is None else loaded.cuda
    yield Finding("pycuda", version if cuda is None else f"{version}, built for CUDA {cuda}")
    if cuda is None:
        return
    yield from _old_driver(facts, "pycuda", cuda, ())
    others = [other for other in cudas_of(facts.packages) if other != cuda]
    if others:
        yield Finding(
            "pycuda",
            f"it is built for CUDA {cuda}, and TensorRT for {others[0]}",
            f"where it fails, build it again with CUDA {others[0]}: pip install --force-reinstall --no-cache-dir "
            "--no-deps pycuda",
        )


def _onnxruntime(facts: Facts) -> Iterator[Finding]:
    version = facts.packages.get("onnxruntime-gpu")
    if version is None:
        return
    if facts.ort_cuda is None and facts.ort_tensorrt is None:
        from deploykit.backends._ort_gpu import INSTALL

        yield Finding(
            "onnxruntime-gpu", f"{version} is installed, and the package onnxruntime has overwritten it", INSTALL
        )
        return
    yield Finding(
        "onnxruntime-gpu", version if facts.ort_cuda is None else f"{version}, built for CUDA {facts.ort_cuda}"
    )
    other = facts.packages.get("onnxruntime")
    if other is not None and other != version:
        yield Finding(
            "onnxruntime-gpu",
            f"{version} and onnxruntime {other} lie in one folder, and their files mix",
            f"run pip install --force-reinstall --no-deps onnxruntime=={version} && pip install --force-reinstall "
            f"--no-deps onnxruntime-gpu=={version}",
            wrong=True,
        )
    if facts.ort_cuda is not None:
        yield from _old_driver(facts, "onnxruntime-gpu", facts.ort_cuda, ())
    tensorrt = version_of(facts.packages)
    if tensorrt is not None and facts.ort_tensorrt not in (None, parse_version(tensorrt)[0]):
        yield Finding(
            "onnxruntime-gpu",
            f"it is built for TensorRT {facts.ort_tensorrt}, and {tensorrt} is installed, so ort-trt cannot run",
            f"use the trt backend, or pip install 'tensorrt=={facts.ort_tensorrt}.*' in an environment of its own",
        )


def _old_driver(facts: Facts, what: str, cuda: int, version: tuple[int, ...]) -> Iterator[Finding]:
    """A driver that is too old for the CUDA that an installed part is made for."""
    needed = DRIVERS.get(cuda, 0)
    if cuda == 12 and version >= (11,):
        needed = DRIVER_OF_TENSORRT_11_ON_CUDA_12
    if facts.driver is not None and facts.driver < needed:
        yield Finding(
            what,
            f"it is made for CUDA {cuda}, which needs the driver {needed}, and this one is {facts.driver}",
            f"install NVIDIA's driver {needed} or newer",
            wrong=not facts.compatible,
        )


_TENSORRT = "import json, tensorrt; print(json.dumps({'version': str(tensorrt.__version__)}))"
_PYCUDA = (
    "import json, pycuda, pycuda.driver as driver;"
    "print(json.dumps({'version': str(pycuda.VERSION_TEXT), 'cuda': int(driver.get_version()[0])}))"
)


def _load(code: str, timeout: float = _TIMEOUT) -> Load:
    """Import in another process: a broken library may crash, hang or print, and none of that shall happen here."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=timeout, check=False
        )
    except (OSError, subprocess.SubprocessError) as error:
        hangs = isinstance(error, subprocess.TimeoutExpired)
        return Load(error=f"it did not answer within {timeout:.0f} s" if hangs else first_line(error))
    if done.returncode < 0:
        return Load(error=f"it crashed with signal {-done.returncode}")
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        return Load(error=lines[-1].rstrip(".") if lines else f"it ended with {done.returncode}")
    try:
        return Load(**json.loads(done.stdout.strip().splitlines()[-1]))
    except (ValueError, IndexError, TypeError):
        return Load(error="it answered nothing that can be read")


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
