"""``deploykit build``, and engines in bench, validate and ship, with a stand-in for TensorRT and its GPU."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from deploykit import artifact as artifacts
from deploykit.artifact import ModelRef, manifest_path
from deploykit.trt.limits import newest

INPUT = ("--input", "x:float32[batch,time,8]", "--dim", "time=1:300")


@pytest.fixture
def exported(net: ModelRef, run: Callable[..., Result]) -> Path:
    """build/gru.onnx of a user's GRU, which deploykit.toml names."""
    Path("deploykit.toml").write_text(
        'model = "net.py:gru"\ninput = ["x:float32[batch,time,8]"]\ndim = ["time=1:300"]\n'
    )
    assert run("export").exit_code == 0
    return Path("build/gru.onnx")


@pytest.mark.usefixtures("stand_in")
def test_without_arguments_it_builds_the_project_s_model(exported: Path, run: Callable[..., Result]) -> None:
    result = run("build")
    assert result.exit_code == 0, result.output
    assert "build/gru.fp32.engine" in result.stdout
    assert "profile: x=1x1x8:1x100x8:32x300x8" in result.stdout
    assert "float32" in result.stdout
    assert Path("build/tensorrt-timing.cache").is_file()
    made = artifacts.read(Path("build/gru.fp32.engine"))
    assert made.model is not None
    assert made.parent == artifacts.read(exported).sha256


@pytest.mark.usefixtures("stand_in")
def test_options_and_json(exported: Path, run: Callable[..., Result]) -> None:
    asked = ("--precision", "fp16", "--shapes", "batch=1:2:4,time=10", "--shapes", "time=20:50:100", "--tf32")
    result = run("build", str(exported), *asked, "-o", "out/net.engine", "--no-timing-cache", "--json", "-")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["precision"] == "float16"
    assert told["engine"]["options"] == {"tf32": True}
    assert [profile["x"][1] for profile in told["engine"]["profiles"]] == [[2, 10, 8], [1, 50, 8]]
    assert sorted(path.name for path in Path("out").iterdir()) == ["net.engine", "net.engine.json"]


@pytest.mark.usefixtures("stand_in")
def test_the_project_file_s_table_holds(exported: Path, run: Callable[..., Result]) -> None:
    with Path("deploykit.toml").open("a") as file:
        file.write('[build]\nprecision = "fp16"\nshapes = ["time=1:10:20"]\n')
    result = run("build")
    assert result.exit_code == 0, result.output
    assert "build/gru.fp16.engine" in result.stdout
    assert "32x20x8" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--for", "10.16"), "use it with --check"),
        (("charlm-gru",), "run deploykit export charlm-gru first"),
        (("net.py:gru",), "run deploykit export net.py:gru first"),
        (("--timing-cache", "a", "--no-timing-cache"), "contradict"),
        (("-o", "build/gru.onnx"), "would write over"),
        (("-o", "build/gru.onnx.json"), "would write over"),
        (("--timing-cache", "build/gru.onnx"), "--timing-cache build/gru.onnx would write over"),
        (("--timing-cache", "build/gru.fp32.engine"), "would write over"),
        (("--check", "--json", "build/gru.onnx.json"), "would write over"),
        (("--check", "--for", "8.4"), "nothing is known of TensorRT 8.4"),
        (("--check", "--for", "12.0"), "nothing is known of TensorRT 12.0"),
        (("--shapes", "z=1"), "no input and no dynamic dim 'z'"),
        (("--check", "--for", "ten"), "like 10.16"),
        (("--json", "build/gru.onnx"), "would write over"),
    ],
)
@pytest.mark.usefixtures("stand_in")
def test_what_cannot_be_meant(
    exported: Path, run: Callable[..., Result], arguments: tuple[str, ...], words: str
) -> None:
    before = exported.read_bytes()
    result = run("build", *arguments)
    assert result.exit_code == 2, result.output
    assert words in result.stderr
    assert exported.read_bytes() == before
    assert not list(Path("build").glob("*.engine"))


def test_without_tensorrt_it_says_what_to_install(exported: Path, run: Callable[..., Result]) -> None:
    result = run("build")
    assert result.exit_code == 1
    assert "pip install 'deploykit[trt]'" in result.stderr
    assert not list(Path("build").glob("*.engine*"))


