"""The GPU's own time, which a runner may tell beside what the host's clock says, on its way into every output."""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, cast

import jsonschema
import numpy as np
import pytest
from click.testing import Result
from rich.console import Console

from deploykit.backends import Runner
from deploykit.bench import Report, Settings, bench, html, read, render, said, save, schema, server, stages, to_json
from deploykit.bench import worker as workers
from deploykit.bench.compare import compare
from deploykit.bench.csv import to_csv
from deploykit.bench.report import DeviceTime, Row
from deploykit.bench.scenario import Bound, Scenario
from deploykit.bench.stats import device_time
from deploykit.errors import BackendFailedError
from tests.bench.fakes import subject
from tests.bench.pages import Page
from tests.bench.samples import DEVICE, LATENCY, ORT, QUANTIZED, SERVER, report

if TYPE_CHECKING:
    from deploykit.types import Array, Feeds

QUICK = Settings(times=(3,), seconds=0.05, rounds=4, timeout_s=60, drift=0)


@pytest.fixture(autouse=True)
def _without_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "WARM_SECONDS", 0.0)
    monkeypatch.setattr(server, "TRY_SECONDS", 0.01)
    monkeypatch.setattr(server, "RATE_SECONDS", 0.01)


class Scripted(Runner):
    """Takes 1 ms by a clock of our own, and its GPU what the script says; to be asked for that takes 1 s."""

    def __init__(self, script: list[float | None], clock: list[int]) -> None:
        self._script, self._clock = iter(script), clock
        self._last: float | None = None

    @property
    def device_ms(self) -> float | None:  # type: ignore[override]
        self._clock[0] += 1_000_000_000
        return self._last

    def infer(self, feeds: Feeds) -> dict[str, Array]:
        self._clock[0] += 1_000_000
        self._last = next(self._script)
        return {"y": feeds["x"]}

    def carry(self, pairs: Mapping[str, str]) -> Callable[[Feeds], dict[str, Array]]:
        return self.infer


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[float | None]], workers.Server]:
    clock = [0]
    monkeypatch.setattr(time, "perf_counter_ns", lambda: clock[0])

    def make(script: list[float | None]) -> workers.Server:
        found = workers.Server(cast("Connection", None))
        found._opened = Scripted(script, clock)
        return found

    return make


Make = Callable[[list[float | None]], workers.Server]


@pytest.mark.parametrize("pairs", [None, {"h_in": "h_out"}], ids=["single", "streaming"])
def test_a_window_keeps_what_the_gpu_took_and_times_the_host_alone(
    scripted: Make, pairs: Mapping[str, str] | None
) -> None:
    found = scripted([9.0, 0.5, None, 0.75])
    found.prepare("1", [{"x": np.zeros(1)}], pairs)
    timed = found.window("1", 0.0, 3)
    assert timed.samples == [1_000_000] * 3, "asking for it is not timed"
    assert timed.device_ms == [0.5, 0.75], "the first inference of a window does not count, nor does a time unknown"


def test_requests_keep_it_too(scripted: Make) -> None:
    found = scripted([9.0, 0.5, 0.75])
    found.prepare("1", [{"x": np.zeros(1)}])
    timed = found.requests("1", 1e12, 2, 0)  # both at once, as nothing but work moves the clock on
    assert timed is not None
    assert timed.device_ms == [0.5, 0.75]
    assert timed.samples[0] == 1_000_000


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1.0])
def test_what_is_no_time_is_an_error(scripted: Make, bad: float) -> None:
    found = scripted([None, 0.5, bad])
    found.prepare("1", [{"x": np.zeros(1)}])
    with pytest.raises(BackendFailedError, match="device_ms is no time"):
        found.window("1", 0.0, 2)


def test_its_percentiles_follow_the_rules_of_the_latency() -> None:
    assert device_time([]) is None
    assert device_time([2.0]) == DeviceTime(None, None, None, None, 2.0, 2.0, 1)
    found = device_time([float(value) for value in range(1, 101)])
    assert found is not None
    assert (found.p50, found.mean, found.min, found.samples) == (50.5, 50.5, 1.0, 100)
    assert [found.p90, found.p95, found.p99] == pytest.approx([90.1, 95.05, 99.01])


def row(found: Report, name: str, batch: int | None = None) -> Row:
    return next(row for row in found.rows if row.backend.endswith(f":{name}") and (batch is None or row.batch == batch))


def test_it_comes_from_the_worker_into_the_row_and_only_of_those_that_measure_it() -> None:
    found = bench([subject("ON_DEVICE"), subject("ON_NO_DEVICE")], subject("REFERENCE"), replace(QUICK, batches=(1, 2)))
    for batch, took in ((1, 0.25), (2, 0.5)):
        own = row(found, "ON_DEVICE", batch)
        assert own.device_ms is not None
        assert own.latency_ms is not None
        assert (own.device_ms.p50, own.device_ms.min) == (took, took)
        assert own.device_ms.mean == pytest.approx(took)
        assert own.device_ms.samples == own.latency_ms.samples
        assert row(found, "REFERENCE", batch).device_ms is None
    bad = row(found, "ON_NO_DEVICE", 1)
    assert (bad.status, bad.device_ms) == ("failed", None)
    assert bad.reason == "the backend's device_ms is no time: it must be milliseconds, or None."
    data = json.loads(to_json(found))
    jsonschema.Draft202012Validator(schema()).validate(data)
    assert data["rows"][0]["device_ms"] is None
    assert data["schema_version"] == 1


