"""A report as JUnit XML, for the test pages of CI systems: one suite for each subject, one case for each check.

The elements and attributes are those of the schema of Jenkins's xUnit plugin (junit-10.xsd); Ant's older one wants a
host's name and a date in every suite, which a report does not hold. What did not run is an error, what answered wrongly
or missed a gate a failure, what is unavailable skipped. A broken invariance does not fail a row, so its case passes and
says so in ``system-out``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal
from xml.etree import ElementTree

from deploykit.bench.report import GateResult, Report, Row
from deploykit.bench.table import labels, row_names, sizes
from deploykit.bench.tolerance import judge_metric

# What XML 1.0 cannot hold even escaped; exceptions of kernels bring such characters.
_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_FACTS = ("cpu", "os", "machine", "python", "threads")


@dataclass(frozen=True)
class Case:
    """One check: what it is called, how long it took, and what is wrong with it."""

    name: str
    kind: Literal["passed", "failure", "error", "skipped"] = "passed"
    message: str | None = None
    seconds: float = 0.0


def to_junit(report: Report) -> str:
    """The report as an XML document."""
    root = ElementTree.Element("testsuites", name=_clean(f"deploykit {report.model}"))
    suites = [_suite(report, name, cases) for name, cases in _cases(report).items()]
    for suite in suites:
        root.append(suite)
    for count in ("tests", "failures", "errors"):
        root.set(count, str(sum(int(suite.get(count, "0")) for suite in suites)))
    root.set("time", _seconds(sum(float(suite.get("time", "0")) for suite in suites)))
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _cases(report: Report) -> dict[str, list[Case]]:
    """The cases of every subject, by its name; gates on rows that were not there come last."""
    found: dict[str, list[Case]] = {}
    subjects = labels(report)
    names = row_names(report)
    for name, row in zip(names, report.rows, strict=True):
        subject = subjects[row.backend, row.precision, row.artifact]
        # What holds for the subject at all sizes stands in each of its rows.
        cases = found.setdefault(subject, list(_subject(row)))
        cases += [_run(row), *(_gate(gate, row) for gate in report.gates if gate.row == name)]
    lost = [
        Case(f"{gate.name} of {gate.row}", "failure", gate.reason) for gate in report.gates if gate.row not in names
    ]
    return {name: _unique(cases) for name, cases in {**found, **({"gates": lost} if lost else {})}.items()}


def _unique(cases: list[Case]) -> list[Case]:
    """CI systems take cases of one name for one, and a failure would be lost: number those that repeat."""
    counts: dict[str, int] = {}
    result = []
    for case in cases:
        counts[case.name] = number = counts.get(case.name, 0) + 1
        result.append(case if number == 1 else replace(case, name=f"{case.name} #{number}"))
    return result


def _subject(row: Row) -> Iterator[Case]:
    for check in row.checks:
        where = "×".join("–" if size is None else str(size) for size in (check.batch, check.time))
        yield Case(f"accuracy at {where}", "passed" if check.passed else "failure", check.reason)
    if row.metric is not None and row.tolerance is not None:
        wrong = judge_metric(row.metric, row.tolerance)
        yield Case(f"metric {row.metric.name}", "passed" if wrong is None else "failure", wrong)
    if row.invariance is not None:
        told = [warning for warning in row.warnings if " when " in warning and " changes by " in warning]
        for name, value, what in (
            ("batch", row.invariance.batch, "a row's answer"),
            ("prefix", row.invariance.prefix, "the answer to"),
        ):
            if value is None:
                yield Case(f"{name} invariance", "skipped", "it could not be tested, or means nothing for this model.")
            else:
                broken = next((warning for warning in told if warning.startswith(what)), None)
                yield Case(f"{name} invariance", "passed", broken)


def _run(row: Row) -> Case:
    if row.status == "unavailable":
        return Case("runs", "skipped", row.reason)
    name = f"runs at {sizes(row)}"
    if row.status == "failed":
        return Case(name, "failure" if row.fault == "answer" else "error", row.reason)
    p50 = None if row.latency_ms is None else row.latency_ms.p50
    return Case(name, message=" ".join(row.warnings) or None, seconds=0.0 if p50 is None else p50 / 1e3)


def _gate(gate: GateResult, row: Row) -> Case:
    return Case(f"{gate.name} at {sizes(row)}", "passed" if gate.passed else "failure", gate.reason)


def _suite(report: Report, name: str, cases: list[Case]) -> ElementTree.Element:
    counts = {kind: sum(case.kind == kind for case in cases) for kind in ("failure", "error", "skipped")}
    suite = ElementTree.Element(
        "testsuite",
        name=_clean(name),
        tests=str(len(cases)),
        failures=str(counts["failure"]),
        errors=str(counts["error"]),
        skipped=str(counts["skipped"]),
        time=_seconds(sum(case.seconds for case in cases)),
    )
    properties = ElementTree.SubElement(suite, "properties")
    libraries = report.environment.get("libraries") or {}
    facts = {key: report.environment[key] for key in _FACTS if report.environment.get(key) is not None}
    for key, value in {**facts, **libraries}.items():
        ElementTree.SubElement(properties, "property", name=_clean(str(key)), value=_clean(str(value)))
    if not len(properties):
        suite.remove(properties)  # the schemas want at least one inside
    for case in cases:
        suite.append(_case(case, _clean(f"{report.model}.{name}")))
    return suite


def _case(case: Case, subject: str) -> ElementTree.Element:
    element = ElementTree.Element("testcase", name=_clean(case.name), classname=subject, time=_seconds(case.seconds))
    message = _clean(case.message or "")
    if case.kind == "skipped":
        ElementTree.SubElement(element, "skipped", message=message)
    elif case.kind != "passed":
        ElementTree.SubElement(element, case.kind, message=message, type=case.kind).text = message
    elif message:
        ElementTree.SubElement(element, "system-out").text = message
    return element


def _seconds(value: float) -> str:
    return f"{value:.6f}"


def _clean(text: str) -> str:
    return _FORBIDDEN.sub("\N{REPLACEMENT CHARACTER}", text)
