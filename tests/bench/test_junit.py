from __future__ import annotations

import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from deploykit.bench import bench
from deploykit.bench.gates import Baseline, Gates, MaxLatency, MinSpeedup, judge
from deploykit.bench.junit import to_junit
from deploykit.bench.report import Check, Invariance, Report
from deploykit.bench.settings import Settings
from tests.bench.fakes import subject
from tests.bench.samples import BROKEN, GONE, LATENCY, ORT, QUANTIZED, report

# After the schema of Jenkins's xUnit plugin (junit-10.xsd), and stricter where it allows any text or order: the
# attributes and children that an element may have, and the patterns of their values; those with a bang are required.
_COUNT, _TIME, _TEXT = r"\d+", r"\d+\.\d{6}", r".+"
ATTRIBUTES = {
    "testsuites": {"name!": _TEXT, "tests!": _COUNT, "failures!": _COUNT, "errors!": _COUNT, "time!": _TIME},
    "testsuite": {
        **{"name!": _TEXT, "tests!": _COUNT, "failures!": _COUNT, "errors!": _COUNT, "skipped!": _COUNT},
        "time!": _TIME,
    },
    "properties": {},
    "property": {"name!": _TEXT, "value!": r".*"},
    "testcase": {"name!": _TEXT, "classname!": _TEXT, "time!": _TIME},
    "failure": {"message": _TEXT, "type!": "failure"},
    "error": {"message": _TEXT, "type!": "error"},
    "skipped": {"message": _TEXT},
    "system-out": {},
}
CHILDREN = {
    "testsuites": ("testsuite",),
    "testsuite": ("properties", "testcase"),
    "properties": ("property",),
    "testcase": ("skipped", "error", "failure", "system-out"),
}
# Of these an element has at most one.
ALONE = {"testsuite": ("properties",), "testcase": ("skipped", "error", "failure", "system-out")}


def assert_valid(element: ElementTree.Element) -> None:
    allowed = {name.rstrip("!"): pattern for name, pattern in ATTRIBUTES[element.tag].items()}
    required = {name.rstrip("!") for name in ATTRIBUTES[element.tag] if name.endswith("!")}
    assert required <= set(element.attrib) <= set(allowed), element.tag
    for name, value in element.attrib.items():
        assert re.fullmatch(allowed[name], value, re.S), (element.tag, name, value)
    order = [CHILDREN.get(element.tag, ()).index(child.tag) for child in element]
    assert order == sorted(order)
    assert sum(child.tag in ALONE.get(element.tag, ()) for child in element) <= 1
    for child in element:
        assert_valid(child)


def parsed(found: Report) -> ElementTree.Element:
    root = ElementTree.fromstring(to_junit(found))
    assert_valid(root)
    for suite in root:
        cases = suite.findall("testcase")
        assert suite.get("tests") == str(len(cases))
        assert len({case.get("name") for case in cases}) == len(cases)
        for attribute, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
            assert suite.get(attribute) == str(sum(case.find(tag) is not None for case in cases))
        assert float(str(suite.get("time"))) == pytest.approx(sum(float(str(case.get("time"))) for case in cases))
    assert float(str(root.get("time"))) == pytest.approx(sum(float(str(suite.get("time"))) for suite in root))
    for attribute in ("tests", "failures", "errors"):
        assert root.get(attribute) == str(sum(int(suite.get(attribute, "0")) for suite in root))
    return root


def cases(root: ElementTree.Element, suite: str) -> dict[str, str]:
    found = {}
    for case in root.findall(f"testsuite[@name='{suite}']/testcase"):
        outcome = next((child.tag for child in case if child.tag != "system-out"), "passed")
        found[str(case.get("name"))] = outcome
    return found


def test_one_suite_for_each_subject_and_one_case_for_each_check() -> None:
    gates = Gates((MaxLatency("p99", 5.0),), (MinSpeedup(1.0),), max_metric_drop=0.001)
    root = parsed(judge(report(ORT, replace(ORT, batch=2), QUANTIZED, GONE), gates))
    assert cases(root, "ort fp32") == {
        "accuracy at 1×100": "passed",
        "metric score": "passed",
        "batch invariance": "passed",
        "prefix invariance": "skipped",
        "runs at 1×100": "passed",
        "max-latency p99 at 1×100": "failure",
        "min-speedup at 1×100": "passed",
        "max-metric-drop at 1×100": "passed",
        "runs at 2×100": "passed",
        "max-latency p99 at 2×100": "failure",
        "min-speedup at 2×100": "passed",
        "max-metric-drop at 2×100": "passed",
    }
    assert cases(root, "ort int8")["max-metric-drop at 1×100"] == "failure"
    assert cases(root, "trt") == {"runs": "skipped"}


def test_failures_have_their_reason() -> None:
    wrong = replace(ORT, passed=False, fault="answer", checks=(Check(1, 100, 1, 9.0, 1.0, False, "its SNR is low."),))
    failure = parsed(report(wrong)).find("testsuite[@name='ort fp32']/testcase/failure")
    assert failure is not None
    assert failure.get("message") == failure.text == "its SNR is low."


def test_times_are_seconds_without_an_exponent() -> None:
    for p50, seconds in ((0.02, "0.000020"), (1e7, "10000.000000")):
        row = replace(ORT, latency_ms=replace(LATENCY, p50=p50))
        case = parsed(report(row)).find("testsuite[@name='ort fp32']/testcase[@name='runs at 1×100']")
        assert case is not None
        assert case.get("time") == seconds


def test_what_did_not_run_is_an_error_and_a_wrong_answer_a_failure() -> None:
    assert cases(parsed(report(BROKEN)), "ort fp32")["runs at 1×100"] == "error"
    assert cases(parsed(report(replace(BROKEN, fault="answer"))), "ort fp32")["runs at 1×100"] == "failure"


def test_a_row_that_is_missing_is_a_case_of_its_own() -> None:
    found = judge(report(ORT), Gates(baseline=Baseline(report(ORT, QUANTIZED), "old.json", 1.1)))
    assert cases(parsed(found), "gates") == {"max-slowdown of ort int8 1×100": "failure"}


def test_gates_of_one_name_stay_apart() -> None:
    found = judge(report(ORT), Gates(max_latency=(MaxLatency("p99", 90.0), MaxLatency("p99", 1.0, "ort"))))
    named = cases(parsed(found), "ort fp32")
    assert (named["max-latency p99 at 1×100"], named["max-latency p99 at 1×100 #2"]) == ("passed", "failure")


@pytest.mark.parametrize("text", ['<&>"]]>', "a\x00b\x1b[31mc", "\ud800", "naïve ü 日本"])
def test_any_text_is_escaped(text: str) -> None:
    root = parsed(report(replace(BROKEN, reason=text), model=text))
    error = root.find("testsuite[@name='ort fp32']/testcase/error")
    assert error is not None
    told = str(error.get("message"))
    assert all(a == b or b == "\N{REPLACEMENT CHARACTER}" for a, b in zip(text, told, strict=True))
    to_junit(report(BROKEN, model=text)).encode("utf-8")


def test_a_broken_invariance_passes_and_says_so() -> None:
    found = bench([subject("COUPLED", "int8")], subject("REFERENCE"), Settings(latency=False, times=(20,)))
    root = parsed(found)
    for name in ("batch invariance", "prefix invariance"):
        told = root.find(f"testsuite[@name='COUPLED int8']/testcase[@name='{name}']/system-out")
        assert told is not None
        assert "changes by up to" in str(told.text)
    assert found.rows[1].invariance != Invariance(0.0, 0.0, causal=True)
