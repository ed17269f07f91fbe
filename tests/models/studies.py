"""Made-up results for tests of what is said of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from models._study.results import (
    GRU,
    LSTM,
    RNN,
    SAME_HIDDEN,
    Deployed,
    Kind,
    Latency,
    Pace,
    Record,
    Results,
)
from models._study.statistics import Interval

EMPTY = Results(
    task="traffic",
    metric="mae",
    unit="vehicles per step",
    higher_is_better=False,
    settings={"budget": 1000, "steps": 5, "batch": 2, "window": 12, "seeds": 3, "threads": 1, "ablation_steps": 5},
    environment={"cpu": "a CPU"},
    data={"rows": 100, "sha256": "0"},
    baselines={"persistence": 32.0},
)


def runs(
    architecture: str, metrics: Sequence[float], kind: Kind = "family", variant: str = "", window: int = 12
) -> list[Record]:
    """One record a seed, deployed at a cost of 0.1 in int8."""
    return [
        Record(
            kind=kind,
            architecture=architecture,
            seed=seed,
            variant=variant,
            window=window,
            hidden=16,
            parameters=990,
            steps=5,
            rate=0.003,
            seconds=1.0 + seed,
            validation=metric,
            metric=metric,
            deployed=Deployed(4000, 1500, metric, metric + 0.1, 0.98) if kind == "family" else None,
        )
        for seed, metric in enumerate(metrics)
    ]


def family(metrics: Mapping[str, Sequence[float]], **changes: object) -> Results:
    """Results of a family with these metrics by seed."""
    records = tuple(record for name, values in metrics.items() for record in runs(name, values))
    return replace(EMPTY, records=records, **changes)  # type: ignore[arg-type]


def windows(metrics: Mapping[int, Mapping[str, Sequence[float]]]) -> Results:
    """Results of a sweep over windows: metrics by window and architecture."""
    records = tuple(
        record
        for window, found in metrics.items()
        for name, values in found.items()
        for record in runs(name, values, "window", str(window), window)
    )
    return replace(EMPTY, records=records)


def pace(architecture: str, low: float, high: float, variant: str = SAME_HIDDEN) -> Pace:
    """A training time over the GRU's."""
    return Pace(architecture, variant, 16, 0.5, Interval((low + high) / 2, low, high), 0.01, 1000)


def latency(
    architecture: str, low: float, high: float, variant: str = SAME_HIDDEN, precision: str = "float32"
) -> Latency:
    """An inference time over the GRU's in onnxruntime."""
    middle = (low + high) / 2
    kernels = "portable" if precision == "int8" else ""
    return Latency(
        architecture,
        variant,
        16,
        "ort",
        precision,
        kernels,
        1,
        12,
        middle,
        low,
        high,
        Interval(middle, low, high),
        True,
    )


TWO = family(
    {RNN: (24.0, 24.5, 25.0), GRU: (20.0, 20.5, 21.0), LSTM: (19.0, 20.2, 21.5)},
    paces=(pace(GRU, 1.0, 1.0, ""), pace(RNN, 0.5, 0.6, ""), pace(LSTM, 0.9, 1.4, "")),
    latencies=(latency(GRU, 1.0, 1.0, ""), latency(RNN, 0.4, 0.6, ""), latency(LSTM, 1.2, 1.4, "", "int8")),
)
