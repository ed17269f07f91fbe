"""The report: what was measured, held against what, and the verdict. ``schema.json`` beside it describes its JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from deploykit.coverage import CoverageRow
from deploykit.errors import ArtifactError
from deploykit.files import write_text

if TYPE_CHECKING:
    from rich.console import Console

SCHEMA_VERSION = 1

Status = Literal["ok", "unavailable", "failed"]


@dataclass(frozen=True)
class Latency:
    """Milliseconds per inference. A percentile is None where there are too few samples to say it.

    ``quantiles`` are more of them by percent, from the smallest sample ("0") to the largest ("100"); ``throughput`` is
    batch rows per second, or inferences where the model has no batch. Reports of before have neither.
    """

    p50: float | None
    p90: float | None
    p95: float | None
    p99: float | None
    mean: float
    min: float
    cv: float | None
    samples: int
    windows: int
    stable: bool
    quantiles: Mapping[str, float | None] | None = None
    throughput: float | None = None


@dataclass(frozen=True)
class DeviceTime:
    """Milliseconds that the GPU computed for one inference, by its own events, without transfers.

    Percentiles are None where there are too few samples, as in ``Latency``, of which these are a part.
    """

    p50: float | None
    p90: float | None
    p95: float | None
    p99: float | None
    mean: float
    min: float
    samples: int


@dataclass(frozen=True)
class Speedup:
    """How many times faster than ``vs``, with the 95 % interval; None where one round gives no interval."""

    vs: str
    median: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class OutputError:
    """One output's distance from the reference.

    ``snr_db`` is None where there is no error (or no signal); ``argmax_agreement`` is the share of positions whose
    largest entry along the last dim is the same, None for outputs without such a choice; ``equal`` is the share of
    equal elements, ``outside`` the number of elements outside the tolerance (None where it is the SNR that judges);
    ``per_step`` is the mean absolute error over the output's time axis, in at most 64 equal pieces.
    """

    max_abs: float
    mean_abs: float
    snr_db: float | None
    cosine: float | None
    argmax_agreement: float | None
    equal: float
    outside: int | None = None
    per_step: tuple[float, ...] | None = None
    steps: int | None = None
    grows: bool | None = None
    first_step_outside: int | None = None


@dataclass(frozen=True)
class Accuracy:
    """The worst over all outputs at one (batch, time), with each output's own numbers in ``outputs``.

    ``argmax_agreement`` and ``per_step`` are those of the first output that has them: the model's answer comes first,
    and its states after it.
    """

    max_abs: float
    mean_abs: float
    snr_db: float | None
    cosine: float | None
    argmax_agreement: float | None
    per_step: tuple[float, ...] | None
    grows: bool | None
    first_step_outside: int | None
    outputs: Mapping[str, OutputError]


@dataclass(frozen=True)
class Check:
    """One comparison with the reference: the sizes, how many seeds were pooled, and what came of it."""

    batch: int | None
    time: int | None
    seeds: int
    max_abs: float
    snr_db: float | None
    passed: bool
    reason: str | None = None


@dataclass(frozen=True)
class Invariance:
    """Largest change of an answer that should not change; None where it could not be tested or means nothing.

    ``batch``: a row's, when its neighbours become ten times larger. ``prefix``: the first steps', when steps that are
    ten times larger follow. ``causal`` is what the reference itself showed: where it is false, ``prefix`` is None.
    """

    batch: float | None
    prefix: float | None
    causal: bool | None


@dataclass(frozen=True)
class MetricResult:
    """The model's own metric for this backend and for the reference, over the same data.

    A number is None only in a report that was read: JSON has null for what is not finite.
    """

    name: str
    value: float | None
    reference: float | None
    higher_is_better: bool


@dataclass(frozen=True)
class Tolerance:
    """What passes. Where ``min_snr_db`` is None, every element must satisfy |a - b| <= atol + rtol * |reference|.

    ``every_element``: the elements are judged besides the SNR, as when a user asked for both. ``outputs`` holds the
    tolerances of those outputs that have their own.
    """

    atol: float
    rtol: float
    min_snr_db: float | None
    min_equal: float
    max_metric_drop: float
    origin: str
    every_element: bool = False
    outputs: Mapping[str, Tolerance] = field(default_factory=dict)

    @property
    def by_element(self) -> bool:
        """Whether it is elements that are judged, alone or besides the SNR."""
        return self.min_snr_db is None or self.every_element

    def of(self, output: str) -> Tolerance:
        """The tolerance for one output."""
        return self.outputs.get(output, self)


@dataclass(frozen=True)
class GateResult:
    """What one gate said of one row: ``limit`` and ``found`` in the unit that ``name`` tells (milliseconds, times).

    ``found`` is None where it could not be judged, which does not pass. A row that passed has a ``reason`` only where
    that is uncertain.
    """

    name: str
    row: str
    limit: float
    found: float | None
    passed: bool
    reason: str | None = None


@dataclass(frozen=True)
class ArtifactCoverage:
    """What quantization did to the artifact's source, node by node, and the totals.

    ``weight_share`` of the weight bytes are stored in int8, ``mac_share`` of the multiply-accumulates run in it.
    """

    rows: tuple[CoverageRow, ...]
    weight_bytes: int
    macs: int
    weight_share: float
    mac_share: float


@dataclass(frozen=True)
class Drift:
    """How a stream's answers left the reference's, each with the states that it carried itself, from zero on.

    The worst over the outputs; ``snr_first_db`` and ``snr_last_db`` are of the first and the last tenth of the
    ``steps``; ``per_step`` is the first output's mean absolute error in at most 64 pieces. ``reason`` says what is not
    within the tolerance.
    """

    steps: int
    max_abs: float
    snr_db: float | None
    snr_first_db: float | None
    snr_last_db: float | None
    per_step: tuple[float, ...]
    grows: bool | None
    reason: str | None = None


@dataclass(frozen=True)
class Try:
    """A rate in requests a second and the percentile in milliseconds that it had; None where the queue ran away.

    ``service_ms`` is the mean of its inferences without any queue. A try that is within the bound and has not ``held``
    had more work than there was time. Reports of before have neither.
    """

    rate: float
    found_ms: float | None
    service_ms: float | None = None
    held: bool | None = None


@dataclass(frozen=True)
class Server:
    """Requests that arrive by chance, at ``rate`` a second; latency runs from arrival to answer.

    With ``percentile`` the rate is the highest one tried that held ``bound_ms``; None where none did. ``capped``: the
    search ended for its time. At a rate that was given, percentiles are None where the queue ran away. ``device_ms`` is
    the GPU's own time for those requests, where the backend measures it.
    """

    rate: float | None
    percentile: str | None
    bound_ms: float | None
    found_ms: float | None
    p50: float | None
    p90: float | None
    p99: float | None
    requests: int
    tries: tuple[Try, ...] = ()
    capped: bool = False
    p95: float | None = None
    mean: float | None = None
    device_ms: DeviceTime | None = None


@dataclass(frozen=True)
class Row:
    """One backend x precision x (batch, time). ``passed`` is None for a backend that is unavailable.

    ``fault`` says why a row did not pass: ``answer`` when it ran and answered wrongly, ``error`` when it did not run,
    ``gate`` when it ran and answered rightly, and missed a gate. ``device_ms`` is what the GPU computed for the
    inferences of ``latency_ms``; None for a backend that does not measure it.
    """

    backend: str
    precision: str | None
    artifact: str | None
    batch: int | None
    time: int | None
    threads: int
    status: Status
    reason: str | None = None
    latency_ms: Latency | None = None
    speedup: Speedup | None = None
    accuracy: Accuracy | None = None
    metric: MetricResult | None = None
    size_bytes: int | None = None
    peak_memory_bytes: int | None = None
    passed: bool | None = None
    format: str | None = None
    sha256: str | None = None
    tolerance: Tolerance | None = None
    checks: tuple[Check, ...] = ()
    invariance: Invariance | None = None
    load_ms: float | None = None
    first_ms: float | None = None
    warnings: tuple[str, ...] = ()
    fault: Literal["error", "answer", "gate"] | None = None
    coverage: ArtifactCoverage | None = None
    drift: Drift | None = None
    server: Server | None = None
    device_ms: DeviceTime | None = None


@dataclass(frozen=True, kw_only=True)
class Report:
    """All rows of one run and the machine it ran on."""

    schema_version: int = SCHEMA_VERSION
    model: str
    environment: Mapping[str, Any]
    reference: str
    rows: tuple[Row, ...]
    passed: bool
    warnings: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    gates: tuple[GateResult, ...] = ()


def verdict(rows: tuple[Row, ...]) -> bool:
    """Whether no row failed. Unavailable rows do not count: for a backend asked for by name, the caller raises."""
    return all(row.passed is not False for row in rows)


def to_json(report: Report) -> str:
    """The report as indented JSON, in the schema's order; a number that is not finite becomes null."""
    return msgspec.json.format(msgspec.json.encode(report), indent=1).decode() + "\n"


def render(report: Report, console: Console) -> None:
    """Print the report as a table, readable at 100 columns, with every reason and warning below it in words."""
    from deploykit.bench.table import show

    show(report, console)


def save(report: Report, path: Path) -> None:
    """Write the report's JSON to ``path``, whole or not at all.

    Raises:
        OutputError: the file cannot be written.
    """
    write_text(path, to_json(report))


def read(path: Path) -> Report:
    """The report at ``path``.

    Raises:
        ArtifactError: it cannot be read, or is no report of this schema version.
    """
    try:
        report = msgspec.json.decode(path.read_bytes(), type=Report)
    except (OSError, msgspec.MsgspecError) as error:
        raise ArtifactError(f"{path} is no bench report that deploykit can read: {error}.") from error
    if report.schema_version != SCHEMA_VERSION:
        raise ArtifactError(
            f"{path} has schema version {report.schema_version}, this deploykit reads {SCHEMA_VERSION}: upgrade it."
        )
    return report


def schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) that every report satisfies."""
    found: dict[str, Any] = msgspec.json.decode(Path(__file__).with_name("schema.json").read_bytes())
    return found
