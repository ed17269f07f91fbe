from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from deploykit.advise import evidence
from deploykit.advise.probes import architectures
from deploykit.errors import ArtifactError
from tests.advise.samples import EVIDENCE, MACHINE


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    evidence.save(EVIDENCE, tmp_path / "kept.json")
    found = evidence.read(tmp_path / "kept.json")
    assert found.qualities == EVIDENCE.qualities
    assert found.costs == EVIDENCE.costs
    assert found.tasks == EVIDENCE.tasks


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"costs": [{"hidden": "wide"}]}', b"\xff"])
def test_a_damaged_file_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.json").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"bad\.json holds no measurements"):
        evidence.read(tmp_path / "bad.json")


def test_another_schema_is_refused(tmp_path: Path) -> None:
    evidence.save(replace(EVIDENCE, schema_version=99), tmp_path / "new.json")
    with pytest.raises(ArtifactError, match="schema version 99"):
        evidence.read(tmp_path / "new.json")


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="cannot read"):
        evidence.read(tmp_path / "none.json")


def test_what_comes_along_covers_the_family() -> None:
    packaged = evidence.packaged()
    costs = {cost.architecture for one in packaged for cost in one.costs}
    judged = {row.architecture for one in packaged for row in one.qualities}
    assert costs == judged == set(architectures())
    assert {"traffic", "names", "charlm"} == set(evidence.tasks(packaged))
    assert all(len(row.metrics) >= 3 for one in packaged for row in one.qualities)


def test_machines_are_told_apart_by_what_decides_speed() -> None:
    assert evidence.same_machine(MACHINE, {**MACHINE, "libraries": {"torch": "2.6"}})
    assert not evidence.same_machine(MACHINE, {**MACHINE, "cpu_flags": ["avx2", "avx512_vnni"]})
