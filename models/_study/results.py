"""What a study keeps: ``results.json``, written whole after each record, so that an interrupted study goes on.

    {"schema_version": 1, "task": "traffic", "metric": "mae", "unit": ..., "higher_is_better": false,
     "settings": {...}, "environment": {...}, "data": {...}, "baselines": {"persistence": 32.0},
     "counts": {"gru": 24960},
     "records": [{"kind": "family" | "rate" | "window" | "ablation", "architecture": "gru", "seed": 0, ...}],
     "paces": [{"architecture": "gru", "variant": "", "seconds_per_1000_targets": ..., "ratio": {...}}],
     "latencies": [{"architecture": "gru", "variant": "", "backend": "ort", "precision": "int8", ...}]}

Each field's meaning is beside it below. A number that is not known is null, with a ``reason``. Times are ratios to the
GRU's where machines shall be compared: below 1 is faster than the GRU.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import msgspec

from deploykit.errors import ArtifactError, UsageError
from deploykit.files import write_text

from .statistics import Interval

SCHEMA_VERSION = 1

RNN, GRU, LSTM = "rnn-tanh", "gru", "lstm"
#: Whom the claims are about: swept over windows, and timed at one hidden size too.
CLAIMED = (RNN, GRU, LSTM)
#: The variant of paces and latencies that have the GRU's hidden size in place of its number of parameters.
SAME_HIDDEN = "same hidden"

Kind = Literal["family", "rate", "window", "ablation"]
#: What tells one record from another: its kind, architecture, variant and seed.
Key = tuple[str, str, str, int]


@dataclass(frozen=True)
class Deployed:
    """One trained model as files: sizes in bytes, and the metric of each file over the same held-out data.

    ``coverage`` is the share of the multiply-accumulates that run in int8. ``reason`` says what did not work.
    """

    float_bytes: int | None = None
    int8_bytes: int | None = None
    float_metric: float | None = None
    int8_metric: float | None = None
    coverage: float | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Record:
    """One training run.

    ``variant`` is empty for the family, a peak rate for the search of one, the steps for a window, and what was
    switched for an ablation.
    ``rate`` is the peak learning rate. ``metric`` is of the test split, ``validation`` of the split that chose the
    weights. ``seconds`` is the wall's time without validation, ``cpu_seconds`` the process's with it, and neither ranks
    anything: ``Pace`` does.
    """

    kind: Kind
    architecture: str
    seed: int
    variant: str
    window: int
    hidden: int
    parameters: int
    steps: int
    rate: float = 0.0
    best_step: int = 0
    targets: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    validation: float | None = None
    metric: float | None = None
    reason: str | None = None
    deployed: Deployed | None = None

    @property
    def key(self) -> Key:
        return (self.kind, self.architecture, self.variant, self.seed)


@dataclass(frozen=True)
class Pace:
    """Training speed, all architectures in turn in short windows on the same batches.

    ``variant`` is empty at the equal budget, ``same hidden`` at the GRU's hidden size, else what an ablation switched.
    ``ratio`` is its time over the GRU's (an ablation's: over its base's), paired by round. ``kept_bytes`` are the
    activations that one step keeps for its way back.
    """

    architecture: str
    variant: str
    hidden: int
    seconds_per_1000_targets: float
    ratio: Interval
    seconds_per_step: float = 0.0
    kept_bytes: int = 0


@dataclass(frozen=True)
class Latency:
    """One file's latency, timed in turn with the GRU's of the same backend and precision.

    ``p25_ms`` to ``p75_ms`` is where half of all inferences lie. ``kernels`` is ``portable`` or ``fused`` for int8.
    """

    architecture: str
    variant: str
    hidden: int
    backend: str
    precision: str
    kernels: str
    batch: int
    time: int
    p50_ms: float | None = None
    p25_ms: float | None = None
    p75_ms: float | None = None
    ratio: Interval | None = None
    stable: bool = False
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class Results:
    """All of a study of one task.

    ``counts``: parameters of each encoder at one hidden size, ``COUNTED`` in ``plan``. ``share``: how much of the
    settings' steps was made, so that the study fits its hours.
    """

    schema_version: int = SCHEMA_VERSION
    task: str
    metric: str
    unit: str
    higher_is_better: bool
    settings: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    baselines: Mapping[str, float] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    share: float = 1.0
    records: tuple[Record, ...] = ()
    paces: tuple[Pace, ...] = ()
    latencies: tuple[Latency, ...] = ()

    @property
    def architectures(self) -> tuple[str, ...]:
        """Those that were studied, in the order of their first record."""
        return tuple(dict.fromkeys(record.architecture for record in self.records if record.kind == "family"))

    def has(self, key: Key) -> bool:
        return any(record.key == key for record in self.records)

    def of(self, kind: Kind, architecture: str, variant: str = "") -> dict[int, Record]:
        """The records of one cell, by seed."""
        return {one.seed: one for one in self.records if one.key[:3] == (kind, architecture, variant)}

    def metrics(self, kind: Kind, architecture: str, variant: str = "") -> dict[int, float]:
        """The test metric by seed, of the runs that have one."""
        found = self.of(kind, architecture, variant)
        return {seed: one.metric for seed, one in sorted(found.items()) if one.metric is not None}

    def pace(self, architecture: str, variant: str = "") -> Pace | None:
        """The training speed of one architecture."""
        return next((one for one in self.paces if (one.architecture, one.variant) == (architecture, variant)), None)

    def latency(
        self, architecture: str, backend: str, precision: str, kernels: str = "", variant: str = ""
    ) -> Latency | None:
        """The latency of one file."""
        wanted = (architecture, backend, precision, kernels, variant)
        return next(
            (
                one
                for one in self.latencies
                if (one.architecture, one.backend, one.precision, one.kernels, one.variant) == wanted
            ),
            None,
        )

    def with_record(self, record: Record) -> Results:
        return replace(self, records=(*self.records, record))

    def with_latencies(self, found: Iterable[Latency]) -> Results:
        return replace(self, latencies=(*self.latencies, *found))


def save(results: Results, path: Path) -> None:
    """Write the results, whole or not at all.

    Raises:
        OutputError: the file cannot be written.
    """
    write_text(path, msgspec.json.format(msgspec.json.encode(results), indent=1).decode() + "\n")


def read(path: Path) -> Results:
    """The results at ``path``.

    Raises:
        ArtifactError: they cannot be read, or are of another schema version.
    """
    try:
        found = msgspec.json.decode(path.read_bytes(), type=Results)
    except (OSError, msgspec.MsgspecError) as error:
        raise ArtifactError(f"{path} holds no results of a study ({error}): start anew without --resume.") from error
    if found.schema_version != SCHEMA_VERSION:
        raise ArtifactError(f"{path} has schema version {found.schema_version}: start anew without --resume.")
    return found


def require_same(found: Results, wanted: Results, path: Path) -> None:
    """Refuse to mix runs of different settings in one file.

    Raises:
        UsageError: ``found`` was made with other settings than ``wanted``.
    """
    for what, one, other in (
        ("task", found.task, wanted.task),
        *((key, found.settings.get(key), value) for key, value in wanted.settings.items()),
        *((key, found.data.get(key), value) for key, value in wanted.data.items()),
    ):
        if msgspec.to_builtins(one) != msgspec.json.decode(msgspec.json.encode(other)):
            raise UsageError(
                f"{path} was made with {what} {one} and this is {other}: give the same options, or another folder "
                "with -o."
            )
