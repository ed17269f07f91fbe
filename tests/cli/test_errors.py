"""Bad input: one sentence on stderr, the right exit code, nothing left behind."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result

from deploykit.artifact import ModelRef
from deploykit.cli import _bench

INPUT = ("--input", "x:float32[batch,time,8]")


def assert_refused(result: Result, code: int, told: str) -> None:
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith(("error: ", "Error: "))
    assert told in last
    assert "Traceback" not in result.stderr


def listing(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if "__pycache__" not in path.parts)


class Malicious:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch ran",)


@pytest.mark.parametrize(
    ("args", "code", "told"),
    [
        (["export", "charlm-gur"], 2, "did you mean 'charlm-gru'?"),
        (["exprt"], 2, "did you mean 'export'?"),
        (["export", "net.py:gru"], 2, "--input"),
        (["export", "net.py:gru", "--input", "x"], 2, "cannot read the input 'x'"),
        (["export", "net.py:gru", *INPUT, "--weights", "none.safetensors"], 1, "no weights file at none.safetensors"),
        (["export", "net.py:gru", *INPUT, "--weights", "cut.safetensors"], 1, "cut.safetensors is no readable"),
        (["export", "net.py:gru", *INPUT, "--weights", "other.pt"], 1, "missing: head.bias"),
        (["export", "net.py:gru", *INPUT, "--weights", "malicious.pt"], 1, "nothing of it was run"),
        (["export", "net.py:gru", *INPUT, "-o", "net.py/out.onnx"], 1, "cannot write net.py/out.onnx"),
        (["export", "net.py:gru", *INPUT, "-o", "/proc/out.onnx"], 1, "cannot write /proc/out.onnx"),
        (["quantize", "cut.onnx"], 2, "--int8"),
        (["quantize", "--int8", "cut.onnx"], 1, "cut short"),
        (["quantize", "--int8", "none.onnx"], 1, "no artifact at none.onnx"),
        (["quantize", "--int8", "--method", "dinamic"], 2, "did you mean 'dynamic'?"),
        (["bench", "--backend", "orr"], 2, "did you mean 'ort'?"),
        (["bench", "--backend", "trt"], 1, "pip install 'deploykit[trt]'"),
        (["bench", "--backend", "nul"], 2, "known: all, default, "),
        (["bench", "--backend", ","], 2, "names no backend"),
        (["bench", "--batch", "0"], 2, "below 1"),
        (["bench", "--batch", "1.7"], 2, "no list of whole numbers"),
        (["validate", "--backend", "torch"], 2, "the reference itself"),
        (["validate", "cut.onnx", "--weights", "other.pt"], 2, "leave them out"),
        (["bench", "net.py"], 2, "write net.py:FACTORY"),
        (["export", "net.pt2"], 1, "no .pt2 file at net.pt2"),
        (["export", "net.py:gru", *INPUT, "--opset", "9"], 2, "17<=x<=25"),
        (["export", "net.py:gru", "--input", "x[batch,,8]"], 2, "cannot read the dim"),
        (["bench", "cut.onnx", "--backend", "ort"], 1, "cut short"),
        (["bench", "net.onnx.json", "--backend", "ort"], 2, "name the artifact itself"),
        (["validate", "none.onnx"], 1, "no artifact at none.onnx"),
        (["ship", "charlm"], 2, "unknown model 'charlm'"),
    ],
)
def test_bad_input(
    net: ModelRef, folder: Path, run: Callable[..., Result], args: list[str], code: int, told: str
) -> None:
    (folder / "cut.safetensors").write_bytes(b"\x10\x00\x00")
    (folder / "cut.onnx").write_bytes(b"\x08\x08\x12\x03")
    torch.save({"other": torch.zeros(2)}, folder / "other.pt")
    torch.save({"weight": Malicious()}, folder / "malicious.pt")
    before = listing(folder)
    assert_refused(run(*args), code, told)
    assert listing(folder) == before


def test_an_artifact_whose_hash_does_not_fit_is_refused(
    net: ModelRef, folder: Path, run: Callable[..., Result]
) -> None:
    assert run("export", net.ref, *INPUT).exit_code == 0
    (folder / "build" / "gru.onnx").write_bytes((folder / "build" / "gru.onnx").read_bytes()[:-7])
    before = listing(folder)
    for args in (["quantize", "--int8", "build/gru.onnx"], ["validate", "build/gru.onnx"]):
        assert_refused(run(*args), 1, "SHA-256 differs")
    assert listing(folder) == before


def test_a_read_only_folder_is_one_sentence(net: ModelRef, folder: Path, run: Callable[..., Result]) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    shutil.copytree(folder, folder / "locked")
    (folder / "locked").chmod(0o500)
    assert_refused(run("export", net.ref, *INPUT, "-o", "locked/a.onnx"), 1, "permission denied")


def test_debug_shows_the_traceback(folder: Path, run: Callable[..., Result]) -> None:
    result = run("--debug", "export", "charlm-gur")
    assert type(result.exception).__name__ == "UnknownNameError"


def test_a_mistake_in_the_project_file_is_told(folder: Path, run: Callable[..., Result]) -> None:
    (folder / "deploykit.toml").write_text("[bench]\nthread = 2\n")
    assert_refused(run("backends"), 2, "did you mean 'threads'?")


def _fails(*_: object, **__: object) -> None:
    pytest.fail("something was run before the file was looked at")


@pytest.mark.parametrize("option", ["--json", "--html", "--junit", "--csv"])
@pytest.mark.parametrize("command", ["bench", "validate"])
def test_a_file_that_cannot_be_written_is_told_before_anything_runs(
    net: ModelRef, run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, command: str, option: str
) -> None:
    monkeypatch.setattr(_bench, "evaluate", _fails)
    before = sorted(Path.cwd().rglob("*"))
    for path, code, told in (
        ("net.py/out", 1, f"error: cannot write net.py/out: not a directory; choose another place with {option}.\n"),
        ("/proc/nowhere/out", 1, "cannot write /proc/nowhere/out"),
        (".", 2, "is a directory"),
    ):
        result = run(command, "net.py:gru", *INPUT, option, path)
        assert (result.exit_code, told in result.stderr) == (code, True), result.output
    assert sorted(Path.cwd().rglob("*")) == before


def test_a_folder_that_is_not_there_yet_is_made_at_the_end(
    net: ModelRef, run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_bench, "evaluate", lambda *_, **__: None)
    result = run("bench", "net.py:gru", *INPUT, "--html", "new/out.html", "--json", "-")
    assert result.exit_code == 0, result.output
    assert not Path("new").exists()
