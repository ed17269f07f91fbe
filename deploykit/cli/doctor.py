"""``deploykit doctor``."""

from __future__ import annotations

import os
import platform
import re
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from deploykit import kernels, registry
from deploykit.cli import _shared, _table
from deploykit.cli.backends import backend_entries
from deploykit.config import Config
from deploykit.errors import KernelsError
from deploykit.trt import doctor as gpu
from deploykit.versions import version

_OPTIONAL = ("openvino", "onnxruntime-gpu", "tensorrt", "pycuda")
_PACKAGES = ("torch", "onnx", "onnxscript", "onnxruntime", "numpy", "safetensors", *_OPTIONAL)


@click.command(
    help="Say what this machine has, what is wrong, and the next step. Ends with 1 when something needed is missing."
)
@_shared.json_option
@click.pass_obj
def command(config: Config, json_target: str | None) -> None:
    facts = _facts(config)
    seen = gpu.collect()
    findings = gpu.examine(seen)
    problems = _problems(config, facts)
    problems += [f"{finding.what}: {finding}" for finding in findings if finding.wrong]
    if json_target is not None:
        told = {"gpu": {"devices": seen.gpus, "reason": seen.no_gpu}, "tensorrt": [asdict(one) for one in findings]}
        _shared.emit_json(_shared.as_json({**facts, **told, "problems": problems}), json_target)
    if json_target != "-":
        _show(facts, findings, problems)
    if problems:
        click.get_current_context().exit(1)


def _facts(config: Config) -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "int8_instructions": _int8_instructions(),
        "kernels": _kernels(),
        "packages": {name: version(name) for name in _PACKAGES},
        "project_file": None if config.source is None else str(config.source),
        "model": config.model.ref,
        "zoo": {name: registry.zoo_weights(name).is_file() for name in registry.zoo_names()},
        "backends": backend_entries(),
    }


def _problems(config: Config, facts: dict[str, Any]) -> list[str]:
    found = [
        f"{name} is not installed: run pip install {name}."
        for name, version in facts["packages"].items()
        if version is None and name not in _OPTIONAL
    ]
    found += [
        f"the weights of {name} are missing: run pip install --force-reinstall deploykit."
        for name, there in facts["zoo"].items()
        if not there
    ]
    existing = next(
        folder for folder in (config.build_dir.resolve(), *config.build_dir.resolve().parents) if folder.exists()
    )
    if not os.access(existing, os.W_OK):
        found.append(
            f"the build folder {config.build_dir} cannot be written: set build-dir in deploykit.toml, or use -o."
        )
    return found


def _show(facts: dict[str, Any], findings: list[gpu.Finding], problems: list[str]) -> None:
    rows = [
        ("python", f"{facts['python']}, {facts['system']}, {facts['cpus']} CPUs"),
        ("int8 instructions", facts["int8_instructions"]),
        ("fused int8 kernels", _kernels_told(facts["kernels"])),
        ("packages", ", ".join(f"{name} {version}" for name, version in facts["packages"].items() if version)),
        ("project file", facts["project_file"] or "none (deploykit.toml): the zoo's default model is used"),
        ("model", facts["model"]),
    ]
    rows += [
        (f"backend {entry['name']}", "runs here" if entry["available"] else entry["reason"])
        for entry in facts["backends"]
    ]
    # What is wrong stands below, as a problem.
    rows += [(finding.what, str(finding)) for finding in findings if not finding.wrong]
    _table.show(("", ""), rows)
    for problem in problems:
        click.secho(f"problem: {problem}", fg="red")
    if not problems:
        click.echo("everything needed is here.")


def _kernels() -> dict[str, Any]:
    """Whether the fused operators are there, and the CPU path that they take; no problem where not, being optional."""
    try:
        return {
            "available": True,
            "reason": None,
            "path": kernels.used_path(),
            "paths": {path.name: path.runs_here for path in kernels.cpu_paths()},
        }
    except KernelsError as error:
        return {"available": False, "reason": str(error), "path": None, "paths": {}}


def _kernels_told(facts: dict[str, Any]) -> str:
    if not facts["available"]:
        return str(facts["reason"])
    others = ", ".join(name for name, runs in facts["paths"].items() if not runs)
    return f"run here, by their path {facts['path']}{f' (not on this CPU: {others})' if others else ''}"


def _int8_instructions() -> str:
    """What decides the speed of int8: the dot-product instructions that the kernel reports for this CPU."""
    if sys.platform != "linux":
        return "not known on this system"
    flags = set(re.findall(r"\w+", Path("/proc/cpuinfo").read_text(encoding="utf-8")))
    names = {
        "amx_int8": "AMX",
        "avx512_vnni": "AVX512-VNNI",
        "avx_vnni": "AVX-VNNI",
        "asimddp": "NEON dot product",
        "avx2": "AVX2",
    }
    return ", ".join(told for flag, told in names.items() if flag in flags) or "none"
