"""The commands on a small model of a user's own: by hand, by project file, and as JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from click.testing import Result

from deploykit.artifact import ModelRef
from deploykit.bench import schema
from tests.quantize.graphs import needs_library

INPUT = ("--input", "x:float32[batch,time,8]")


@pytest.fixture
def project(net: ModelRef, folder: Path) -> Path:
    (folder / "deploykit.toml").write_text(
        'model = "net.py:gru"\ninput = ["x:float32[batch,time,8]"]\n[bench]\nbatch = [2]\n'
    )
    return folder


def test_three_lines_do_the_right_thing_in_turn(project: Path, run: Callable[..., Result]) -> None:
    exported = run("export")
    assert exported.exit_code == 0, exported.output
    assert "verified against PyTorch" in exported.stdout
    quantized = run("quantize", "--int8")
    assert quantized.exit_code == 0, quantized.output
    assert "rnn/GRU" in quantized.stdout
    made = sorted(path.name for path in (project / "build").iterdir())
    assert made == ["gru.int8.onnx", "gru.int8.onnx.json", "gru.onnx", "gru.onnx.json"]
    benched = run("bench", "--backend", "ort", "--time", "20", "--json", "-")
    assert benched.exit_code in (0, 3), benched.output  # 16 hidden units in int8 may well miss a tolerance
    report = json.loads(benched.stdout)
    rows = [(row["backend"], row["precision"], row["batch"], row["time"], row["status"]) for row in report["rows"]]
    assert rows == [("torch", "float32", 2, 20, "ok"), ("ort", "float32", 2, 20, "ok"), ("ort", "int8", 2, 20, "ok")]
    assert all(row["latency_ms"]["p50"] > 0 for row in report["rows"])
    assert report["passed"] is (benched.exit_code == 0)


@pytest.mark.slow
def test_ship_leaves_a_report_and_its_page(project: Path, run: Callable[..., Result]) -> None:
    shipped = run("ship", "--time", "5")
    assert shipped.exit_code in (0, 3), shipped.output  # as above
    text = (project / "build" / "report.json").read_text()
    report = json.loads(text)
    jsonschema.Draft202012Validator(schema()).validate(report)
    assert report["settings"]["command"] == "deploykit ship --time 5"
    ort = {row["precision"]: row for row in report["rows"] if row["backend"] == "ort"}
    assert ort["float32"]["coverage"] is None
    assert {"rnn/GRU"} <= {node["node"] for node in ort["int8"]["coverage"]["rows"]}
    quantiles = ort["int8"]["latency_ms"]["quantiles"]
    assert quantiles["0"] <= quantiles["50"] == ort["int8"]["latency_ms"]["p50"] <= quantiles["100"]
    assert "int8 coverage" in (project / "build" / "report.html").read_text(encoding="utf-8")


def test_validate_exports_what_is_missing_and_times_nothing(project: Path, run: Callable[..., Result]) -> None:
    result = run("validate", "--backend", "ort", "--time", "30", "--json", "-")
    assert result.exit_code == 0, result.output
    assert "exported gru to build" in result.stderr
    report = json.loads(result.stdout)
    assert report["passed"] is True
    ort = next(row for row in report["rows"] if row["backend"] == "ort")
    assert ort["latency_ms"] is None
    assert ort["accuracy"]["max_abs"] < 1e-4


def reseed(project: Path, seed: int) -> None:
    """Give net.py other weights."""
    source, stat = (project / "net.py").read_text(), (project / "net.py").stat()
    (project / "net.py").write_text(source.replace("manual_seed(0)", f"manual_seed({seed})"))
    os.utime(project / "net.py", (stat.st_atime + 5, stat.st_mtime + 5))  # so that cached bytecode is not taken for it


def test_an_export_that_is_out_of_date_fails_by_name_and_is_made_again_without(
    project: Path, run: Callable[..., Result]
) -> None:
    assert run("export").exit_code == 0
    reseed(project, 1)
    named = run("validate", "build/gru.onnx", "--backend", "ort", "--json", "-")
    assert named.exit_code == 3, named.output
    report = json.loads(named.stdout)
    assert report["passed"] is False
    ort = next(row for row in report["rows"] if row["backend"] == "ort")
    assert ort["fault"] == "answer"
    assert "export it again" in ort["warnings"][0]
    again = run("validate", "--backend", "ort")
    assert again.exit_code == 0, again.output
    assert "other weights" in again.stderr


def test_a_factory_without_a_seed_is_told_at_once(folder: Path, run: Callable[..., Result]) -> None:
    (folder / "drawn.py").write_text("from torch import nn\ndef make(): return nn.GRU(4, 4, batch_first=True)\n")
    result = run("export", "drawn.py:make", "--input", "x[batch,time,4]")
    assert result.exit_code == 0
    assert "other weights each time" in result.stderr


@pytest.mark.parametrize(
    ("description", "dims"), [("x[batch,time,8]", ["--dim", "time=1:50"]), ("x[2,7,8]", []), ("x[n,t,8]", [])]
)
def test_validate_takes_any_dims_without_being_told_a_size(
    net: ModelRef, folder: Path, run: Callable[..., Result], description: str, dims: list[str]
) -> None:
    assert run("export", net.ref, "--input", description, *dims, "-o", "net.onnx").exit_code == 0
    result = run("validate", "net.onnx", "--backend", "ort")
    assert result.exit_code == 0, result.output


def test_every_option_can_stand_in_the_project_file(project: Path, run: Callable[..., Result]) -> None:
    (project / "deploykit.toml").write_text(
        'model = "net.py:gru"\ninput = ["x:float32[batch,time,8]"]\n'
        '[validate]\ntime = [5]\nbackend = ["ort"]\njson = "v.json"\n'
        '[export]\noutput = "out/net.onnx"\nopset = 19\n'
    )
    assert run("validate").exit_code == 0
    rows = json.loads((project / "v.json").read_text())["rows"]
    assert [(row["backend"], row["time"]) for row in rows] == [("torch", 5), ("ort", 5)]
    assert (project / "out" / "net.onnx").exists()
    assert run("quantize", "--int8").exit_code == 0
    assert not (project / "build").exists()
    assert (project / "out" / "net.int8.onnx").exists()


def test_what_a_model_prints_stays_out_of_the_json(folder: Path) -> None:
    (folder / "loud.py").write_text(
        "import os, torch\nfrom torch import nn\ndef make():\n    print('HELLO')\n    os.system('echo SHELL')\n"
        "    torch.manual_seed(0)\n    return nn.GRU(4, 4, batch_first=True)\n"
    )
    command = [sys.executable, "-m", "deploykit", "export", "loud.py:make", "--input", "x[batch,time,4]", "--json", "-"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["format"] == "onnx"
    assert "HELLO" in done.stderr
    assert "SHELL" in done.stderr


def test_export_as_json_is_the_manifest_alone(net: ModelRef, folder: Path, run: Callable[..., Result]) -> None:
    result = run("export", net.ref, *INPUT, "-o", "here/net.onnx", "--json", "-")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == json.loads((folder / "here" / "net.onnx.json").read_text())
    assert result.stderr == ""


def test_an_excluded_recurrent_layer_ends_with_3_and_leaves_nothing(project: Path, run: Callable[..., Result]) -> None:
    assert run("export").exit_code == 0
    refused = run("quantize", "--int8", "--exclude", "rnn/GRU")
    assert refused.exit_code == 3
    assert "rnn/GRU" in refused.stderr
    assert "--allow-partial" in refused.stderr
    assert not (project / "build" / "gru.int8.onnx").exists()
    assert run("quantize", "--int8", "--exclude", "rnn/GRU", "--allow-partial").exit_code == 0
    unknown = run("quantize", "--int8", "--exclude", "rnn/LSTM")
    assert unknown.exit_code == 2
    assert "no node 'rnn/LSTM'" in unknown.stderr


def test_an_int8_artifact_is_not_quantized_again(project: Path, run: Callable[..., Result]) -> None:
    assert run("export").exit_code == 0
    assert run("quantize", "--int8").exit_code == 0
    again = run("quantize", "--int8", "build/gru.int8.onnx")
    assert again.exit_code == 1
    assert "name the float artifact" in again.stderr


def test_the_form_for_tensorrt_wants_calibration_and_says_what_it_covers(
    project: Path, run: Callable[..., Result]
) -> None:
    assert run("export").exit_code == 0
    refused = run("quantize", "--int8", "--target", "trt")
    assert refused.exit_code == 1
    assert "--calibration" in refused.stderr
    np.savez(project / "real.npz", x=np.random.default_rng(0).standard_normal((8, 40, 8)).astype(np.float32))
    made = run("quantize", "--int8", "--target", "trt", "--calibration", "real.npz", "--json", "-")
    assert made.exit_code == 0, made.output
    manifest = json.loads(made.stdout)
    assert manifest["format"] == "onnx-qdq"
    assert "real.npz" in manifest["verification"]["inputs"]
    assert [row["became"] for row in manifest["coverage"]["rows"] if row["kind"] == "GRU"] == ["int8", "float32"]
    wrong = run("quantize", "--int8", "--target", "trt", "--method", "dynamic")
    assert wrong.exit_code == 2
    assert "leave --method out" in wrong.stderr


@pytest.mark.parametrize("kind", ["lstm", "rnn"])
def test_the_other_kinds_are_exported_and_quantized(
    net: ModelRef, folder: Path, run: Callable[..., Result], kind: str
) -> None:
    assert run("export", f"net.py:{kind}", *INPUT).exit_code == 0
    quantized = run("quantize", "--int8", "--prefer", "int8", f"build/{kind}.onnx", "--json", "-")
    assert quantized.exit_code == 0, quantized.output
    rows = json.loads(quantized.stdout)["coverage"]["rows"]
    assert [(row["kind"], row["became"]) for row in rows if row["kind"] == kind.upper()] == [(kind.upper(), "int8")]


def test_models_and_backends_and_doctor_as_json(folder: Path, run: Callable[..., Result]) -> None:
    models = json.loads(run("models", "--json", "-").stdout)
    assert [entry["name"] for entry in models if entry["default"]] == ["charlm-gru"]
    backends = {entry["name"]: entry for entry in json.loads(run("backends", "--json", "-").stdout)}
    assert backends["torch"]["available"]
    assert backends["ort"]["available"]
    assert "null" not in backends
    facts = json.loads(run("doctor", "--json", "-").stdout)
    assert facts["packages"]["torch"]
    assert facts["model"] == "charlm-gru"


def test_the_tables_keep_their_brackets(folder: Path, run: Callable[..., Result]) -> None:
    from deploykit import registry

    if registry.backend("trt").available() is None:
        pytest.skip("TensorRT runs here")
    assert "deploykit[trt]" in run("backends").stdout.replace("\n", " ")


def test_locate_tells_the_layers_apart_and_ends_with_3_where_one_is_wrong(
    project: Path, run: Callable[..., Result]
) -> None:
    assert run("export").exit_code == 0
    assert run("quantize", "--int8", "--prefer", "int8").exit_code == 0
    found = run("validate", "--locate", "--json", "-")
    assert found.exit_code == 0, found.output
    results = {Path(one["artifact"]).name: one for one in json.loads(found.stdout)}
    assert results["gru.onnx"]["against"].startswith("the PyTorch model")
    assert results["gru.int8.onnx"]["against"] == "build/gru.onnx"
    assert {one["kind"] for one in results["gru.int8.onnx"]["values"]} >= {"GRU"}
    assert all(one["first_wrong"] is None for one in results.values())
    shown = run("validate", "--locate", "build/gru.int8.onnx")
    assert "no value is wrong; most is lost in" in shown.stdout
    (project / "build" / "gru.onnx").unlink()
    gone = run("validate", "--locate", "build/gru.int8.onnx")
    assert gone.exit_code == 1
    assert "neither beside it nor in build" in gone.stderr


@needs_library
def test_fused_kernels_from_the_command_line_to_the_report(project: Path, run: Callable[..., Result]) -> None:
    assert run("export").exit_code == 0
    made = run("quantize", "--int8", "--kernels", "fused")
    assert made.exit_code == 0, made.output
    assert "DynamicQuantizeGRU of ai.deploykit (fused)" in made.stdout
    assert "kernels: fused; a session has to load the library of version 1 of ai.deploykit" in made.stdout
    report = json.loads(run("validate", "--backend", "ort", "--time", "20", "--json", "-").stdout)
    (row,) = [row for row in report["rows"] if row["precision"] == "int8"]
    assert (row["status"], row["artifact"]) == ("ok", "build/gru.int8.onnx")
    assert row["warnings"] == ["runs operators of ai.deploykit, version 1."]
    assert row["accuracy"]["snr_db"] > 30
    assert run("validate", "--locate").exit_code == 0


def test_kernels_auto_says_what_it_took(
    project: Path, run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("export").exit_code == 0
    monkeypatch.setattr("deploykit.kernels.why_missing", lambda: "there is no compiler: install one.")
    made = run("quantize", "--int8", "--kernels", "auto")
    assert made.exit_code == 0, made.output
    assert "kernels: portable, since there is no compiler: install one.\n" in made.stdout
    assert json.loads((project / "build" / "gru.int8.onnx.json").read_text())["operators"] == {}
    refused = run("quantize", "--int8", "--kernels", "fused")
    assert refused.exit_code == 1
    assert refused.stderr == "error: --kernels fused is not possible here: there is no compiler: install one.\n"


def test_the_faster_form_is_told_of_where_it_is_there(
    project: Path, run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "faster: --kernels fused" in run("quantize", "--int8").stdout
    assert "faster:" not in run("quantize", "--int8", "--kernels", "portable").stdout
    assert "faster:" not in run("quantize", "--int8", "--method", "weight-only").stdout
    monkeypatch.setattr("deploykit.kernels.why_missing", lambda: "there is no compiler: install one.")
    assert "faster:" not in run("quantize", "--int8").stdout


def test_the_project_file_may_name_the_kernels(
    project: Path, run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    with (project / "deploykit.toml").open("a") as file:
        file.write('[quantize]\nkernels = "auto"\n')
    monkeypatch.setattr("deploykit.kernels.why_missing", lambda: "there is no compiler: install one.")
    assert "kernels: portable, since" in run("quantize", "--int8").stdout


@pytest.mark.slow
@needs_library
def test_ship_hands_the_kernels_on(project: Path, run: Callable[..., Result]) -> None:
    shipped = run("ship", "--time", "5", "--kernels", "auto")
    assert shipped.exit_code in (0, 3), shipped.output  # as above
    rows = json.loads((project / "build" / "report.json").read_text())["rows"]
    assert [row["warnings"] for row in rows if row["precision"] == "int8"] == [
        ["runs operators of ai.deploykit, version 1."]
    ]
