"""Running a module to learn about it: on a copy, and knowing which part of it runs."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from torch import nn

from deploykit.types import ModelSpec


def copied(spec: ModelSpec) -> ModelSpec:
    """``spec`` with a copy of its module, which may run without a trace left on it; with the module if need be."""
    # Some modules hold tensors that PyTorch cannot copy.
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch warns of its own tree specs when it copies a program of its own
            return replace(spec, module=copy.deepcopy(spec.module))
    except (RuntimeError, TypeError, AttributeError, NotImplementedError):
        return spec


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
