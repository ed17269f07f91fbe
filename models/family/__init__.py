"""The recurrent family: one file an architecture, found by its name. `models/_heads.py` is what tasks put around them.

Each file defines ``Encoder``, a subclass of ``Recurrent``: sequences in, features of each step out. The first line of
its docstring says what it is. To add one is to add one file.
"""

from __future__ import annotations

import ast
from abc import abstractmethod
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from deploykit.errors import UnknownNameError

_FOLDER = Path(__file__).parent


class Recurrent(nn.Module):
    """``x`` float32 [batch, time, input_size] to features [batch, time, output_size].

    ``lengths`` int64 [batch] says how many steps of each row are real; no real step's features depend on the others.
    """

    #: Whether the features of a step depend on that step and those before it alone.
    causal: ClassVar[bool] = True

    def __init__(self, input_size: int, hidden_size: int, *, num_layers: int = 1, dropout: float = 0.0) -> None:
        """``num_layers`` layers with ``dropout`` between them, which each architecture makes for itself."""
        super().__init__()
        self.input_size, self.hidden_size = input_size, hidden_size
        #: Where it is not ``hidden_size``, the architecture sets it.
        self.output_size = hidden_size

    @abstractmethod
    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor: ...

    def summary(self, features: Tensor, lengths: Tensor | None = None) -> Tensor:
        """The whole row in one vector, [batch, output_size]: the features of its last real step."""
        if lengths is None:
            return features[:, -1]
        last = (lengths - 1).view(-1, 1, 1).expand(-1, 1, features.shape[2])
        return torch.gather(features, 1, last).squeeze(1)


@runtime_checkable
class Streaming(Protocol):
    """A causal architecture that can carry a state, and so take a long row piece by piece, with the same features."""

    def stream(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]: ...


def names() -> tuple[str, ...]:
    """Names of all architectures, alphabetical."""
    return tuple(sorted(_name(path) for path in _FOLDER.glob("*.py") if not path.stem.startswith("_")))


def encoder(name: str) -> type[Recurrent]:
    """The architecture of that name.

    Raises:
        UnknownNameError: there is no such file.
    """
    if name not in names():
        raise UnknownNameError("architecture", name, names())
    found: type[Recurrent] = import_module(f".{name.replace('-', '_')}", __package__).Encoder
    return found


def summary(name: str) -> str:
    """The first line of an architecture's docstring, read without importing it."""
    tree = ast.parse((_FOLDER / f"{name.replace('-', '_')}.py").read_text(encoding="utf-8"))
    return (ast.get_docstring(tree) or "").split("\n", 1)[0]


def _name(path: Path) -> str:
    return path.stem.replace("_", "-")
