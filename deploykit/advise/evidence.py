"""What advice rests on: measurements of quality and of cost, as files that come with deploykit, or that a user adds.

A file holds either half, or both:

    {"schema_version": 1, "source": "python -m models.study ...", "machine": {...},
     "tasks": [{"name": "traffic", "metric": "mae", ...}],
     "qualities": [{"task": "traffic", "architecture": "gru", "hidden": 80, "metrics": {"0": 26.1}, ...}],
     "costs": [{"architecture": "gru", "hidden": 64, "steps": 50, "backend": "ort", "precision": "int8", ...}]}

``python -m models.study evidence`` writes the first half from studies, ``python -m models.study costs`` the second.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec

from deploykit.errors import ArtifactError
from deploykit.files import write_text

SCHEMA_VERSION = 1

#: What is kept of a latency, in milliseconds, by the names that limits have.
STATS = ("p50", "p90", "p95", "p99", "mean")


@dataclass(frozen=True)
class TaskInfo:
    """One task that architectures were trained on. ``window`` is the steps of its sequences, or the longest of them."""

    name: str
    what: str
    metric: str
    unit: str
    higher_is_better: bool
    window: int
    training_steps: int
    baselines: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Quality:
    """The test metric of one architecture and hidden size on one task, by seed, of float32 and of int8 files.

    ``kind``: ``budget`` for runs of the task's own window and training steps, ``window`` for the shorter ones that
    compare architectures over window lengths. ``train_ratio`` is the time of a training step over the GRU's of as many
    parameters.
    """

    task: str
    kind: Literal["budget", "window"]
    architecture: str
    hidden: int
    parameters: int
    window: int
    metrics: Mapping[int, float]
    int8: Mapping[int, float] = field(default_factory=dict)
    train_ratio: float | None = None


@dataclass(frozen=True)
class Cost:
    """One file's latency at one number of time steps, and its size.

    ``kernels`` is ``portable`` or ``fused`` for int8, else empty. ``mac_share`` is the share of multiply-accumulates
    that run in int8. ``latency_ms`` holds what ``STATS`` names, as far as there are samples enough to say it.
    """

    architecture: str
    hidden: int
    features: int
    outputs: int
    parameters: int
    steps: int
    batch: int
    threads: int
    backend: str
    precision: str
    kernels: str
    size_bytes: int
    mac_share: float | None = None
    latency_ms: Mapping[str, float] = field(default_factory=dict)
    samples: int = 0
    stable: bool = False

    @property
    def variant(self) -> tuple[str, str, str]:
        """Backend, precision and kernels."""
        return self.backend, self.precision, self.kernels


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """One file of measurements. ``machine`` is where its costs were taken."""

    schema_version: int = SCHEMA_VERSION
    source: str = ""
    date: str = ""
    machine: Mapping[str, Any] = field(default_factory=dict)
    tasks: tuple[TaskInfo, ...] = ()
    qualities: tuple[Quality, ...] = ()
    costs: tuple[Cost, ...] = ()


def packaged() -> list[Evidence]:
    """The measurements that come with deploykit.

    Raises:
        ArtifactError: a file of the installation is damaged.
    """
    return [read(path) for path in sorted((Path(__file__).parent / "measured").glob("*.json"))]


def read(path: Path) -> Evidence:
    """The measurements in a file.

    Raises:
        ArtifactError: it cannot be read, is no such file, or has another schema version.
    """
    try:
        found = msgspec.json.decode(path.read_bytes(), type=Evidence)
    except OSError as error:
        raise ArtifactError(f"cannot read {path}: {error.strerror}.") from error
    except msgspec.MsgspecError as error:
        raise ArtifactError(
            f"{path} holds no measurements for advice ({error}): make them with python -m models.study evidence or "
            "costs."
        ) from error
    if found.schema_version != SCHEMA_VERSION:
        raise ArtifactError(f"{path} has schema version {found.schema_version}, not {SCHEMA_VERSION}: make it anew.")
    return found


def save(evidence: Evidence, path: Path) -> None:
    """Write measurements, a line each, whole or not at all.

    Raises:
        OutputError: the file cannot be written.
    """
    fields = msgspec.to_builtins(evidence, str_keys=True)
    lines = []
    for name, value in fields.items():
        if isinstance(value, (list, tuple)):
            rows = ",\n".join("  " + msgspec.json.encode(row).decode() for row in value)
            lines.append(f' "{name}": [\n{rows}\n ]' if value else f' "{name}": []')
        else:
            lines.append(f' "{name}": {msgspec.json.encode(value).decode()}')
    write_text(path, "{\n" + ",\n".join(lines) + "\n}\n")


def tasks(evidences: Iterable[Evidence]) -> dict[str, TaskInfo]:
    """Every task that something is known about, by name."""
    return {task.name: task for one in evidences for task in one.tasks}


def machine(environment: Mapping[str, Any]) -> dict[str, Any]:
    """What of an environment tells whether two machines' latencies compare."""
    return {key: environment.get(key) for key in ("cpu", "cpu_flags", "cores", "machine", "libraries")}


def same_machine(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two are alike as far as can be told: processor, its vector instructions, and cores."""
    return all(one.get(key) == other.get(key) for key in ("cpu", "cpu_flags", "cores", "machine"))


def told(found: Mapping[str, Any]) -> str:
    """A machine in words: ``AMD EPYC, 2 cores``."""
    return f"{found.get('cpu') or 'an unknown processor'}, {found.get('cores')} cores"


def distinct(costs: Sequence[Cost]) -> tuple[str, ...]:
    """The architectures among them, alphabetical."""
    return tuple(sorted({cost.architecture for cost in costs}))
