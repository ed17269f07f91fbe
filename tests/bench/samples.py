"""Reports for the tests of what is made from them: a reference and two rows, with latencies and everything else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from deploykit.bench.report import (
    Accuracy,
    Check,
    DeviceTime,
    Drift,
    Invariance,
    Latency,
    MetricResult,
    OutputError,
    Report,
    Row,
    Server,
    Speedup,
    Try,
    verdict,
)
from deploykit.bench.tolerance import FLOAT32, INT8

ENVIRONMENT: dict[str, Any] = {
    "cpu": "A CPU",
    "cpu_flags": ["avx2"],
    "cores": 2,
    "memory_bytes": None,
    "load_average": 0.5,
    "os": "Linux",
    "python": "3.11.0",
    "libraries": {"torch": "2.6.0", "onnxruntime": "1.20.0"},
    "threads": 1,
    "spinning": False,
    "denormals": [],
    "git": {"commit": "a" * 40, "dirty": False},
}
LATENCY = Latency(5.0, 6.0, 7.0, 8.0, 5.2, 4.0, 0.1, 2000, 20, stable=True)
ERROR = OutputError(1e-3, 1e-4, 41.2, 0.999, 0.98, 0.0, None, (0.1, 0.2), 2, grows=False)
ACCURACY = Accuracy(
    1e-3, 1e-4, 41.2, 0.999, 0.98, (0.1, 0.2), grows=False, first_step_outside=None, outputs={"y": ERROR}
)
REFERENCE = Row(
    "torch",
    "float32",
    "net",
    1,
    100,
    1,
    "ok",
    latency_ms=replace(LATENCY, p50=10.0),
    speedup=Speedup("torch", 1.0, 1.0, 1.0),
    accuracy=ACCURACY,
    metric=MetricResult("score", 2.0, 2.0, higher_is_better=True),
    size_bytes=1000,
    passed=True,
    tolerance=FLOAT32,
    checks=(Check(1, 100, 1, 0.0, None, passed=True),),
    invariance=Invariance(0.0, None, causal=False),
)
ORT = replace(
    REFERENCE, backend="ort", artifact="build/net.onnx", latency_ms=LATENCY, speedup=Speedup("torch", 2, 1.8, 2.2)
)
QUANTIZED = replace(
    ORT,
    precision="int8",
    artifact="build/net.int8.onnx",
    speedup=Speedup("torch", 3, 2.5, 3.5),
    metric=MetricResult("score", 1.98, 2.0, higher_is_better=True),
    tolerance=INT8,
)
#: A row to be seen in a table or on a page: its numbers are unlike each other.
SEEN = Latency(1.234, 1.3, 1.4, 12.34, 1.25, 1.1, 0.05, 2000, 20, stable=True)
ROW = replace(
    QUANTIZED,
    artifact="build/model.int8.onnx",
    batch=16,
    time=1000,
    latency_ms=SEEN,
    speedup=Speedup("torch", 12.345, 11.234, 13.456),
    metric=MetricResult("bits_per_character", 1.8365, 1.8311, higher_is_better=False),
    size_bytes=12_345_678,
    peak_memory_bytes=80_000_000,
    tolerance=FLOAT32,
    checks=(),
)
GONE = Row("trt", None, None, None, None, 1, "unavailable", reason="TensorRT is not installed.")
BROKEN = replace(
    ORT,
    status="failed",
    reason="its process ended by itself with exit code 7.",
    fault="error",
    passed=False,
    latency_ms=None,
    speedup=None,
    metric=None,
)

#: What a GPU took of ``LATENCY``.
DEVICE = DeviceTime(1.5, 1.6, 1.7, 1.9, 1.55, 1.25, 2000)
DRIFT = Drift(1000, 2e-3, 40.0, 45.0, 35.0, (1e-4, 2e-4, 3e-4, 9e-4), grows=True)
SERVER = Server(
    rate=200.0,
    percentile="p99",
    bound_ms=20.0,
    found_ms=18.0,
    p50=5.0,
    p90=9.0,
    p99=18.0,
    requests=400,
    tries=(Try(400.0, None, None, False), Try(210.0, 31.0, 4.0, False), Try(200.0, 18.0, 4.0, True)),
    p95=12.0,
    mean=5.5,
)


def report(*rows: Row, **changes: Any) -> Report:
    found = Report(
        model="net",
        environment=ENVIRONMENT,
        reference="torch",
        rows=(REFERENCE, *rows),
        passed=True,
        settings={"seed": 0},
    )
    return replace(found, passed=verdict(found.rows), **changes)


def alone(*rows: Row) -> Report:
    """A report of these rows and nothing else."""
    return Report(model="charlm-gru", environment={}, reference="torch", rows=rows, passed=verdict(rows))


def faster(row: Row, median: float, low: float | None = None, high: float | None = None) -> Row:
    """The row with another speed-up; its interval has no width unless told."""
    return replace(
        row, speedup=Speedup("torch", median, median if low is None else low, median if high is None else high)
    )