@pytest.mark.usefixtures("stand_in")
def test_an_int8_file_for_onnxruntime_is_refused_with_the_way_to_the_right_one(
    exported: Path, run: Callable[..., Result]
) -> None:
    assert run("quantize", "--int8", "--prefer", "int8").exit_code == 0
    for precision in ("int8", "fp32"):
        result = run("build", "build/gru.int8.onnx", "--precision", precision)
        assert result.exit_code == 1
        assert "deploykit quantize --int8 --target trt" in result.stderr
    result = run("build", "--precision", "int8")
    assert result.exit_code == 1
    assert "deploykit quantize --int8 --target trt" in result.stderr


def test_checking_needs_no_gpu(exported: Path, run: Callable[..., Result]) -> None:
    result = run("build", "--check", "--precision", "fp16", "--for", "10.16")
    assert result.exit_code == 0, result.output
    assert "profile: x=1x1x8:1x100x8:32x300x8" in result.stdout
    told = json.loads(run("build", "--check", "--for", "11.4", "--json", "-").stdout)
    assert (told["passed"], told["tensorrt"], told["precision"]) == (True, [11, 4], "fp32")


def test_checking_says_which_version_it_checked_for(exported: Path, run: Callable[..., Result]) -> None:
    assert "stop TensorRT 10.16 from building" in run("build", "--check", "--for", "10.16").stdout
    # Without one installed or named it is the newest of the table, not a number that no TensorRT has.
    assert json.loads(run("build", "--check", "--json", "-").stdout)["tensorrt"] == list(newest())


def test_checking_finds_the_installed_version_in_any_of_its_packages(
    exported: Path, run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deploykit.trt.packages.installed", lambda: {"tensorrt-cu12": "10.16.1.11"})
    assert "stop TensorRT 10.16 from building" in run("build", "--check").stdout


def test_checking_looks_at_the_settings_too(exported: Path, run: Callable[..., Result]) -> None:
    result = run("build", "--check", "--for", "8.6", "--strip")
    assert result.exit_code == 3
    assert "cannot do --strip" in result.stdout


def test_checking_a_file_that_would_be_refused(exported: Path, run: Callable[..., Result]) -> None:
    assert run("quantize", "--int8", "--prefer", "int8").exit_code == 0
    result = run("build", "build/gru.int8.onnx", "--check", "--precision", "int8", "--json", "-")
    assert result.exit_code == 3
    told = json.loads(result.stdout)
    assert not told["passed"]
    assert any("quantize --int8 --target trt" in problem["reason"] for problem in told["problems"])
    assert "would refuse" in result.stderr


@pytest.mark.usefixtures("stand_in")
def test_engines_are_among_what_a_model_s_bench_runs(exported: Path, run: Callable[..., Result]) -> None:
    for precision in ("fp32", "fp16"):
        assert run("build", "--precision", precision).exit_code == 0
    result = run("validate", "--backend", "trt", "--json", "-")
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)["rows"]
    assert {row["precision"] for row in rows if row["backend"] == "trt"} == {"float32", "float16"}
    assert all(row["passed"] for row in rows)


@pytest.mark.usefixtures("stand_in")
def test_without_an_engine_it_says_how_to_make_one(exported: Path, run: Callable[..., Result]) -> None:
    result = run("validate", "--backend", "trt")
    assert result.exit_code == 2
    assert "deploykit build" in result.stderr


