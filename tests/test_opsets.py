"""What a file imports, read without its graph, against what onnx reads."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from deploykit.opsets import imported, operators_of
from tests.quantize.graphs import Net

domains = st.dictionaries(st.text(max_size=30), st.integers(0, 2**31), max_size=6)


def model(opsets: dict[str, int]) -> onnx.ModelProto:
    made = Net().model()
    made.metadata_props.add(key="note", value="x" * 5000)
    del made.opset_import[:]
    made.opset_import.extend(helper.make_opsetid(domain, version) for domain, version in opsets.items())
    return made


@given(domains)
@settings(max_examples=50, deadline=None)
def test_it_reads_what_onnx_reads(opsets: dict[str, int]) -> None:
    assert imported(model(opsets).SerializeToString()) == opsets


def test_from_a_file_too(tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(model({"": 17, "ai.deploykit": 3, "com.microsoft": 1}).SerializeToString())
    assert imported(tmp_path / "net.onnx") == {"": 17, "ai.deploykit": 3, "com.microsoft": 1}
    assert operators_of(tmp_path / "net.onnx") == {"ai.deploykit": 3}


@given(st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
def test_no_bytes_are_too_strange(content: bytes) -> None:
    assert isinstance(imported(content), dict)


@pytest.mark.parametrize("cut", [1, 5, 12, 200])
def test_a_cut_file_imports_nothing(cut: int) -> None:
    content = model({"": 17, "ai.deploykit": 1}).SerializeToString()
    assert imported(content[:-cut]) in ({}, {"": 17})


def test_no_file_and_an_empty_one_import_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty.onnx").touch()
    assert imported(tmp_path / "empty.onnx") == imported(tmp_path / "none.onnx") == imported(tmp_path) == {}
