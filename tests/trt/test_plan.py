"""A plan is held against its manifest and this machine before anything deserializes it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deploykit.artifact import Artifact, Engine
from deploykit.errors import ArtifactError
from deploykit.trt.plan import FORM, MAGIC, header_version, require_fits

GPU = ("NVIDIA H100 80GB HBM3", "9.0")


def plan(path: Path, version: tuple[int, ...] = (10, 16, 1, 11), head: bytes = MAGIC + FORM) -> Path:
    path.write_bytes(head + bytes(16) + bytes(version) + b"the rest")
    return path


def artifact(path: Path, tensorrt: str = "10.16.1.11", **options: Any) -> Artifact:
    engine = Engine(tensorrt, *GPU, ({"x": ((1,), (1,), (1,))},), options)
    return Artifact(path, "trt-engine", "float16", "0" * 64, (), (), engine=engine)


def test_the_version_in_its_header(tmp_path: Path) -> None:
    assert header_version(plan(tmp_path / "a.engine")) == (10, 16, 1, 11)
    # 0x74727466, least significant byte first.
    assert int.from_bytes(MAGIC, "little") == 0x74727466


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "no TensorRT plan"),
        (MAGIC + FORM + bytes(10), "cut short"),
        (b"\x10\0\0\0{'names': 'a header of another tool'}" + MAGIC, "another tool's header"),
        (MAGIC + b"\1\0\0\0" + bytes(40), "a form that deploykit does not know"),
    ],
)
def test_what_is_no_plan(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "a.engine"
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=words):
        header_version(path)
    with pytest.raises(ArtifactError, match="no such file"):
        header_version(tmp_path / "none.engine")


def test_one_that_fits(tmp_path: Path) -> None:
    require_fits(artifact(plan(tmp_path / "a.engine")), "10.16.1.11", *GPU)
    # The package's own version may have a word behind it, and the build number is one byte in the header.
    require_fits(artifact(plan(tmp_path / "b.engine", (8, 6, 1, 6)), "8.6.1.post1"), "8.6.1", *GPU)
    require_fits(artifact(plan(tmp_path / "c.engine", (11, 0, 0, 114)), "11.0.0.114"), "11.0.0.114", *GPU)


@pytest.mark.parametrize(
    ("header", "told", "here", "gpu", "words"),
    [
        ((10, 16, 1, 11), "10.16.1.11", "10.14.1.48", GPU, "built by TensorRT 10.16.1.11, and here is 10.14.1.48"),
        ((10, 16, 1, 11), "10.16.1.11", "10.16.1.12", GPU, "and here is 10.16.1.12"),
        ((10, 16, 1, 11), "11.4.0.106", "11.4.0.106", GPU, "written by TensorRT 10.16.1.11, and its manifest says"),
        ((10, 16, 1, 11), "10.16.1.11", "10.16.1.11", ("NVIDIA A100", "8.0"), "built for NVIDIA H100"),
        ((10, 16, 1, 11), "10.16.1.11", "10.16.1.11", ("NVIDIA H200", "9.0"), "and here is NVIDIA H200"),
    ],
)
def test_one_that_does_not(
    tmp_path: Path, header: tuple[int, ...], told: str, here: str, gpu: tuple[str, str], words: str
) -> None:
    with pytest.raises(ArtifactError, match=words) as error:
        require_fits(artifact(plan(tmp_path / "a.engine", header), told), here, *gpu)
    assert "--rebuild" in str(error.value)
    assert str(tmp_path) not in str(error.value)  # a report carries it to others


def test_engines_that_were_built_to_travel(tmp_path: Path) -> None:
    file = plan(tmp_path / "a.engine")
    versions = artifact(file, version_compatible=True)
    require_fits(versions, "10.20.0.1", *GPU)
    require_fits(versions, "11.4.0.106", *GPU)
    with pytest.raises(ArtifactError, match=r"and here is 10\.3\.0"):
        require_fits(versions, "10.3.0", *GPU)
    require_fits(artifact(file, hardware_compatible="ampere+"), "10.16.1.11", "NVIDIA A10", "8.6")
    with pytest.raises(ArtifactError, match="NVIDIA T4"):
        require_fits(artifact(file, hardware_compatible="ampere+"), "10.16.1.11", "NVIDIA T4", "7.5")
    require_fits(artifact(file, hardware_compatible="same-capability"), "10.16.1.11", "NVIDIA H200", "9.0")
    with pytest.raises(ArtifactError, match="NVIDIA B200"):
        require_fits(artifact(file, hardware_compatible="same-capability"), "10.16.1.11", "NVIDIA B200", "10.0")


def test_a_manifest_that_says_nothing_of_an_engine(tmp_path: Path) -> None:
    bare = replace(artifact(plan(tmp_path / "a.engine")), engine=None)
    with pytest.raises(ArtifactError, match="says nothing of an engine"):
        require_fits(bare, "10.16.1.11", *GPU)