@pytest.mark.usefixtures("stand_in")
def test_an_engine_of_another_machine_is_told_and_can_be_built_again(
    exported: Path, run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("build", "--shapes", "time=1:60:200", "--tf32").exit_code == 0
    engine = Path("build/gru.fp32.engine")
    manifest = manifest_path(engine)
    manifest.write_text(manifest.read_text().replace("Stand-in GPU", "NVIDIA A100"))
    result = run("validate", str(engine), "--backend", "trt")
    assert result.exit_code == 1
    assert "was built for NVIDIA A100" in " ".join(result.output.split())
    result = run("validate", str(engine), "--backend", "trt", "--rebuild")
    assert result.exit_code == 0, result.output
    assert "building again" in result.stderr
    made = artifacts.read(engine)
    assert made.engine is not None
    assert made.engine.gpu == "Stand-in GPU"
    assert made.engine.options == {"tf32": True}
    assert made.engine.profiles[0]["x"][2][1] == 200
    # One that fits is not built again.
    again = run("validate", str(engine), "--backend", "trt", "--rebuild")
    assert "building again" not in again.stderr
    assert artifacts.read(engine) == made
    exported.unlink()
    manifest.write_text(manifest.read_text().replace("Stand-in GPU", "NVIDIA A100"))
    result = run("validate", str(engine), "--backend", "trt", "--rebuild")
    assert result.exit_code == 1
    assert "neither beside it nor in" in result.stderr


@pytest.mark.parametrize(
    ("key", "value"),
    [("options", {"frobnicate": 1}), ("options", {"optimization_level": "all"}), ("precision", "float4")],
)
@pytest.mark.usefixtures("stand_in")
def test_a_manifest_of_settings_that_we_do_not_have_is_told(
    exported: Path, run: Callable[..., Result], key: str, value: object
) -> None:
    assert run("build").exit_code == 0
    manifest = manifest_path(Path("build/gru.fp32.engine"))
    told = json.loads(manifest.read_text().replace("Stand-in GPU", "NVIDIA A100"))
    (told["engine"] if key == "options" else told)[key] = value
    manifest.write_text(json.dumps(told))
    result = run("validate", "build/gru.fp32.engine", "--backend", "trt", "--rebuild")
    assert result.exit_code == 1
    assert "names settings that deploykit does not have" in result.stderr


@pytest.mark.usefixtures("stand_in")
def test_a_damaged_file_beside_an_engine_does_not_keep_it_from_being_built_again(
    exported: Path, run: Callable[..., Result]
) -> None:
    assert run("build").exit_code == 0
    manifest = manifest_path(Path("build/gru.fp32.engine"))
    manifest.write_text(manifest.read_text().replace("Stand-in GPU", "NVIDIA A100"))
    Path("build/a.onnx").write_bytes(b"no ONNX file")
    result = run("validate", "build/gru.fp32.engine", "--backend", "trt", "--rebuild")
    assert result.exit_code == 0, result.output


@pytest.mark.usefixtures("stand_in")
def test_an_engine_of_one_shape_is_held_against_the_model_at_that_shape(
    exported: Path, run: Callable[..., Result]
) -> None:
    assert run("build", "--shapes", "x=1x20x8").exit_code == 0
    arguments = ("build/gru.fp32.engine", "--backend", "trt", "--batch", "1", "--json", "-")
    result = run("validate", *arguments, "--time", "20")
    assert result.exit_code == 0, result.output
    (row,) = (row for row in json.loads(result.stdout)["rows"] if row["backend"] == "trt")
    assert [(check["batch"], check["time"]) for check in row["checks"]] == [(1, 20)]
    assert any("not checked at batch 2, time 137" in warning for warning in row["warnings"])
    assert any("not checked when its batch neighbours change" in warning for warning in row["warnings"])
    assert any("not checked when other steps follow" in warning for warning in row["warnings"])
    # What was asked for is not passed over.
    result = run("validate", *arguments, "--time", "30")
    assert result.exit_code == 1
    assert "and the engine takes 1x20x8" in result.stdout


@pytest.mark.usefixtures("stand_in")
def test_a_plan_without_a_manifest_needs_somebody_s_word(exported: Path, run: Callable[..., Result]) -> None:
    assert run("build").exit_code == 0
    foreign = Path("foreign.plan")
    foreign.write_bytes(Path("build/gru.fp32.engine").read_bytes())
    result = run("validate", str(foreign), "--backend", "trt")
    assert result.exit_code == 1
    assert "--trust" in result.stderr
    result = run("validate", str(foreign), "--backend", "trt", "--trust", "--json", "-")
    assert result.exit_code == 0, result.output
    assert [row["backend"] for row in json.loads(result.stdout)["rows"]].count("trt") >= 1
    foreign.write_bytes(b"no plan at all, whatever its name says")
    result = run("validate", str(foreign), "--backend", "trt", "--trust")
    assert result.exit_code == 1
    assert "no TensorRT plan" in result.stderr


@pytest.mark.usefixtures("stand_in")
def test_ship_builds_engines_where_it_can(exported: Path, run: Callable[..., Result]) -> None:
    result = run("ship", "--time", "5", "--json", "-")
    assert result.exit_code in (0, 3), result.output
    rows = json.loads(result.stdout)["rows"]
    assert {row["precision"] for row in rows if row["backend"] == "trt"} == {"float32", "float16"}
