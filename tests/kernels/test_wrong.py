"""What the operators refuse, with a sentence and never a crash; and all of it once more under AddressSanitizer."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest

from deploykit.kernels import why_missing
from tests.kernels import building
from tests.kernels.graphs import Arrays, Layer
from tests.kernels.wrong import WRONG_FEEDS, WRONG_MODELS, said_of_feeds, said_of_model

pytestmark = pytest.mark.skipif(why_missing() is not None, reason=str(why_missing()))


@pytest.mark.parametrize(("layer", "words"), WRONG_MODELS.values(), ids=WRONG_MODELS)
def test_wrong_models(layer: Layer, words: str) -> None:
    said = said_of_model(layer)
    assert said.startswith("onnxruntime"), said
    assert words in said


@pytest.mark.parametrize(("changed", "words"), WRONG_FEEDS.values(), ids=WRONG_FEEDS)
def test_wrong_feeds(changed: Arrays, words: str) -> None:
    said = said_of_feeds(changed)
    assert said.startswith("onnxruntime"), said
    assert words in said


def test_a_path_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEPLOYKIT_KERNELS_PATH", "abacus")
    assert "DEPLOYKIT_KERNELS_PATH is abacus" in said_of_model(Layer())


@pytest.mark.slow
@pytest.mark.skipif(platform.system() != "Linux", reason="LD_PRELOAD is Linux's")
def test_under_address_sanitizer(built: Path) -> None:
    asan = building.native(built, *building.ADDRESS)
    library = building.sanitized(asan, building.native(built), [building.OPERATORS], "-shared")
    runtimes = [
        subprocess.run([*building.compiler(), f"-print-file-name={name}"], capture_output=True, text=True, check=True)
        for name in ("libasan.so", "libubsan.so", "libstdc++.so")
    ]
    done = building.run(
        [sys.executable, "-m", "tests.kernels.wrong"],
        LD_PRELOAD=" ".join(str(Path(runtime.stdout.strip()).resolve()) for runtime in runtimes),
        ASAN_OPTIONS="detect_leaks=0",
        UBSAN_OPTIONS="halt_on_error=1:print_stacktrace=1",
        DEPLOYKIT_KERNELS_LIBRARY=str(library),
        PYTHONPATH=str(building.ROOT),
    )
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    assert done.stdout == "all sound\n"
