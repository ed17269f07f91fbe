from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from click.testing import Result

from deploykit.bench import html
from deploykit.bench import report as reports
from deploykit.bench.report import GateResult, Report, Server, Try
from deploykit.errors import OutputError
from tests.bench.pages import DRIFTED, FAILED, FULL, GATED, INT8, KINDS, OUTSIDE, REFERENCE, SHAPES, Page, named
from tests.bench.samples import DRIFT, GONE, SERVER
from tests.bench.samples import alone as report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
_DRAWING = re.compile(r"<svg.*?</svg>", re.S)


def drawings(page: str) -> list[ElementTree.Element]:
    return [ElementTree.fromstring(text) for text in _DRAWING.findall(page)]


@pytest.mark.parametrize("kind", [*KINDS, "full"])
def test_every_kind_of_row_makes_a_whole_page(kind: str) -> None:
    found = FULL if kind == "full" else report(*KINDS[kind])
    text = html.render(found)
    page = Page(text)
    assert len(page.ids) == len(set(page.ids)), "an id stands once"
    for drawing in drawings(text):
        assert drawing.attrib["role"] == "img"
        told = [drawing.find(tag) for tag in ("title", "desc")]
        assert all(element is not None and element.text for element in told)
        assert drawing.attrib["aria-labelledby"].split() == [
            element.attrib["id"] for element in told if element is not None
        ]
    assert not re.search(r"\b(nan|inf|None)\b", " ".join(page.words)), "a number that is none is a dash"
    assert not re.search(r'="[^"]*\b(nan|inf)\b', text), "nor does one reach a drawing"


def test_a_report_that_was_read_makes_the_same_page(tmp_path: Path) -> None:
    reports.save(FULL, tmp_path / "r.json")
    assert html.render(reports.read(tmp_path / "r.json")) == html.render(FULL)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "not-finite"])  # no run has an infinite mean
def test_what_json_makes_null_can_be_read_and_drawn(kind: str, tmp_path: Path) -> None:
    reports.save(report(*KINDS[kind]), tmp_path / "r.json")
    Page(html.render(reports.read(tmp_path / "r.json")))


def test_a_metric_that_is_not_finite_can_be_read_again(tmp_path: Path) -> None:
    assert INT8.metric is not None
    row = replace(INT8, metric=replace(INT8.metric, value=float("nan")), passed=False)
    reports.save(report(row), tmp_path / "r.json")
    found = reports.read(tmp_path / "r.json")
    assert found.rows[0].metric is not None
    assert found.rows[0].metric.value is None
    assert "vs 1.831" in html.render(found)


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", "a\"b'c & d", "</style><b>", "{{ 7 * 7 }}", "\x00\x1f"])
def test_all_text_is_escaped(name: str) -> None:
    text = html.render(named(name, REFERENCE, OUTSIDE))
    page = Page(text)
    assert not [tag for tag, _ in page.tags if tag == "script"]
    assert "<script" not in text
    assert "</style><b>" not in text
    assert "49" not in text or "{" not in name
    drawings(text)
    if name.startswith("<"):
        assert "&lt;script&gt;" in text or "&lt;/style&gt;" in text


def test_nothing_is_loaded_from_anywhere() -> None:
    text = html.render(FULL)
    assert "http" not in text
    assert "@import" not in text
    assert re.findall(r"url\((?!#)", text) == []
    for tag, attributes in Page(text).tags:
        assert tag not in ("script", "link", "img", "iframe", "object", "use")
        assert not {"src", "href", "onload", "onclick"} & set(attributes)


def test_the_verdict_comes_first_and_in_words() -> None:
    good, bad = (Page(html.render(report(*rows))).words for rows in ((REFERENCE, INT8, GONE), (REFERENCE, OUTSIDE)))
    assert good.index("Passed") < good.index("Results")
    assert any("Every answer lies within its tolerance of torch. Not available here: trt." in text for text in good)
    assert any("Outside its tolerance of torch: ort int8." in text for text in bad)
    crashed = Page(html.render(report(REFERENCE, FAILED))).words
    assert any("Did not run to the end: ort int8." in text for text in crashed)
    assert "it crashed." in crashed


