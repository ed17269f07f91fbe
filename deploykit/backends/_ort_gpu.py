"""What onnxruntime's GPU backends share: is it there, and did it really take the GPU?"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from deploykit.artifact import Artifact
from deploykit.backends import RunOptions
from deploykit.backends._files import loading
from deploykit.backends._gpu import gpu_missing
from deploykit.backends.ort import OrtRunner, fused
from deploykit.errors import BackendFailedError
from deploykit.runtime import CPU, RECORD_NODES, session

# The two packages hold the same files, and the one that was installed last wins: the command sees to that.
_INSTALL = "run pip install 'deploykit[cuda]' && pip install --force-reinstall --no-deps onnxruntime-gpu"
#: What the latency of these backends is, for whoever reads it.
END_TO_END = (
    "its latency is end to end, from NumPy arrays to NumPy arrays: the copies to the GPU and back are in it, and the "
    "GPU's own time is not measured apart."
)


def missing(library: str, what: str) -> str | None:
    """Why the provider in onnxruntime's file ``library`` cannot run here, in one sentence; None where it may."""
    # Looked for as files: importing onnxruntime would tell as much, and load it.
    spec = find_spec("onnxruntime")
    folders = () if spec is None else spec.submodule_search_locations or ()
    if not any(list(Path(folder, "capi").glob(f"*onnxruntime_providers_{library}.*")) for folder in folders):
        return f"onnxruntime is not installed with {what}: {_INSTALL} (it needs an NVIDIA GPU)."
    return gpu_missing(f"onnxruntime's {what}")


def open_on(
    provider: str, further: Mapping[str, Mapping[str, str]], artifact: Artifact, options: RunOptions
) -> OrtRunner:
    """A session whose nodes go to the first of the providers in ``further`` that takes them, else to the CPU.

    Raises:
        BackendFailedError: it cannot be loaded, or onnxruntime left ``provider`` out and would run without it.
    """
    # NVIDIA's libraries would else round float32 inputs of products to TF32's 10 bits: float32 shall mean float32.
    os.environ["NVIDIA_TF32_OVERRIDE"] = "0"
    with loading(artifact.path, "onnxruntime"):
        import onnxruntime

        with contextlib.suppress(
            Exception
        ):  # CUDA from pip packages; absent before 1.21, and a system may have its own
            onnxruntime.preload_dlls()
        providers: list[str | tuple[str, Mapping[str, str]]] = [*further.items(), CPU]
        opened = session(artifact.path, options.threads, providers, entries=RECORD_NODES)
    if provider not in opened.get_providers():
        raise BackendFailedError(
            f"onnxruntime left {provider} out and would run on {', '.join(opened.get_providers())}: its CUDA, cuDNN or "
            "TensorRT libraries are missing or of another version than it was built for."
        )
    runner = OrtRunner(opened)
    runner.notes = (END_TO_END, *fused(artifact), *on_cpu(opened))
    return runner


def on_cpu(opened: Any) -> tuple[str, ...]:
    """A sentence on the nodes that run on the CPU, each time with copies to it and back; none where none is known."""
    try:
        parts = opened.get_provider_graph_assignment_info()
    except Exception:  # a release that does not tell
        return ()
    kinds = Counter(node.op_type for part in parts if part.ep_name == CPU for node in part.get_nodes())
    if not kinds:
        return ()
    told = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    return (f"{kinds.total()} of its nodes run on the CPU: {told}.",)
