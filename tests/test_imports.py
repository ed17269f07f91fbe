"""Every module of the package imports, and pulls in nothing heavy on its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import deploykit

ROOT = Path(deploykit.__file__).parent
MODULES = sorted(
    ".".join(("deploykit", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")
    for path in ROOT.rglob("*.py")
    if path.name != "__main__.py"
)
# Modules that exist to work on torch modules may say so at their top; whoever uses them imports them inside functions.
TORCH = {f"deploykit.export.{name}" for name in ("_honest", "_lowering", "_packed", "_stream", "_trace")} | {
    "deploykit.probing",
    "deploykit.streaming",
    "deploykit.watching",
}


def test_every_module_imports_without_torch_or_a_runtime() -> None:
    wanted = [name for name in MODULES if name not in TORCH and not name.startswith("deploykit.models")]
    code = (
        f"import importlib, sys\nfor name in {wanted!r}:\n    importlib.import_module(name)\n"
        "print([name for name in ('torch', 'onnxruntime', 'tensorrt', 'pycuda') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_is_long(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400
