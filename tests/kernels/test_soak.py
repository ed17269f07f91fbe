"""Eight threads on one session for a while: the same answers, and no more memory. ``soak.py`` does it for long."""

from __future__ import annotations

import platform

import pytest

from deploykit.kernels import why_missing
from tests.kernels.soak import soak


@pytest.mark.skipif(why_missing() is not None, reason=str(why_missing()))
@pytest.mark.skipif(platform.system() != "Linux", reason="memory is read from /proc")
def test_memory_stays() -> None:
    memory = soak(2000)
    # One call that lost its Work (some 100 KiB at the largest shape) would have lost 30 MiB by now.
    assert memory[-1] - memory[0] < 4 << 20