def test_a_stream_has_it() -> None:
    settings = replace(QUICK, times=(1,), scenario=Scenario("streaming"))
    found = row(bench([subject("STREAM_ON_DEVICE")], subject("STREAM"), settings), "STREAM_ON_DEVICE")
    assert found.device_ms is not None
    assert found.device_ms.p50 == 0.125


@pytest.mark.parametrize("scenario", [Scenario("server", rate=2000.0), Scenario("server", bound=Bound("p50", 500.0))])
def test_requests_have_their_own(scenario: Scenario) -> None:
    found = bench([subject("ON_DEVICE")], subject("REFERENCE"), replace(QUICK, scenario=scenario))
    own, other = row(found, "ON_DEVICE"), row(found, "REFERENCE")
    assert own.server is not None
    assert own.server.device_ms is not None
    assert (own.server.device_ms.p50, own.server.device_ms.samples) == (0.25, own.server.requests)
    assert other.server is not None
    assert other.server.device_ms is None
    jsonschema.Draft202012Validator(schema()).validate(json.loads(to_json(found)))


ON_GPU = replace(ORT, backend="trt", device_ms=DEVICE)


def printed(found: Report, width: int = 120, terminal: bool = False) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=terminal, color_system=None)
    render(found, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_table_has_a_column_for_it_only_where_some_row_knows_it() -> None:
    without, text = printed(report(ORT)), printed(report(QUANTIZED, ON_GPU))
    assert "GPU" not in without
    heading, lines = text.splitlines()[2], text.splitlines()
    assert heading.index("p50 ms") < heading.index("GPU ms") < heading.index("speed-up")
    end = heading.index("GPU ms") + len("GPU ms")
    cells = {
        line.split()[0]: line[:end].split()[-1] for line in lines if line.lstrip().startswith(("torch", "ort", "trt"))
    }
    assert cells == {"torch": "–", "ort": "–", "trt": "1.5"}


def test_a_narrow_terminal_keeps_it_longer_than_the_tail() -> None:
    text = printed(report(ON_GPU), 78, terminal=True)
    assert "GPU ms" in text
    assert "p99 ms" not in text


def test_the_csv_has_it() -> None:
    row = replace(ON_GPU, server=replace(SERVER, device_ms=replace(DEVICE, p50=2.5, p99=2.75)))
    first, found = csv.DictReader(to_csv(report(row)).splitlines())
    assert {name: value for name, value in found.items() if "device" in name} == {
        **{"device_p50_ms": "1.5", "device_p90_ms": "1.6", "device_p95_ms": "1.7", "device_p99_ms": "1.9"},
        **{"device_mean_ms": "1.55", "device_min_ms": "1.25", "device_samples": "2000"},
        **{"server_device_p50_ms": "2.5", "server_device_p99_ms": "2.75"},
    }
    assert not any(value for name, value in first.items() if "device" in name)


def test_the_sentence_on_requests_has_it() -> None:
    own = replace(SERVER, device_ms=DEVICE)
    assert "p99 18 ms (the GPU's own time: p50 1.5 ms) over 400 requests" in said.server(own, "1×100", LATENCY)
    assert "GPU" not in said.server(SERVER, "1×100", LATENCY)


def test_the_page_shows_it_and_its_share_of_the_latency() -> None:
    text = html.render(report(QUANTIZED, ON_GPU))
    words = " ".join(Page(text).words)
    assert "GPU, ms" in words
    assert "1.5 30% of the median" in words
    assert "The ring is the median of what the GPU itself computed, by its events, without transfers." in words
    assert "trt fp32 at batch 1, 100 steps: median 5 ms, from 4 to 8 ms, the GPU's own median 1.5 ms" in words
    assert "GPU" not in " ".join(Page(html.render(report(QUANTIZED))).words)


def test_a_report_that_was_read_has_it(tmp_path: Path) -> None:
    found = report(replace(ON_GPU, server=replace(SERVER, device_ms=DEVICE)))
    save(found, tmp_path / "r.json")
    assert read(tmp_path / "r.json") == found
    data = json.loads((tmp_path / "r.json").read_text())
    for row in data["rows"]:
        del row["device_ms"]
    (tmp_path / "r.json").write_text(json.dumps(data))
    assert read(tmp_path / "r.json").rows[1].device_ms is None, "a report of before can still be read"


def test_two_reports_compare_it_where_both_have_it(run: Callable[..., Result], folder: Path) -> None:
    slower = replace(ON_GPU, device_ms=replace(DEVICE, p50=3.0))
    pair = compare(report(ON_GPU), report(slower)).rows[1]
    assert pair.before is not None
    assert pair.after is not None
    assert (pair.before.device_p50_ms, pair.after.device_p50_ms) == (1.5, 3.0)
    for name, row in (("gpu", ON_GPU), ("slower", slower), ("without", replace(ON_GPU, device_ms=None))):
        save(report(row), folder / f"{name}.json")
    told = run("compare", "gpu.json", "slower.json")
    assert told.exit_code == 0, told.output
    assert "GPU p50 ms" in told.stdout
    assert any(line.startswith("trt fp32") and "1.5 → 3" in line for line in told.stdout.splitlines())
    assert "GPU p50 ms" not in run("compare", "gpu.json", "without.json").stdout
