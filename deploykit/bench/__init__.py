"""The bench: every backend's latency and accuracy against the PyTorch reference, in one report.

::

    from deploykit.bench import Settings, Subject, bench
    report = bench([Subject("ort", artifact)], Artifact.of_model(ref, "charlm-gru"), Settings(batches=(1, 16)))
"""

from __future__ import annotations

from deploykit.bench.engine import bench
from deploykit.bench.report import Report, Row, read, render, save, schema, to_json
from deploykit.bench.settings import Settings, Subject

__all__ = ["Report", "Row", "Settings", "Subject", "bench", "read", "render", "save", "schema", "to_json"]
