"""The machine and software that a report's numbers come from. No host or user name, and no path of the machine's."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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


def environment(threads: int, denormals: Sequence[str]) -> dict[str, Any]:
    """Everything about the machine that a latency may depend on; None where it cannot be read.

    ``denormals`` is what each backend's worker found: ``kept`` or ``flushed``.
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
        "threads": threads,
        "spinning": False,
        "denormals": sorted(set(denormals)),
        "git": _git(),
    }


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
