"""The weights of a run averaged over its last steps, which are steadier than those of any one of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class Average:
    """An exponential moving average of a module's parameters (Polyak and Juditsky, 1992, with forgetting).

    The average moves by 1 - ``decay`` of the way to the weights in each step; at first by more, so that it forgets
    where they began.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.module, self.decay, self.updates = module, decay, 0
        self.values: dict[str, Tensor] = {name: value.detach().clone() for name, value in module.named_parameters()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the module's weights after a step."""
        self.updates += 1
        share = 1 - min(self.decay, self.updates / (self.updates + 10))
        for name, value in self.module.named_parameters():
            self.values[name].lerp_(value, share)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The module with the averaged weights, as long as the block lasts."""
        own = {name: value.detach().clone() for name, value in self.module.named_parameters()}
        self._copy(self.values)
        try:
            yield
        finally:
            self._copy(own)

    def state(self) -> dict[str, Any]:
        return {"values": self.values, "updates": self.updates}

    def load(self, state: dict[str, Any]) -> None:
        self.updates = state["updates"]
        for name, value in self.values.items():
            value.copy_(state["values"][name])

    @torch.no_grad()
    def _copy(self, values: dict[str, Tensor]) -> None:
        for name, value in self.module.named_parameters():
            value.copy_(values[name])
