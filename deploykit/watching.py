"""Which part of a module is running."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn


@contextlib.contextmanager
def watched(module: nn.Module, enter: Callable[[str], object], leave: Callable[[str], object]) -> Iterator[None]:
    """While this lasts, ``enter`` and ``leave`` are told the path of each part of ``module`` that begins and ends.

    A part that raises does not end. Parts that are called by ``forward`` itself, and not as a module, are not seen.
    """
    names = {id(part): name for name, part in module.named_modules()}

    def before(part: nn.Module, _: Any) -> None:
        if id(part) in names:
            enter(names[id(part)])

    def after(part: nn.Module, *_: Any) -> None:
        if id(part) in names:
            leave(names[id(part)])

    handles = [
        nn.modules.module.register_module_forward_pre_hook(before),
        nn.modules.module.register_module_forward_hook(after),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
