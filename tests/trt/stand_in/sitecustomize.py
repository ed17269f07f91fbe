"""Python imports this at its start where this folder is on the path: in the processes that tests with stand-ins start.

There a GPU counts as visible: ``deploykit.trt.cuda.gpu_missing`` finds nothing missing, once that module is imported.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

MODULE, FUNCTION = "deploykit.trt.cuda", "gpu_missing"


def nothing(*_: object, **__: object) -> None:
    """What the check says here."""


class Finder(importlib.abc.MetaPathFinder):
    """Finds the module as ever, and changes the one function when it has been loaded."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != MODULE:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.loader is None:
            return None
        loader: Any = spec.loader
        execute = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            setattr(module, FUNCTION, nothing)

        loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, Finder())
