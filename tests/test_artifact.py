"""Artifacts and their manifests."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from deploykit import artifact as artifacts
from deploykit.artifact import Artifact, ModelRef
from deploykit.coverage import Coverage, CoverageRow
from deploykit.errors import ArtifactError, OutputError
from deploykit.types import DimRange, TensorSpec


def graph() -> bytes:
    value = helper.make_tensor_value_info
    relu = helper.make_node("Relu", ["x"], ["y"])
    ends = [value("x", TensorProto.FLOAT, ["batch", 4])], [value("y", TensorProto.FLOAT, ["batch", 4])]
    model = helper.make_model(helper.make_graph([relu], "g", *ends), opset_imports=[helper.make_opsetid("", 20)])
    return bytes(model.SerializeToString())


def made(path: Path) -> Artifact:
    row = CoverageRow("rnn/GRU", "GRU", "int8", "Scan", 100, 25, reason=None)
    return Artifact(
        path,
        "onnx",
        "float32",
        "",
        (TensorSpec("x", "float32", ("batch", 4)),),
        (TensorSpec("y", "float32", ("batch", 4)),),
        name="net",
        parent="ab" * 32,
        model=ModelRef("net.py:make", "w.pt", ("x[batch,4]",), ("batch=1:8",)),
        dims={"batch": DimRange(1, 8)},
        tools={"onnx": "1"},
        coverage=Coverage((row,)),
    )


def test_what_is_written_is_read_again(folder: Path) -> None:
    written = artifacts.write(made(folder / "build" / "net.onnx"), graph())
    read = artifacts.read(folder / "build" / "net.onnx")
    assert read == written
    assert read.size_bytes == len(graph())
    assert read.created.endswith("+00:00")


def test_the_manifest_tells_no_absolute_path_and_moves_with_its_folder(folder: Path) -> None:
    (folder / "project").mkdir()
    model = ModelRef(f"{folder}/project/net.py:make", f"{folder}/project/w.pt")
    artifacts.write(replace(made(folder / "project" / "build" / "net.onnx"), model=model), graph())
    assert str(folder) not in (folder / "project" / "build" / "net.onnx.json").read_text()
    (folder / "project").rename(folder / "moved")
    read = artifacts.read(Path("moved/build/net.onnx"))
    assert read.model == ModelRef("moved/net.py:make", "moved/w.pt")


def test_models_are_the_same_however_their_paths_are_written(folder: Path) -> None:
    model = ModelRef("net.py:make", "w.pt")
    assert model.same_model(ModelRef(f"{folder}/net.py:make", "./w.pt"))
    assert not model.same_model(ModelRef("net.py:make", "other.pt"))
    assert not model.same_model(None)
    assert ModelRef("charlm-gru").same_model(ModelRef("charlm-gru"))


def test_a_file_that_is_not_the_manifests_is_refused(folder: Path) -> None:
    path = artifacts.write(made(folder / "net.onnx"), graph()).path
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ArtifactError, match="SHA-256 differs"):
        artifacts.read(path)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"manifest_version": 99}, "manifest version 99"),
        ({"format": "tflite"}, "unknown format 'tflite'"),
        ({"inputs": "none"}, "no manifest that deploykit can read"),
        (None, "no manifest that deploykit can read"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(folder: Path, change: dict[str, object] | None, told: str) -> None:
    path = artifacts.write(made(folder / "net.onnx"), graph()).path
    manifest = artifacts.manifest_path(path)
    manifest.write_text("{" if change is None else json.dumps(json.loads(manifest.read_text()) | change))
    with pytest.raises(ArtifactError, match=told):
        artifacts.read(path)


def test_a_missing_file_or_manifest_is_told(folder: Path) -> None:
    with pytest.raises(ArtifactError, match="deploykit export"):
        artifacts.read(folder / "none.onnx")
    (folder / "net.engine").write_bytes(b"ftrt")
    with pytest.raises(ArtifactError, match="has no manifest"):
        artifacts.read(folder / "net.engine")


def test_an_onnx_file_of_others_needs_no_manifest(folder: Path) -> None:
    (folder / "theirs.onnx").write_bytes(graph())
    read = artifacts.read(folder / "theirs.onnx")
    assert (read.format, read.name, read.model) == ("onnx", "theirs", None)
    assert read.inputs == (TensorSpec("x", "float32", ("batch", 4)),)


@pytest.mark.parametrize("length", [0, 1, 20, -5])
def test_an_onnx_file_cut_short_is_told(folder: Path, length: int) -> None:
    (folder / "cut.onnx").write_bytes(graph()[:length])
    with pytest.raises(ArtifactError, match="cut short"):
        artifacts.read(folder / "cut.onnx")


def test_a_failed_write_leaves_nothing(folder: Path) -> None:
    (folder / "build").write_text("a file where the folder should be")
    with pytest.raises(OutputError):
        artifacts.write(made(folder / "build" / "net.onnx"), graph())
    assert [path.name for path in folder.iterdir()] == ["build"]


@pytest.mark.parametrize("was_there", [False, True])
@pytest.mark.parametrize("had_folder", [False, True])
def test_when_the_last_rename_fails_everything_is_as_before(
    folder: Path, monkeypatch: pytest.MonkeyPatch, was_there: bool, had_folder: bool
) -> None:
    path = folder / "build" / "net.onnx"
    if had_folder:
        path.parent.mkdir()
    if was_there:
        artifacts.write(made(path), graph())
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    rename = Path.replace

    def fails_on_the_artifact(self: Path, target: Path) -> Path:
        if target == path:
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", fails_on_the_artifact)
    with pytest.raises(OutputError, match="input/output error"):
        artifacts.write(replace(made(path), name="other"), graph())
    assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == before
    assert (folder / "build").exists() is (was_there or had_folder)


def test_external_data_counts_to_the_size(folder: Path) -> None:
    weight = helper.make_tensor("w", TensorProto.FLOAT, [1000], bytes(4000), raw=True)
    value = helper.make_tensor_value_info
    ends = [value("x", TensorProto.FLOAT, [1000])], [value("y", TensorProto.FLOAT, [1000])]
    add = helper.make_node("Add", ["x", "w"], ["y"])
    model = helper.make_model(
        helper.make_graph([add], "g", *ends, [weight]), opset_imports=[helper.make_opsetid("", 20)]
    )
    onnx.save(model, folder / "big.onnx", save_as_external_data=True, location="big.data", size_threshold=10)
    assert artifacts.read(folder / "big.onnx").size_bytes == sum(
        (folder / name).stat().st_size for name in ("big.onnx", "big.data")
    )


def test_the_newest_that_fits_is_taken_up(folder: Path) -> None:
    for name, created in (("old", "2026-01-01"), ("new", "2026-01-03"), ("other", "2026-01-05")):
        path = artifacts.write(replace(made(folder / f"{name}.onnx"), name=name), graph()).path
        manifest = artifacts.manifest_path(path)
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"created": created}))
    found = artifacts.newest(folder, lambda artifact: artifact.name != "other")
    assert found is not None
    assert found.name == "new"
    assert artifacts.newest(folder / "none", lambda artifact: True) is None


def test_the_test_graph_is_valid() -> None:
    onnx.checker.check_model(onnx.load_from_string(graph()), full_check=True)
