"""What onnxruntime's GPU backends share: is it there, and did it really take the GPU?"""

from __future__ import annotations

import contextlib
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from deploykit.artifact import Artifact
from deploykit.backends import RunOptions
from deploykit.backends._files import loading
from deploykit.backends._gpu import gpu_missing
from deploykit.backends.ort import OrtRunner
from deploykit.errors import BackendFailedError, BackendUnavailableError
from deploykit.runtime import CPU, RECORD_NODES, session

# The two packages hold the same files, and the one that was installed last wins: the command sees to that.
INSTALL = "run pip install 'deploykit[cuda]' && pip install --force-reinstall --no-deps onnxruntime-gpu"
#: What the latency of these backends is, for whoever reads it.
END_TO_END = (
    "its latency is end to end, from NumPy arrays to NumPy arrays: the copies to the GPU and back are in it, and the "
    "GPU's own time is not measured apart."
)
#: Of the int8 operators that our files have, onnxruntime's CUDA has none: in a Scan they make it copy at every step.
INT8_ON_CPU = (
    "its int8 products run on the CPU, onnxruntime having none for CUDA, with copies to it and back wherever a layer "
    "on the GPU needs their results: this file is made for the ort backend."
)
_RECURRENT = frozenset({"GRU", "LSTM", "RNN"})
_OLDER_OPSET = (
    "onnxruntime's CUDA runs GRU, LSTM and RNN of the opsets 14 to 21, with their usual activations: export with "
    "--opset 20 where the file's is newer."
)


def missing(library: str, what: str) -> str | None:
    """Why the provider in onnxruntime's file ``library`` cannot run here, in one sentence; None where it may."""
    if provider_file(library) is None:
        return f"onnxruntime is not installed with {what}: {INSTALL} (it needs an NVIDIA GPU)."
    return gpu_missing(f"onnxruntime's {what}")


def provider_file(library: str) -> Path | None:
    """onnxruntime's file of the provider ``library``, cuda or tensorrt; None where it came without."""
    # Looked for as files: importing onnxruntime would tell as much, and load it.
    spec = find_spec("onnxruntime")
    folders = () if spec is None else spec.submodule_search_locations or ()
    found = (path for folder in folders for path in Path(folder, "capi").glob(f"*onnxruntime_providers_{library}.*"))
    return next(found, None)


def wanted_tensorrt() -> int | None:
    """The major version of TensorRT that onnxruntime's provider is linked to; None where nobody knows."""
    file = provider_file("tensorrt")
    match = None if file is None else re.search(rb"\blibnvinfer\.so\.(\d+)|\bnvinfer_(\d+)\.dll", file.read_bytes())
    return None if match is None else int(match[1] or match[2])


def built_for_cuda() -> int | None:
    """The major version of CUDA that the installed onnxruntime was built for; None where for none, or nobody knows."""
    file = provider_file("cuda")
    info = None if file is None else file.with_name("build_and_package_info.py")
    if info is None or not info.is_file():
        return None
    match = re.search(r"cuda_version\s*=\s*['\"](\d+)", info.read_text(encoding="utf-8", errors="replace"))
    return None if match is None else int(match[1])


def open_on(
    provider: str,
    further: Mapping[str, Mapping[str, str]],
    artifact: Artifact,
    options: RunOptions,
    made: Callable[[Any], OrtRunner] = OrtRunner,
) -> OrtRunner:
    """A session whose nodes go to the first of the providers in ``further`` that takes them, else to the CPU.

    Raises:
        BackendUnavailableError: the artifact holds operators that run on the CPU alone.
        BackendFailedError: it cannot be loaded, or onnxruntime left ``provider`` out and would run without it.
    """
    if artifact.operators:
        raise BackendUnavailableError(
            f"{artifact.path.name} holds operators of {', '.join(artifact.operators)}, which run on the CPU alone: use "
            "the ort backend, or quantize with --kernels portable."
        )
    # NVIDIA's libraries would else round float32 inputs of products to TF32's 10 bits: float32 shall mean float32.
    os.environ["NVIDIA_TF32_OVERRIDE"] = "0"
    with loading(artifact.path, "onnxruntime"):
        import onnxruntime

        # CUDA from pip packages; there is no such function before 1.21, and a system may have its own.
        with contextlib.suppress(Exception):
            onnxruntime.preload_dlls()
        providers: list[str | tuple[str, Mapping[str, str]]] = [*further.items(), CPU]
        opened = session(artifact.path, options.threads, providers, entries=RECORD_NODES)
    if provider not in opened.get_providers():
        raise BackendFailedError(
            f"onnxruntime left {provider} out and would run on {', '.join(opened.get_providers())}: its CUDA, cuDNN or "
            "TensorRT libraries are missing or of another version than it was built for; run deploykit doctor."
        )
    runner = made(opened)
    int8 = (INT8_ON_CPU,) if artifact.format == "onnx-int8" else ()
    runner.notes = (END_TO_END, *int8, *on_cpu(opened))
    return runner


def on_cpu(opened: Any) -> tuple[str, ...]:
    """What runs on the CPU, each time with copies to it and back, in sentences; none where none is known."""
    try:
        parts = opened.get_provider_graph_assignment_info()
    except Exception:  # a release that does not tell
        return ()
    kinds = Counter(node.op_type for part in parts if part.ep_name == CPU for node in part.get_nodes())
    if not kinds:
        return ()
    told = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    sentences = (f"{kinds.total()} of its nodes run on the CPU: {told}.",)
    return (*sentences, _OLDER_OPSET) if _RECURRENT & kinds.keys() else sentences
