"""The machine and software that a report's numbers come from. No host or user name, and no path of the machine's."""

from __future__ import annotations

import csv
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deploykit import kernels
from deploykit.errors import KernelsError
from deploykit.versions import versions

#: Vector instructions that decide how fast int8 and float32 kernels are.
FLAGS = (
    "avx2",
    "fma",
    "f16c",
    "avx_vnni",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_int8",
    "amx_bf16",
    "asimddp",
    "i8mm",
    "sve",
)
LIBRARIES = (
    "deploykit",
    "torch",
    "onnxruntime",
    "onnx",
    "onnxscript",
    "numpy",
    "openvino",
    "onnxruntime-gpu",
    "tensorrt",
    "pycuda",
)
#: What nvidia-smi says of a GPU, and what the report calls it: what stays, and what changes with its work.
_GPU = {
    "name": "name",
    "driver_version": "driver",
    "memory.total": "memory_mib",
    "clocks.max.sm": "max_clock_mhz",
    "clocks.max.mem": "max_memory_clock_mhz",
    "power.limit": "power_limit_w",
    "persistence_mode": "persistence",
}
_GPU_STATE = {
    "pstate": "state",
    "clocks.sm": "clock_mhz",
    "clocks.mem": "memory_clock_mhz",
    "power.draw": "power_w",
    "temperature.gpu": "temperature_c",
}
_GPU_WORDS = ("name", "driver", "persistence", "state")


def environment(
    threads: int, denormals: Sequence[str], gpu_state: Sequence[Mapping[str, Any]] | None = None
) -> dict[str, Any]:
    """Everything about the machine that a latency may depend on; None where it cannot be read.

    ``denormals`` is what each backend's worker found: ``kept`` or ``flushed``; ``gpu_state`` is what ``gpu_state`` said
    when the timing had just ended.
    """
    return {
        "cpu": _cpu_model(),
        "cpu_flags": _cpu_flags(),
        "cores": os.cpu_count(),
        "usable_cores": _usable_cores(),
        "memory_bytes": _memory(),
        "frequency_policy": _read(Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")),
        "turbo": _turbo(),
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "os": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
        "python": platform.python_version(),
        "libraries": versions(LIBRARIES),
        "kernels": _kernels(),
        "threads": threads,
        "spinning": False,
        "denormals": sorted(set(denormals)),
        "git": _git(),
        "gpus": gpus(),
        "gpu_state": gpu_state,
    }


def gpus() -> list[dict[str, Any]] | None:
    """What nvidia-smi says of each NVIDIA GPU, as its name and driver; None where there is none, or no nvidia-smi."""
    return _gpus(_GPU)


def gpu_state() -> list[dict[str, Any]] | None:
    """Clocks, power and temperature of each NVIDIA GPU at this moment; None where there is none, or no nvidia-smi.

    They are read and never set: a GPU slows down when it is hot or at its limit, and a reader should see that.
    """
    return _gpus(_GPU_STATE)


def _gpus(fields: Mapping[str, str]) -> list[dict[str, Any]] | None:
    told = _run("nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits")
    rows = [row for row in csv.reader((told or "").splitlines(), skipinitialspace=True) if len(row) == len(fields)]
    return [dict(zip(fields.values(), map(_gpu_value, fields.values(), row), strict=True)) for row in rows] or None


def _gpu_value(name: str, text: str) -> str | float | None:
    """A number, or a word; None for what nvidia-smi says in brackets: that the GPU does not tell."""
    text = text.strip()
    if not text or text.startswith("[") or text == "N/A":
        return None
    if name in _GPU_WORDS:
        return text
    try:
        return float(text)
    except ValueError:
        return None


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip() or None
    except OSError:
        return None


def _cpu_info(*keys: str) -> str | None:
    for line in (_read(Path("/proc/cpuinfo")) or "").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in keys:
            return value.strip()
    return None


def _cpu_model() -> str | None:
    return _cpu_info("model name") or _sysctl("machdep.cpu.brand_string") or platform.processor() or None


def _cpu_flags() -> list[str]:
    present = set((_cpu_info("flags", "Features") or "").split())
    return [flag for flag in FLAGS if flag in present]


def _kernels() -> str | None:
    try:
        return kernels.used_path()
    except KernelsError:
        return None


def _usable_cores() -> int | None:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None


def _turbo() -> bool | None:
    boost = _read(Path("/sys/devices/system/cpu/cpufreq/boost"))
    no_turbo = _read(Path("/sys/devices/system/cpu/intel_pstate/no_turbo"))
    if boost is not None:
        return boost == "1"
    return no_turbo == "0" if no_turbo is not None else None


def _git() -> dict[str, Any] | None:
    commit = _run("git", "rev-parse", "HEAD")
    changed = _run("git", "status", "--porcelain", "--untracked-files=no")
    return None if commit is None or changed is None else {"commit": commit, "dirty": bool(changed)}


def _sysctl(name: str) -> str | None:
    return _run("sysctl", "-n", name) if sys.platform == "darwin" else None


def _run(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
