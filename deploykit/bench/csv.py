"""A report as CSV: one line for each row, flat columns in a stable order; new ones are only ever added at the end."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable
from typing import Any

from deploykit.bench.report import DeviceTime, Report, Row
from deploykit.bench.table import row_names, scenario

COLUMNS = (
    "model",
    "reference",
    "backend",
    "precision",
    "artifact",
    "batch",
    "time",
    "threads",
    "status",
    "passed",
    "fault",
    "reason",
    "p50_ms",
    "p90_ms",
    "p95_ms",
    "p99_ms",
    "mean_ms",
    "min_ms",
    "cv",
    "samples",
    "stable",
    "speedup",
    "speedup_low",
    "speedup_high",
    "max_abs",
    "mean_abs",
    "snr_db",
    "cosine",
    "argmax_agreement",
    "metric",
    "metric_value",
    "metric_reference",
    "batch_invariance",
    "prefix_invariance",
    "size_bytes",
    "peak_memory_bytes",
    "load_ms",
    "first_ms",
    "gates_failed",
    "warnings",
    "scenario",
    "throughput",
    "drift_steps",
    "drift_max_abs",
    "drift_snr_db",
    "drift_snr_first_db",
    "drift_snr_last_db",
    "drift_grows",
    "server_rate",
    "server_percentile",
    "server_bound_ms",
    "server_found_ms",
    "server_p50_ms",
    "server_p90_ms",
    "server_p99_ms",
    "server_requests",
    "server_capped",
    "server_p95_ms",
    "server_mean_ms",
    "device_p50_ms",
    "device_p90_ms",
    "device_p95_ms",
    "device_p99_ms",
    "device_mean_ms",
    "device_min_ms",
    "device_samples",
    "server_device_p50_ms",
    "server_device_p99_ms",
)


def to_csv(report: Report) -> str:
    """Every row, under a line of ``COLUMNS``. What is not known or not finite is empty; booleans are true and false."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for name, row in zip(row_names(report), report.rows, strict=True):
        cells = _cells(report, name, row)
        writer.writerow([_cell(cells[column]) for column in COLUMNS])
    return text.getvalue()


def _cells(report: Report, name: str, row: Row) -> dict[str, Any]:
    latency, speedup, accuracy, metric = row.latency_ms, row.speedup, row.accuracy, row.metric
    return {
        "model": report.model,
        "reference": report.reference,
        **{column: getattr(row, column) for column in COLUMNS[2:12]},
        **{f"{stat}_ms": getattr(latency, stat, None) for stat in ("p50", "p90", "p95", "p99", "mean", "min")},
        **{column: getattr(latency, column, None) for column in ("cv", "samples", "stable")},
        "speedup": getattr(speedup, "median", None),
        "speedup_low": getattr(speedup, "low", None),
        "speedup_high": getattr(speedup, "high", None),
        **{
            column: getattr(accuracy, column, None)
            for column in ("max_abs", "mean_abs", "snr_db", "cosine", "argmax_agreement")
        },
        "metric": getattr(metric, "name", None),
        "metric_value": getattr(metric, "value", None),
        "metric_reference": getattr(metric, "reference", None),
        "batch_invariance": getattr(row.invariance, "batch", None),
        "prefix_invariance": getattr(row.invariance, "prefix", None),
        **{column: getattr(row, column) for column in ("size_bytes", "peak_memory_bytes", "load_ms", "first_ms")},
        "gates_failed": "; ".join(gate.name for gate in report.gates if gate.row == name and not gate.passed),
        "warnings": " ".join(row.warnings),
        "scenario": scenario(report),
        "throughput": getattr(latency, "throughput", None),
        **_of("drift", row.drift, ("steps", "max_abs", "snr_db", "snr_first_db", "snr_last_db", "grows")),
        **_of("server", row.server, ("rate", "percentile", "bound_ms", "found_ms", "requests", "capped")),
        **{f"server_{stat}_ms": getattr(row.server, stat, None) for stat in ("p50", "p90", "p95", "p99", "mean")},
        **_device("device", row.device_ms),
        **_device("server_device", None if row.server is None else row.server.device_ms),
    }


def _of(what: str, found: object, names: Iterable[str]) -> dict[str, Any]:
    return {f"{what}_{name}": getattr(found, name, None) for name in names}


def _device(what: str, found: DeviceTime | None) -> dict[str, Any]:
    times = {f"{what}_{stat}_ms": getattr(found, stat, None) for stat in ("p50", "p90", "p95", "p99", "mean", "min")}
    return {**times, f"{what}_samples": getattr(found, "samples", None)}


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return repr(value) if isinstance(value, float) else str(value)
