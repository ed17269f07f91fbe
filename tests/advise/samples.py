"""Made-up measurements: a GRU and an RNN on one task, with costs that are linear in the steps."""

from __future__ import annotations

from collections.abc import Sequence

from deploykit.advise.evidence import Cost, Evidence, Quality, TaskInfo

MACHINE = {"cpu": "a CPU", "cpu_flags": ["avx2"], "cores": 2, "machine": "x86_64"}
TASK = TaskInfo("flow", "the next value", "mae", "cars", False, 20, 100, {"persistence": 30.0})


def quality(
    architecture: str, hidden: int, metrics: Sequence[float], task: str = "flow", window: int = 20, swept: bool = False
) -> Quality:
    """One group of runs by seed; int8 costs 1 %."""
    return Quality(
        task,
        "window" if swept else "budget",
        architecture,
        hidden,
        100 * hidden,
        window,
        dict(enumerate(metrics)),
        {seed: metric * 1.01 for seed, metric in enumerate(metrics)},
        1.0,
    )


def cost(
    architecture: str,
    hidden: int,
    steps: int,
    *,
    precision: str = "float32",
    slower: float = 1.0,
    batch: int = 1,
    backend: str = "ort",
) -> Cost:
    """A millisecond for each 1000 units and steps, and half as much in int8."""
    time = slower * hidden * steps / 1000 * (0.5 if precision == "int8" else 1.0)
    size = hidden * hidden * (1 if precision == "int8" else 4)
    return Cost(
        architecture,
        hidden,
        16,
        1,
        hidden * hidden,
        steps,
        batch,
        1,
        backend,
        precision,
        "portable" if precision == "int8" else "",
        size,
        latency_ms={"p50": time, "p90": time, "p95": time, "p99": 2 * time, "mean": time},
        samples=1000,
        stable=True,
    )


def grid(names: Sequence[str] = ("gru", "rnn-tanh"), hidden: Sequence[int] = (16, 64)) -> tuple[Cost, ...]:
    """Costs at 10 and 50 steps in both precisions."""
    return tuple(
        cost(name, size, steps, precision=precision, slower=1.0 if name == "gru" else 0.5)
        for name in names
        for size in hidden
        for steps in (10, 50)
        for precision in ("float32", "int8")
    )


QUALITIES = (
    quality("gru", 16, (22.0, 22.2, 22.4)),
    quality("gru", 64, (20.0, 20.2, 20.4)),
    quality("rnn-tanh", 64, (24.0, 24.2, 24.4)),
)
EVIDENCE = Evidence(source="made up", machine=MACHINE, tasks=(TASK,), qualities=QUALITIES, costs=grid())
