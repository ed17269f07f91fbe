"""The library is found and loaded, or a sentence says why not."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from deploykit import kernels
from deploykit.errors import KernelsError
from deploykit.kernels import build as building
from tests.kernels.test_build import visible

COMPILER = building.Tools.from_environment().compiler[0]
needs_compiler = pytest.mark.skipif(shutil.which(COMPILER) is None, reason="needs a C++ compiler")
needs_library = pytest.mark.skipif(kernels.why_missing() is not None, reason="needs the fused int8 kernels")


def known(flags: tuple[str, ...]) -> bool:
    command = [COMPILER, *flags, "-fsyntax-only", "-x", "c++", "/dev/null"]
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


@needs_compiler
def test_where_there_is_a_compiler_every_path_that_it_knows_was_built() -> None:
    machine = building.Tools.from_environment().run("-dumpmachine").partition("-")[0]
    expected = [
        name
        for name, flags in building.CPU_FLAGS.get(machine, {}).items()
        if (building.SOURCES / f"{name}.cpp").is_file() and known(flags)
    ]
    assert [path.name for path in kernels.cpu_paths()] == [*expected, "plain"]


@needs_library
def test_it_is_found() -> None:
    assert kernels.why_missing() is None
    assert kernels.library_path().is_file()
    assert kernels.cpu_paths()[-1] == kernels.CpuPath("plain", runs_here=True)


@needs_library
def test_it_exports_its_three_functions_alone() -> None:
    assert visible(kernels.library_path(), "-D") == {
        "RegisterCustomOps",
        "deploykit_kernels_version",
        "deploykit_kernels_path",
    }


@needs_library
def test_asking_for_it_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom deploykit import kernels\nkernels.cpu_paths()\n"
        "print([name for name in ('numpy', 'onnx', 'onnxruntime', 'torch', 'click', 'msgspec') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@needs_library
def test_the_path_that_runs_is_the_fastest_here_or_the_one_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(kernels.PATH_VARIABLE, raising=False)
    here = [path.name for path in kernels.cpu_paths() if path.runs_here]
    assert kernels.used_path() == here[0]
    monkeypatch.setenv(kernels.PATH_VARIABLE, "plain")
    assert kernels.used_path() == "plain"
    monkeypatch.setenv(kernels.PATH_VARIABLE, "")
    assert kernels.used_path() == here[0]
    monkeypatch.setenv(kernels.PATH_VARIABLE, "avx1")
    with pytest.raises(KernelsError) as raised:
        kernels.used_path()
    assert str(raised.value) == (
        "DEPLOYKIT_KERNELS_PATH is 'avx1', and there is no such path in this build or on this CPU: "
        f"set it to one of {', '.join(here)}, or unset it."
    )


def test_one_that_was_not_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(kernels.LIBRARY_VARIABLE, raising=False)
    monkeypatch.setattr(kernels, "_LIBRARY", tmp_path / "lib.so")
    sentence = (
        "the fused int8 kernels are not built: run python -m deploykit.kernels.build, "
        "which needs a C++ compiler (g++ or clang++)."
    )
    assert kernels.why_missing() == sentence
    for ask in (kernels.library_path, kernels.cpu_paths, kernels.used_path):
        with pytest.raises(KernelsError) as raised:
            ask()
        assert str(raised.value) == sentence


def test_one_that_was_not_built_elsewhere_than_on_linux(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(kernels.LIBRARY_VARIABLE, raising=False)
    monkeypatch.setattr(kernels, "_LIBRARY", tmp_path / "lib.so")
    with monkeypatch.context() as patched:
        patched.setattr(sys, "platform", "darwin")
        told = kernels.why_missing()
    assert told == "the fused int8 kernels are built on Linux alone: the portable int8 graph runs everywhere."


def test_one_that_cannot_be_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(kernels.LIBRARY_VARIABLE, raising=False)
    monkeypatch.setattr(kernels, "_LIBRARY", tmp_path / "lib.so")
    (tmp_path / "lib.so").write_text("no library")
    told = kernels.why_missing()
    assert told is not None
    assert told.startswith("the fused int8 kernels cannot be loaded (")
    assert told.endswith(": run python -m deploykit.kernels.build, which needs a C++ compiler (g++ or clang++).")


@needs_library
def test_one_of_another_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(kernels.LIBRARY_VARIABLE, raising=False)
    monkeypatch.setattr(kernels, "VERSION", 99)
    told = kernels.why_missing()
    assert told is not None
    assert told.startswith("the fused int8 kernels are of version 1, and this deploykit's of 99: run python -m ")


@needs_library
def test_another_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(kernels.library_path(), tmp_path / "own.so")
    monkeypatch.setattr(kernels, "_LIBRARY", tmp_path / "none.so")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(kernels.LIBRARY_VARIABLE, "own.so")
    assert kernels.library_path() == tmp_path / "own.so"
    assert kernels.cpu_paths()


def test_another_file_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(kernels.LIBRARY_VARIABLE, str(tmp_path / "own.so"))
    assert kernels.why_missing() == (
        f"there are no fused int8 kernels at {tmp_path / 'own.so'}: correct or unset DEPLOYKIT_KERNELS_LIBRARY."
    )


@needs_compiler
def test_another_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = [COMPILER, "-shared", "-x", "c++", "/dev/null", "-o", str(tmp_path / "own.so")]
    subprocess.run(command, check=True)
    monkeypatch.setenv(kernels.LIBRARY_VARIABLE, str(tmp_path / "own.so"))
    assert kernels.why_missing() == (
        f"{tmp_path / 'own.so'} is no library of fused int8 kernels: correct or unset DEPLOYKIT_KERNELS_LIBRARY."
    )


@needs_compiler
def test_one_that_has_the_version_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "other.c").write_text(f"int deploykit_kernels_version(void) {{ return {kernels.VERSION}; }}")
    made = [COMPILER, "-x", "c", "-shared", "-fPIC", str(tmp_path / "other.c"), "-o", str(tmp_path / "other.so")]
    subprocess.run(made, check=True, capture_output=True)
    monkeypatch.setenv(kernels.LIBRARY_VARIABLE, str(tmp_path / "other.so"))
    assert kernels.why_missing() == (
        f"{tmp_path / 'other.so'} is no library of fused int8 kernels: correct or unset DEPLOYKIT_KERNELS_LIBRARY."
    )
