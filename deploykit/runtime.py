"""onnxruntime sessions, opened in one way everywhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from deploykit import kernels
from deploykit.errors import KernelsError
from deploykit.opsets import operators_of

if TYPE_CHECKING:
    from onnxruntime import InferenceSession, SessionOptions

CPU = "CPUExecutionProvider"
#: Makes a session remember which provider runs which node; onnxruntime before 1.24 does not know it.
RECORD_NODES = {"session.record_ep_graph_assignment_info": "1"}

# Fatal only: what goes wrong comes as an exception, and onnxruntime would print it on stderr as well.
_SEVERITY = 4


def session(
    model: bytes | Path,
    threads: int | None = None,
    providers: Sequence[str | tuple[str, Mapping[str, str]]] = (CPU,),
    entries: Mapping[str, str] | None = None,
) -> InferenceSession:
    """A session with that many threads for one inference, or as many as onnxruntime thinks best; on the CPU by default.

    ``entries`` are further settings of the session, by onnxruntime's names.
    Its threads sleep between runs: spinning ones slow down whatever runs next. Raises what onnxruntime raises, whose
    exceptions have no common base below Exception; ``sentence`` makes a sentence of them. A model with operators of
    ``deploykit.kernels`` gets their library.

    Raises:
        KernelsError: it needs that library, which is not here or is of another version, or ``DEPLOYKIT_KERNELS_PATH``
            names a path that does not run here.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = _SEVERITY
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    for key, value in (entries or {}).items():
        options.add_session_config_entry(key, value)
    if threads is not None:
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
    _add_operators(options, model)
    source = str(model) if isinstance(model, Path) else model
    # No second try: where a provider fails, onnxruntime would print so on stdout and go on with the next one, in the
    # middle of a run too, and its numbers would be told as those of the first.
    return onnxruntime.InferenceSession(source, options, providers=list(providers), enable_fallback=0)


def _add_operators(options: SessionOptions, model: bytes | Path) -> None:
    wanted = operators_of(model).get(kernels.DOMAIN)
    if wanted is None:
        return
    name = model.name if isinstance(model, Path) else "the model"
    needs = f"{name} needs version {wanted} of the operators of {kernels.DOMAIN}"
    if wanted != kernels.VERSION:
        how = "upgrade deploykit" if wanted > kernels.VERSION else "quantize its float file again"
        raise KernelsError(f"{needs}, and this deploykit has version {kernels.VERSION}: {how}.")
    reason = kernels.why_missing()
    if reason is not None:
        raise KernelsError(f"{needs}: {reason}")
    kernels.used_path()  # a path that cannot run here is told better than onnxruntime tells it
    options.register_custom_ops_library(str(kernels.library_path()))


def sentence(error: Exception) -> str:
    """onnxruntime's message without its code prefix, line breaks and full stop."""
    text = " ".join(str(error).split())
    if text.startswith("[ONNXRuntimeError]"):
        text = text.split(" : ", 3)[-1]
    return text.rstrip(". ")
