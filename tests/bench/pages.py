"""Reports to draw: every kind of row, and a page taken apart."""

from __future__ import annotations

from dataclasses import replace
from html.parser import HTMLParser

from deploykit.bench.report import ArtifactCoverage, Check, DeviceTime, Latency, MetricResult, Report, Row, Speedup
from deploykit.bench.stats import PERCENTS
from deploykit.coverage import CoverageRow
from tests.bench.samples import ACCURACY, DEVICE, DRIFT, ERROR, GONE, ROW, SERVER
from tests.bench.samples import SEEN as LATENCY
from tests.bench.samples import alone as report

NODES = (
    CoverageRow("rnn/GRU", "GRU", "int8", "Scan", 600, 60),
    CoverageRow("embed/Gather", "Gather", "int8-storage", "Gather", 300, 0, reason="no product"),
    CoverageRow("head/MatMul", "MatMul", "float32", "", 100, 40, coupled=True, reason="excluded", by_preference=True),
)
COVERAGE = ArtifactCoverage(NODES, 1000, 100, 0.9, 0.6)
NAN, INF = float("nan"), float("inf")


def latency(median: float) -> Latency:
    """A latency with all its quantiles, long to the right."""
    return replace(
        LATENCY,
        p50=median,
        quantiles={str(percent): median * (0.8 + (percent / 100) ** 3) for percent in PERCENTS},
        throughput=1e3 / median,
    )


REFERENCE = replace(
    ROW,
    backend="torch",
    precision="float32",
    artifact="charlm-gru",
    latency_ms=latency(10.0),
    speedup=Speedup("torch", 1.0, 1.0, 1.0),
    accuracy=replace(ACCURACY, max_abs=0.0, snr_db=None, per_step=(0.0, 0.0)),
)
INT8 = replace(ROW, latency_ms=latency(4.0), coverage=COVERAGE, checks=(Check(1, 1, 8, 0.1, 40.0, True),))
SHAPES = ((1, 1), (1, 100), (16, 1), (16, 100))
FULL = report(
    *(
        replace(row, batch=batch, time=time, latency_ms=latency(median * batch**0.5 * time))
        for row, median in ((REFERENCE, 1.0), (INT8, 0.4))
        for batch, time in SHAPES
    ),
    GONE,
)

FAILED = replace(
    INT8, status="failed", passed=False, reason="it crashed.", latency_ms=None, speedup=None, fault="error"
)
OUTSIDE = replace(INT8, passed=False, reason="its SNR is low.", fault="answer", warnings=("slower.",))
GATED = replace(INT8, passed=False, reason="gate min-speedup: too slow.", fault="gate")
DRIFTED = replace(INT8, drift=DRIFT)
BARE = replace(INT8, metric=None, accuracy=None, coverage=None, tolerance=None, checks=(), invariance=None)
OLD = replace(INT8, latency_ms=LATENCY, coverage=None)
FEW = replace(INT8, latency_ms=Latency(None, None, None, None, 3.0, 3.0, None, 1, 1, stable=False))
NONE_KNOWN = replace(
    INT8,
    latency_ms=replace(latency(1.0), quantiles=dict.fromkeys(map(str, PERCENTS))),
    metric=MetricResult("accuracy", None, None, higher_is_better=True),
    accuracy=replace(ACCURACY, snr_db=None, cosine=None, argmax_agreement=None, per_step=None, outputs={}),
    size_bytes=None,
    sha256=None,
)
NOT_FINITE = replace(
    INT8,
    latency_ms=Latency(
        NAN, NAN, INF, NAN, NAN, NAN, NAN, 5, 1, stable=False, quantiles={"0": NAN, "50": INF}, throughput=INF
    ),
    speedup=Speedup("torch", NAN, NAN, INF),
    metric=MetricResult("accuracy", NAN, 0.0, higher_is_better=True),
    accuracy=replace(
        ACCURACY, max_abs=INF, snr_db=NAN, argmax_agreement=NAN, per_step=(NAN, INF), outputs={"y": ERROR}
    ),
    load_ms=INF,
)
ZERO = replace(
    INT8,
    latency_ms=Latency(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, None, 200, 5, stable=True, quantiles={"0": 0.0, "100": 0.0}),
    speedup=Speedup("torch", 0.0, 0.0, 0.0),
    metric=MetricResult("accuracy", 0.0, 0.0, higher_is_better=True),
    size_bytes=0,
    coverage=ArtifactCoverage((), 0, 0, 0.0, 0.0),
)
KINDS = {
    "ok": (REFERENCE, INT8),
    "failed": (REFERENCE, FAILED),
    "outside": (REFERENCE, OUTSIDE),
    "unavailable": (REFERENCE, GONE),
    "all-gone": (GONE,),
    "no-latency": tuple(replace(row, latency_ms=None, speedup=None) for row in (REFERENCE, INT8)),
    "no-metric-no-accuracy": (replace(REFERENCE, metric=None), BARE),
    "old": (replace(REFERENCE, latency_ms=LATENCY), OLD),
    "few-samples": (REFERENCE, FEW),
    "none-known": (REFERENCE, NONE_KNOWN),
    "not-finite": (REFERENCE, NOT_FINITE),
    "zero": (REFERENCE, ZERO),
    "fixed-sizes": tuple(replace(row, batch=None, time=None) for row in (REFERENCE, INT8)),
    "one-alone": (REFERENCE,),
    "many": tuple(replace(INT8, artifact=f"{number}.onnx", latency_ms=latency(number)) for number in range(1, 15)),
    "gated": (REFERENCE, GATED),
    "server": (REFERENCE, replace(INT8, server=SERVER)),
    "server-held-nothing": (REFERENCE, replace(INT8, server=replace(SERVER, rate=None, found_ms=None, p50=None))),
    "gpu": (REFERENCE, replace(INT8, device_ms=DEVICE)),
    "gpu-few-samples": (REFERENCE, replace(INT8, device_ms=DeviceTime(None, None, None, None, 2.0, 2.0, 1))),
    "drift": (REFERENCE, DRIFTED),
    "drift-without-error": (REFERENCE, replace(INT8, drift=replace(DRIFT, per_step=(0.0, 0.0)))),
    "steps": (
        REFERENCE,
        replace(INT8, accuracy=replace(ACCURACY, grows=True, outputs={"y": replace(ERROR, steps=50)})),
    ),
}


def named(name: str, *rows: Row) -> Report:
    """A report of a model with that name, which every other text of it holds too."""
    settings = {"command": f"deploykit bench {name}", "data": name, name: name}
    noted = (replace(row, reason=name, warnings=(name,), artifact=name, backend=name) for row in rows)
    made = replace(report(*noted), model=name, environment={"cpu": name}, settings=settings, warnings=(name,))
    return replace(made, reference=name)


class Page(HTMLParser):
    """Checks that elements are closed in order, and collects what the page consists of."""

    VOID = ("meta", "br", "hr", "img", "input", "link")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.ids: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.ids += [value for name, value in attrs if name == "id" and value is not None]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(data.strip())