def test_the_numbers_stand_there_with_what_they_are_held_against() -> None:
    text = " ".join(Page(html.render(report(REFERENCE, INT8, GONE))).words)
    for told in (
        *("12.35", "11.23 to 13.46", "41.2", "1.0e-03", "argmax 98.00 %", "12.3 MB"),
        *("1.837", "vs 1.831, +0.29%", "TensorRT is not installed.", "exact"),
    ):
        assert told in text, told


def test_figures_are_drawn_for_what_was_measured() -> None:
    def headings(found: Report) -> set[str]:
        return set(re.findall(r'<h2 id="(\w+)">', html.render(found)))

    drawn = {"latency", "tradeoff", "steps", "scaling", "coverage"}
    assert drawn <= headings(FULL)
    assert drawn & headings(report(REFERENCE, INT8)) == drawn - {"scaling"}, "one size does not scale"
    assert drawn & headings(report(*KINDS["no-latency"])) == {"steps", "coverage"}
    assert not drawn & headings(report(GONE))


def test_a_missed_gate_is_no_wrong_answer() -> None:
    reason = "it is 12.3 times as fast as torch, and 20 is needed."
    name = "ort int8 16×1000"
    gates = (
        GateResult("min-speedup", name, 20.0, 12.345, False, reason),
        GateResult("min-rate", name, 2e3, None, False),
    )
    words = Page(html.render(replace(report(REFERENCE, GATED), gates=gates))).words
    verdict = "Every answer lies within its tolerance of torch. Gates missed: min-speedup, min-rate."
    assert any(verdict in text for text in words)
    assert "missed a gate" in words
    assert "outside" not in words
    for told in ("12.3×", "20×", "2,000/s", "missed", reason):
        assert told in words, told


def test_gates_that_passed_are_told_with_what_they_found() -> None:
    gates = (
        GateResult("max-latency p99", "ort int8 16×1000", 20.0, 12.34, True),
        GateResult("max-metric-drop", "ort int8 16×1000", 0.01, 0.0029, True, "This is uncertain: so it is."),
    )
    words = Page(html.render(replace(report(REFERENCE, INT8), gates=gates))).words
    start = words.index("max-latency p99")
    shown = [text for text in words[start:] if text]
    assert shown[:5] == ["max-latency p99", "ort int8 16×1000", "12.3 ms", "20 ms", "passed"]
    for told in ("0.29%", "1.00%", "passed, uncertain"):
        assert told in words, told


def test_the_drift_is_drawn_once_for_each_subject_over_the_steps_streamed() -> None:
    rows = (replace(DRIFTED, batch=batch, time=time) for batch, time in SHAPES)
    text = html.render(report(REFERENCE, *rows))
    drawn = [drawing for drawing in drawings(text) if drawing.attrib["aria-labelledby"].startswith("drift")]
    assert len(drawn) == 1
    assert "ort int8: 1e-4 at 125, 9e-4 at 875" in ElementTree.tostring(drawn[0], encoding="unicode")
    assert "It grows for ort int8." in text
    assert '<h2 id="drift">' not in html.render(report(REFERENCE, replace(INT8, drift=replace(DRIFT, per_step=(0.0,)))))


def test_a_server_has_its_rate_beside_the_bound() -> None:
    def words(*servers: Server) -> list[str]:
        rows = (replace(INT8, server=server, batch=batch) for batch, server in enumerate(servers, 1))
        return Page(html.render(replace(report(REFERENCE, *rows), settings={"scenario": "server"}))).words

    given = replace(SERVER, percentile=None, bound_ms=None)
    found = words(SERVER, replace(given, rate=123.0), replace(given, rate=77.0, p50=None, p99=None, mean=None))
    assert found[found.index("200") + 1] == "p99 within 20 ms"
    assert found[found.index("123") + 1] == "p99 18 ms"
    assert "its queue ran away at 77" in found
    assert "deploykit bench, server, against torch" in found
    assert "Requests/s" not in Page(html.render(report(REFERENCE, INT8))).words


