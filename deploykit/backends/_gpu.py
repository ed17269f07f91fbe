"""Is an NVIDIA GPU visible? Told by the system's files alone: asking the driver would start it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

#: Where Linux shows its devices as files.
DEVICES = Path("/dev")
# A GPU of a desktop or server, the one that Windows lends to WSL, and that of a Jetson.
_NAMES = ("nvidia[0-9]*", "dxg", "nvhost-gpu", "nvgpu")


def gpu_missing(what: str) -> str | None:
    """Why ``what`` cannot have a GPU here, in one sentence; None where one is visible, or where files do not tell."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if hidden is not None and hidden.split(",")[0].strip() in ("", "-1", "NoDevFiles"):
        return f"CUDA_VISIBLE_DEVICES hides every GPU from {what}, which needs one: unset it, or name a GPU in it."
    if sys.platform == "linux" and not any(list(DEVICES.glob(name)) for name in _NAMES):
        return f"no NVIDIA GPU is visible to this system, and {what} needs one."
    return None
