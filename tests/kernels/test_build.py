"""The library's build: with a compiler, with one that is old or broken, and with none."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from deploykit import kernels
from deploykit.kernels import build as building
from deploykit.kernels.build import BuildError, Built, Tools, build

ROOT = Path(kernels.__file__).parents[2]
COMPILER = shutil.which("c++")
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")

#: In the place of each path's file. The linker would take one of the functions ``shared`` for all, and each tells by
#: the flags that it was compiled with which one it is: a path has to find its own.
PATH = """
#include "layer.hpp"
namespace deploykit {{
inline __attribute__((noinline, noipa)) int shared() {{
#if defined(__AVX512VNNI__)
  return 3;
#elif defined(__AVXVNNI__)
  return 2;
#elif defined(__AVX2__)
  return 1;
#else
  return 0;
#endif
}}
static bool runs_here() {{ return shared() == {own}; }}
extern const Path {name}_path{{"{name}", runs_here, nullptr}};
}}
"""
FORMS = {"avx512vnni": 3, "avxvnni": 2, "avx2": 1, "plain": 0}
OPERATORS = """
#include "layer.hpp"
#define EXPORTED extern "C" __attribute__((visibility("default")))
EXPORTED void RegisterCustomOps() {}
EXPORTED int deploykit_kernels_version() { return 1; }
EXPORTED int another_function() { return 1; }
EXPORTED const char* deploykit_kernels_path(std::size_t index, int* runs) {
  std::size_t count;
  const deploykit::Path* all = deploykit::paths(count);
  if (index >= count) return nullptr;
  *runs = all[index].runs_here();
  return all[index].name;
}
"""
#: Stands for a compiler: writes down how it was called, and makes an empty file of what it should make.
FAKE = """#!/bin/sh
echo "$@" >> {log}
case "$*" in
  *-dumpmachine) echo {machine}-linux-gnu; exit;;
  *-print-prog-name=objcopy) echo {objcopy}; exit;;
  {fails}) echo "In file included from x.hpp:" >&2; echo "x.cpp:1:2: error: no such thing" >&2; exit 1;;
