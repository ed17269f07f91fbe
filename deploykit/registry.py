"""Finds backends, quantization schemes and zoo models by their files: to add one is to add one file.

``deploykit/backends/<name>.py`` defines ``BACKEND``, ``deploykit/quantize/<name>.py`` defines ``SCHEME``, and a zoo
model ``models/<name>.py`` defines a function ``spec``. Underscores in file names are dashes in names; files that begin
with an underscore are nobody's but their neighbours'. Listing reads no more than file names (and, in the zoo, syntax),
so it imports nothing.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from deploykit.errors import UnknownNameError, UsageError

if TYPE_CHECKING:
    from deploykit.backends import Backend
    from deploykit.quantize import Scheme
    from deploykit.types import ModelSpec

DEFAULT_MODEL = "charlm-gru"


def backend_names() -> tuple[str, ...]:
    """Names of all backends, the reference first, then alphabetical."""
    return tuple(sorted(_names(_folder("deploykit.backends")), key=lambda name: (name != "torch", name)))


def backend(name: str) -> Backend:
    """The backend of that name, or the object that ``package.module:attribute`` names: somebody's own backend.

    Raises:
        UnknownNameError: there is no such file.
        UsageError: the module or its attribute does not exist, or is no backend.
    """
    if ":" in name:
        return _own_backend(name)
    module = _load("backend", "deploykit.backends", name, backend_names())
    found: Backend = module.BACKEND
    return found


def _own_backend(name: str) -> Backend:
    from deploykit.backends import Backend

    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(f"cannot find the backend {name!r}: {error}.") from error
    if not isinstance(found, Backend):
        raise UsageError(f"{name!r} is no backend: name an instance of a subclass of deploykit.backends.Backend.")
    return found


def scheme_names() -> tuple[str, ...]:
    """Names of all quantization schemes, alphabetical."""
    return tuple(sorted(_names(_folder("deploykit.quantize"))))


def scheme(name: str) -> Scheme:
    """The quantization scheme of that name.

    Raises:
        UnknownNameError: there is no such file.
    """
    module = _load("quantization method", "deploykit.quantize", name, scheme_names())
    found: Scheme = module.SCHEME
    return found


def zoo_folder() -> Path:
    """The folder of the zoo's files: ``models/`` of the checkout, installed as ``deploykit/models``."""
    return _folder("deploykit.models")


def zoo_names() -> tuple[str, ...]:
    """Names of all zoo models, alphabetical."""
    return tuple(sorted(_names(zoo_folder(), lambda path: _defines(path, "spec"))))


def zoo_summary(name: str) -> str:
    """The first line of a zoo model's docstring, read without importing it."""
    tree = ast.parse((zoo_folder() / f"{_stem(name)}.py").read_text(encoding="utf-8"))
    return (ast.get_docstring(tree) or "").split("\n", 1)[0]


def zoo_weights(name: str) -> Path:
    """Where a zoo model's trained weights lie."""
    return zoo_folder() / "weights" / f"{name}.safetensors"


def zoo_model(name: str, weights: Path | None = None) -> ModelSpec:
    """The spec of a zoo model, with fresh, untrained weights, and with the sizes that ``weights`` tell of.

    A model whose sizes come from the data it was trained on takes the weights file in its ``spec``; by default it asks
    the zoo's own.

    Raises:
        UnknownNameError: there is no such file.
        WeightsError: the weights are another task's.
    """
    module = _load("model", "deploykit.models", name, zoo_names())
    given = () if weights is None or not inspect.signature(module.spec).parameters else (weights,)
    found: ModelSpec = module.spec(*given)
    return found


def zoo_part(name: str) -> Any:
    """A module beside the zoo's models: ``family``, the architectures that they are made of."""
    return importlib.import_module(f"deploykit.models.{name}")


def _folder(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(package)
    return Path(next(iter(spec.submodule_search_locations)))


def _names(folder: Path, wanted: Callable[[Path], bool] | None = None) -> list[str]:
    return [
        path.stem.replace("_", "-")
        for path in folder.glob("*.py")
        if not path.stem.startswith("_") and (wanted is None or wanted(path))
    ]


def _defines(path: Path, function: str) -> bool:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return any(isinstance(node, ast.FunctionDef) and node.name == function for node in tree.body)


def _stem(name: str) -> str:
    return name.replace("-", "_")


def _load(kind: str, package: str, name: str, known: tuple[str, ...]) -> ModuleType:
    if name not in known:
        raise UnknownNameError(kind, name, known)
    return importlib.import_module(f"{package}.{_stem(name)}")
