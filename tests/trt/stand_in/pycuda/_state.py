"""What the stand-in keeps count of, and what a test may make it do. The true pycuda has no such module."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, field
from typing import Any


@dataclass
class State:
    """The one GPU that is played."""

    name: str = "Stand-in GPU"
    compute_capability: tuple[int, int] = (9, 0)
    driver: int = 13000
    devices: int = 1
    #: Bytes of device memory that can be had in all.
    memory: int = 1 << 30
    #: What each function fails with, by the CUDA function's name: ``{"cuInit": "no CUDA-capable device is detected"}``.
    failing: dict[str, str] = field(default_factory=dict)
    #: Objects that live, by kind, and what was made in all.
    live: Counter[str] = field(default_factory=Counter)
    made: Counter[str] = field(default_factory=Counter)
    #: What was released, in its order.
    released: list[str] = field(default_factory=list)
    #: Contexts that are current now, of all threads, and how many were at most.
    pushed: int = 0
    #: What broke a rule that the hardware would punish: a copy's source that changed before it was done, and so on.
    broken: list[str] = field(default_factory=list)
    #: What TensorRT held on the GPU and gave up while no context was current: it takes the primary one by itself then.
    adrift: list[str] = field(default_factory=list)
    allocations: dict[int, Any] = field(default_factory=dict)
    pinned: dict[int, Any] = field(default_factory=dict)
    clock: float = 0.0

    def begin(self, kind: str) -> None:
        self.live[kind] += 1
        self.made[kind] += 1

    def end(self, kind: str) -> None:
        self.live[kind] -= 1
        self.released.append(kind)


STATE = State()
LOCAL = threading.local()


def reset() -> State:
    """As it was at first, in place: whoever holds the state holds the new one."""
    STATE.__dict__.update(State().__dict__)
    return STATE


def stack() -> list[Any]:
    """The contexts of this thread."""
    if not hasattr(LOCAL, "stack"):
        LOCAL.stack = []
    found: list[Any] = LOCAL.stack
    return found