esac
while [ $# -gt 1 ]; do [ "$1" = -o ] && : > "$2"; shift; done
"""
#: A compiler from before AVX-VNNI.
OLD = """#!/bin/sh
for word in "$@"; do
  if [ "$word" = -mavxvnni ]; then echo "old-c++: error: unrecognized command-line option '-mavxvnni'" >&2; exit 1; fi
done
exec {compiler} "$@"
"""


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sources")
    for name in ("layer.hpp", "paths.cpp"):
        shutil.copy(building.SOURCES / name, folder)
    (folder / "operators.cpp").write_text(OPERATORS)
    for name, own in FORMS.items():
        (folder / f"{name}.cpp").write_text(PATH.format(name=name, own=own))
    return folder


def script(file: Path, text: str) -> Path:
    file.write_text(text)
    file.chmod(0o755)
    return file


@pytest.fixture
def fake(tmp_path: Path) -> Callable[..., Tools]:
    """``fake(machine=..., fails="*plain.cpp*")`` fails where its arguments match that pattern of a shell's."""

    def made(machine: str = "x86_64", fails: str = "never", flags: tuple[str, ...] = ()) -> Tools:
        objcopy = script(tmp_path / "objcopy", '#!/bin/sh\ncp "$2" "$3"\n')
        text = FAKE.format(log=tmp_path / "log", machine=machine, objcopy=objcopy, fails=fails)
        return Tools((str(script(tmp_path / "fake-c++", text)), "--own-word"), flags)

    return made


def calls(folder: Path) -> list[list[str]]:
    return [line.split() for line in (folder / "log").read_text().splitlines()]


def compiling(folder: Path, name: str) -> list[str]:
    return next(words for words in calls(folder) if any(word.endswith(f"/{name}.cpp") for word in words))


def linking(folder: Path) -> list[str]:
    return next(words for words in calls(folder) if "-shared" in words)


def told(library: Path) -> dict[str, bool]:
    """The paths of a library, and whether each found its own form of the shared function."""
    loaded = ctypes.CDLL(str(library))
    find = loaded.deploykit_kernels_path
    find.restype = ctypes.c_char_p
    found: dict[str, bool] = {}
    runs = ctypes.c_int()
    while (name := find(ctypes.c_size_t(len(found)), ctypes.byref(runs))) is not None:
        found[name.decode()] = bool(runs.value)
    return found


def visible(file: Path, *options: str) -> set[str]:
    command = ["nm", "--extern-only", "--defined-only", *options, str(file)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return {line.split()[-1] for line in done.stdout.splitlines()}


def native(library: Path, sources: Path, *compiler: str) -> Built:
    built = build(library, Tools(compiler or (COMPILER or "c++",)), sources)
    if built.machine != "x86_64":
        pytest.skip("the paths of these sources are those of x86-64")
    return built


@needs_compiler
def test_no_path_runs_code_that_was_compiled_for_another_cpu_and_three_functions_are_exported(
    tmp_path: Path, sources: Path
) -> None:
    built = native(tmp_path / "lib.so", sources)
    assert list(tmp_path.iterdir()) == [built.library]
    assert visible(built.library, "-D") == {"RegisterCustomOps", "deploykit_kernels_version", "deploykit_kernels_path"}
    assert told(built.library) == {**dict.fromkeys(built.paths, True), "plain": True}
    assert "avx2" in built.paths


@needs_compiler
def test_without_being_kept_apart_they_would(tmp_path: Path, sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "_path_object", building._object)
    built = native(tmp_path / "lib.so", sources)
    assert not all(told(built.library).values())


@needs_compiler
def test_a_path_shows_one_symbol(tmp_path: Path, sources: Path) -> None:
    tools = Tools((COMPILER or "c++",))
    if not tools.run("-dumpmachine").startswith("x86_64"):
        pytest.skip("the paths of these sources are those of x86-64")
    made = building._path_object(tools, sources, tmp_path, "avx2", building.CPU_FLAGS["x86_64"]["avx2"])
    assert visible(tmp_path / "avx2.o") > {building.symbol("avx2")}, "what the compiler made shows more"
    assert visible(made) == {building.symbol("avx2")}


@needs_compiler
def test_a_path_that_the_compiler_does_not_know_is_left_out(tmp_path: Path, sources: Path) -> None:
    old = script(tmp_path / "old-c++", OLD.format(compiler=COMPILER))
    built = native(tmp_path / "lib.so", sources, str(old))
    assert "avxvnni" not in built.paths
    assert set(built.paths) >= {"avx2"}
    assert list(told(built.library)) == [*built.paths, "plain"]
    reason = f"{old} failed (old-c++: error: unrecognized command-line option '-mavxvnni')"
    assert built.left_out["avxvnni"] == reason
    assert f"left out the path avxvnni, since {reason}." in building.report(built)


def test_without_objcopy_the_paths_are_left_out(tmp_path: Path, fake: Callable[..., Tools]) -> None:
    tools = fake()
    (tmp_path / "objcopy").unlink()
    built = build(tmp_path / "lib.so", tools)
    assert built.paths == ()
    assert str(tmp_path / "objcopy") in built.left_out["avx2"]
    assert not any(word.startswith("-DDEPLOYKIT_WITH") for word in compiling(tmp_path, "paths"))


def test_the_build_says_which_paths_there_are(tmp_path: Path, fake: Callable[..., Tools]) -> None:
    built = build(tmp_path / "lib.so", fake(fails="*-mavxvnni*"))
    assert built == Built(tmp_path / "lib.so", "x86_64", ("avx512vnni", "avx2"), built.left_out)
    assert list(built.left_out) == ["avxvnni"]
    defines = [word for word in compiling(tmp_path, "paths") if word.startswith("-D")]
    assert defines == ["-DDEPLOYKIT_WITH_AVX512VNNI", "-DDEPLOYKIT_WITH_AVX2"]
    assert not any("avxvnni" in word for word in linking(tmp_path))
    assert "-mavx512vnni" in compiling(tmp_path, "avx512vnni")
    assert not any(word.startswith("-m") for word in compiling(tmp_path, "plain"))


def test_the_machine_is_the_compilers(tmp_path: Path, sources: Path, fake: Callable[..., Tools]) -> None:
    own = tmp_path / "src"
    shutil.copytree(sources, own)
    (own / "neon.cpp").touch()
    built = build(tmp_path / "lib.so", fake(machine="aarch64"), own)
    assert (built.machine, built.paths) == ("aarch64", ("neon",))
    assert "-march=armv8.2-a+dotprod" in compiling(tmp_path, "neon")
    (tmp_path / "log").unlink()
    assert build(tmp_path / "lib.so", fake(machine="riscv64"), own).paths == ()
    assert not any("-DDEPLOYKIT" in word for words in calls(tmp_path) for word in words)


def test_flags_of_ones_own(tmp_path: Path, fake: Callable[..., Tools], monkeypatch: pytest.MonkeyPatch) -> None:
    compiler, word = fake().compiler
    monkeypatch.setenv("CXX", f"{compiler} {word}")
    monkeypatch.setenv("CXXFLAGS", "-fsanitize=address -O1 -flto")
    monkeypatch.setenv("LDFLAGS", "-Wl,-z,pack-relative-relocs")
    build(tmp_path / "lib.so")
    words = compiling(tmp_path, "avx2")
    assert words[0] == "--own-word"
    assert words.index("-O3") < words.index("-O1") < words.index("-mavx2")
    assert words.index("-flto") < words.index("-fno-lto")
    link = linking(tmp_path)
    assert "-fsanitize=address" in link
    assert "-Wl,-z,pack-relative-relocs" in link
    assert "-s" not in link, "a sanitizer's report needs the names"
    (tmp_path / "log").unlink()
    monkeypatch.setenv("CXXFLAGS", "-O2 -g0")
    build(tmp_path / "lib.so")
    assert "-s" in linking(tmp_path)


@pytest.mark.parametrize("fails", ["*-c*/plain.cpp*", "*-c*/paths.cpp*", "*-shared*"])
def test_a_failing_compiler_leaves_what_was_there(tmp_path: Path, fake: Callable[..., Tools], fails: str) -> None:
    library = tmp_path / "package" / "lib.so"
    library.parent.mkdir()
    library.write_text("earlier")
    tools = fake(fails=fails)
    with pytest.raises(BuildError) as raised:
        build(library, tools)
    assert str(raised.value) == (
        f"the fused int8 kernels are not built, since {tools.compiler[0]} failed (x.cpp:1:2: error: no such thing): "
        "mend that, or name another compiler in CXX, and run python -m deploykit.kernels.build."
    )
    assert [file.name for file in library.parent.iterdir()] == ["lib.so"]
    assert library.read_text() == "earlier"


def test_without_a_compiler(tmp_path: Path) -> None:
    with pytest.raises(BuildError) as raised:
        build(tmp_path / "lib.so", Tools(("no-such-c++",)))
    assert str(raised.value) == (
        "the fused int8 kernels are not built, since there is no C++ compiler (no-such-c++): install g++ or clang++, "
        "or name one in CXX, and run python -m deploykit.kernels.build."
    )
    assert list(tmp_path.iterdir()) == []


def test_elsewhere_than_on_linux(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(sys, "platform", "darwin")
        with pytest.raises(BuildError, match="on Linux alone"):
            build(tmp_path / "lib.so")


def test_the_command(
    tmp_path: Path, fake: Callable[..., Tools], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CXX", fake().compiler[0])
    assert building.main(["-o", str(tmp_path / "own" / "lib.so")]) == 0
    assert capsys.readouterr().out == (
        f"built {tmp_path / 'own' / 'lib.so'} for x86_64: avx512vnni, avxvnni, avx2, plain.\n"
    )
    monkeypatch.setenv("CXX", "no-such-c++")
    assert building.main(["-o", str(tmp_path / "other.so")]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: the fused int8 kernels are not built")


def setup(tmp_path: Path, compiler: str, *words: str) -> subprocess.CompletedProcess[str]:
    """``setup.py``'s command in a copy of the little that it needs, with the library of an earlier build in it."""
    copy = tmp_path / "copy"
    if not copy.exists():
        (copy / "deploykit").mkdir(parents=True)
        (copy / "models").mkdir()
        for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "deploykit/__init__.py"):
            shutil.copy(ROOT / name, copy / name)
        shutil.copytree(ROOT / "deploykit/kernels", copy / "deploykit/kernels")
        (copy / "deploykit/kernels" / building.LIBRARY.name).write_text("earlier")
        earlier = copy / "dist/build" / f"lib.linux-{os.uname().machine}-{sys.implementation.cache_tag}"
        (earlier / "deploykit/kernels").mkdir(parents=True)
        (earlier / "deploykit/kernels" / building.LIBRARY.name).write_text("earlier")
    environment = {**os.environ, "CXX": compiler}
    return subprocess.run(
        [sys.executable, "setup.py", *words], cwd=copy, env=environment, check=True, capture_output=True, text=True
    )


def test_an_install_that_cannot_build_goes_on_and_leaves_no_old_library(tmp_path: Path) -> None:
    done = setup(tmp_path, "no-such-c++", "build_ext", "--inplace")
    assert "deploykit: the fused int8 kernels are not built, since there is no C++ compiler" in done.stderr
    assert not (tmp_path / "copy/deploykit/kernels" / building.LIBRARY.name).exists()


@pytest.mark.parametrize(
    ("machine", "tag"),
    [("x86_64", "py3-none-linux_x86_64"), ("aarch64", "py3-none-linux_aarch64"), (None, "py3-none-any")],
)
def test_a_wheel_is_for_any_python_and_the_librarys_machine(
    tmp_path: Path, fake: Callable[..., Tools], machine: str | None, tag: str
) -> None:
    compiler = "no-such-c++" if machine is None else fake(machine=machine).compiler[0]
    setup(tmp_path, compiler, "bdist_wheel")
    (wheel,) = (tmp_path / "copy/dist").glob("*.whl")
    assert wheel.name.endswith(f"-{tag}.whl")
    with zipfile.ZipFile(wheel) as packed:
        names = packed.namelist()
        (about,) = (name for name in names if name.endswith(".dist-info/WHEEL"))
        lines = packed.read(about).decode().splitlines()
    assert f"Tag: {tag}" in lines
    assert f"Root-Is-Purelib: {str(machine is None).lower()}" in lines
    assert ("deploykit/kernels/libdeploykit_kernels.so" in names) is (machine is not None)
    for source in ("paths.cpp", "layer.hpp"):
        assert f"deploykit/kernels/src/{source}" in names, "or it could not be built later"
    assert not any(".data/" in name for name in names)