def test_how_it_was_made_is_told() -> None:
    found = replace(FULL, settings={"command": "deploykit bench --batch 1,16", "seed": 3}, environment={"cpu": "X9"})
    words = Page(html.render(found)).words
    assert "deploykit bench --batch 1,16" in words
    assert words[words.index("CPU") + 1] == "X9"
    assert words[words.index("Seed") + 1] == "3"


def test_a_page_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    html.save(FULL, tmp_path / "new" / "r.html")
    assert (tmp_path / "new" / "r.html").read_text(encoding="utf-8") == html.render(FULL)
    with pytest.raises(OutputError):
        html.save(FULL, tmp_path)


def test_a_report_is_shown_again(run: Callable[..., Result], folder: Path) -> None:
    reports.save(replace(FULL, rows=(REFERENCE, OUTSIDE), passed=False), folder / "r.json")
    told = run("report", "r.json", "--html", "r.html")
    assert told.exit_code == 0, told.output
    assert "its SNR is low." in told.stdout
    assert "Outside its tolerance" in (folder / "r.html").read_text(encoding="utf-8")
    assert run("report", "none.json").exit_code == 1


def test_validate_writes_a_page_and_its_command(run: Callable[..., Result], net: object, folder: Path) -> None:
    given = ("net.py:gru", "--input", "x:float32[batch,time,8]", "--backend", "ort", "--html", str(folder / "v.html"))
    result = run("validate", *given, "--json", "v.json")
    assert result.exit_code == 0, result.output
    command = json.loads((folder / "v.json").read_text())["settings"]["command"]
    assert command == (
        "deploykit validate net.py:gru --input 'x:float32[batch,time,8]' --backend ort --html v.html --json v.json"
    )
    text = (folder / "v.html").read_text(encoding="utf-8")
    assert "deploykit validate net.py:gru" in text
    assert str(folder) not in text


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")
@pytest.mark.slow
@pytest.mark.parametrize(
    "found", [FULL, named("<script>alert(1)</script>", REFERENCE, OUTSIDE)], ids=["full", "script"]
)
def test_a_browser_shows_it_without_complaint(found: Report, tmp_path: Path) -> None:
    html.save(found, tmp_path / "r.html")
    common = [str(CHROMIUM), "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'user'}"]
    common += ["--enable-logging=stderr", "--window-size=1000,900"]
    address = (tmp_path / "r.html").as_uri()
    dumped = subprocess.run([*common, "--dump-dom", address], capture_output=True, text=True, timeout=120, check=True)
    assert "How it was made" in dumped.stdout
    assert "CONSOLE" not in dumped.stderr
    shot = [*common, f"--screenshot={tmp_path / 's.png'}", address]
    subprocess.run(shot, capture_output=True, timeout=120, check=True)
    assert (tmp_path / "s.png").stat().st_size > 20_000


def test_a_search_is_drawn_and_a_rate_that_was_given_is_not() -> None:
    text = html.render(report(*KINDS["server"]))
    assert '<h2 id="rates">' in text
    assert "18 ms at 200 requests/s, 31 ms at 210 requests/s, not held, its queue ran away at 400" in text
    old = replace(SERVER, tries=tuple(Try(one.rate, one.found_ms) for one in SERVER.tries))
    assert "31 ms at 210 requests/s, not held, its queue" in html.render(report(REFERENCE, replace(INT8, server=old)))
    given = replace(SERVER, percentile=None, bound_ms=None, found_ms=None, tries=())
    assert '<h2 id="rates">' not in html.render(report(REFERENCE, replace(INT8, server=given)))
