"""Compiles the fused int8 operators. Installing does it, and ``python -m deploykit.kernels.build`` does it again.

It imports nothing but the standard library, since ``setup.py`` loads it by its path,
before there is a deploykit. ``CXX`` names another compiler (a cross compiler too: what is built is asked of it),
``CXXFLAGS`` and ``LDFLAGS`` are appended.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

SOURCES = Path(__file__).with_name("src")
LIBRARY = Path(__file__).with_name("libdeploykit_kernels.so")

FLAGS = ("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-fno-math-errno")
#: These hold whatever CXXFLAGS say. A row's answer must not depend on which functions the compiler put together; and
#: optimization at link time would put together those of several CPUs.
ALWAYS = ("-ffp-contract=off", "-fno-lto")
#: What the file of each kind of CPU is compiled for beside the base. The other files run on any CPU of their machine.
CPU_FLAGS: dict[str, dict[str, tuple[str, ...]]] = {
    "x86_64": {
        "avx512vnni": ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni", "-mfma"),
        "avxvnni": ("-mavx2", "-mfma", "-mavxvnni"),
        "avx2": ("-mavx2", "-mfma"),
    },
    "aarch64": {"neon": ("-march=armv8.2-a+dotprod",)},
}
#: For any CPU; ``paths`` comes after them, since it has to know which paths there are.
BASE = ("plain", "operators")
#: libstdc++ stays a shared library on purpose: linked in, it would ask for a newer glibc than all the rest does.
LINK_FLAGS = ("-shared", "-pthread", "-Wl,-z,relro,-z,now", "-Wl,--as-needed")
EXPORTS = "{ global: RegisterCustomOps; deploykit_kernels_version; deploykit_kernels_path; local: *; };\n"


class BuildError(Exception):
    """The library could not be built: one sentence with the next step."""


@dataclass(frozen=True)
class Built:
    """What was built: the machine it is for, its CPU paths beside the plain one, and why others are not in it."""

    library: Path
    machine: str
    paths: tuple[str, ...]
    left_out: dict[str, str]


@dataclass(frozen=True)
class Tools:
    """The compiler, as words of its command line, and the flags of whoever builds."""

    compiler: tuple[str, ...]
    compile_flags: tuple[str, ...] = ()
    link_flags: tuple[str, ...] = ()

    @classmethod
    def from_environment(cls) -> Tools:
        words = {name: tuple(shlex.split(os.environ.get(name, ""))) for name in ("CXX", "CXXFLAGS", "LDFLAGS")}
        return cls(words["CXX"] or ("c++",), words["CXXFLAGS"], words["LDFLAGS"])

    def run(self, *arguments: str) -> str:
        return _run(*self.compiler, *arguments)


def build(library: Path = LIBRARY, tools: Tools | None = None, sources: Path = SOURCES) -> Built:
    """Compile the library; ``library`` is written whole, or not touched.

    A path that the compiler cannot make, knowing no such instructions, is left out.

    Raises:
        BuildError: there is no compiler, or it fails on a file that every CPU needs.
    """
    if sys.platform != "linux":
        raise BuildError("the fused int8 kernels are built on Linux alone: the portable int8 graph runs everywhere.")
    tools = tools or Tools.from_environment()
    try:
        machine = tools.run("-dumpmachine").strip().partition("-")[0]
        with tempfile.TemporaryDirectory() as folder:
            return _build(library, tools, sources, machine, Path(folder))
    except FileNotFoundError as error:
        raise BuildError(
            f"the fused int8 kernels are not built, since there is no C++ compiler ({error.filename}): install g++ or "
            "clang++, or name one in CXX, and run python -m deploykit.kernels.build."
        ) from None
    except (OSError, subprocess.CalledProcessError) as error:
        raise BuildError(
            f"the fused int8 kernels are not built, since {_reason(error)}: mend that, or name another compiler in "
            "CXX, and run python -m deploykit.kernels.build."
        ) from error


def _build(library: Path, tools: Tools, sources: Path, machine: str, objects: Path) -> Built:
    wanted = {name: flags for name, flags in CPU_FLAGS.get(machine, {}).items() if (sources / f"{name}.cpp").is_file()}
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        paths = {name: pool.submit(_path_object, tools, sources, objects, name, wanted[name]) for name in wanted}
        base = [pool.submit(_object, tools, sources, objects, name) for name in BASE]
        left_out = {name: _reason(why) for name, made in paths.items() if (why := made.exception()) is not None}
        made = [one.result() for one in base]
    built = tuple(name for name in wanted if name not in left_out)
    defines = [f"-DDEPLOYKIT_WITH_{name.upper()}" for name in built]
    made += [_object(tools, sources, objects, "paths", defines), *(paths[name].result() for name in built)]
    _link(tools, made, library, objects)
    return Built(library, machine, built, left_out)


def _object(tools: Tools, sources: Path, objects: Path, name: str, flags: Sequence[str] = ()) -> Path:
    to = objects / f"{name}.o"
    tools.run(*FLAGS, *tools.compile_flags, *flags, *ALWAYS, "-c", str(sources / f"{name}.cpp"), "-o", str(to))
    return to


def _path_object(tools: Tools, sources: Path, objects: Path, name: str, flags: Sequence[str]) -> Path:
    """A CPU's object with nothing visible but its path.

    Inline functions and templates, the standard library's too, are in every object that uses them, and a linker takes
    one object's for all: an AVX-512 form would then run on a CPU without. So here they become the object's own: taken
    out of the groups by which a linker knows them, then made local.
    """
    compiled = _object(tools, sources, objects, name, flags)
    ungrouped, alone = objects / f"{name}.ungrouped.o", objects / f"{name}.alone.o"
    tools.run("-r", "-nostdlib", "-Wl,--force-group-allocation", str(compiled), "-o", str(ungrouped))
    objcopy = tools.run("-print-prog-name=objcopy").strip()
    _run(objcopy, f"--keep-global-symbol={symbol(name)}", str(ungrouped), str(alone))
    return alone


def symbol(path: str) -> str:
    """The one symbol that a path's object shows: ``deploykit::<path>_path``, as compilers write it."""
    return f"_ZN9deploykit{len(path) + 5}{path}_pathE"


def _link(tools: Tools, objects: Sequence[Path], library: Path, folder: Path) -> None:
    exports = folder / "exports"
    exports.write_text(EXPORTS, encoding="utf-8")
    # Those who ask for debugging want to read names in what it says.
    debugging = any(re.match(r"-g(?!0)|-fsanitize", flag) for flag in tools.compile_flags)
    library.parent.mkdir(parents=True, exist_ok=True)
    # Beside its place, so that it is there whole or not at all, and what is running keeps the one it has.
    handle, linked = tempfile.mkstemp(suffix=".so", dir=library.parent)
    os.close(handle)
    try:
        tools.run(
            *tools.compile_flags,
            *LINK_FLAGS,
            *(() if debugging else ("-s",)),
            f"-Wl,--version-script={exports}",
            *map(str, objects),
            *tools.link_flags,
            "-o",
            linked,
        )
        Path(linked).chmod(0o755)
        Path(linked).replace(library)
    finally:
        Path(linked).unlink(missing_ok=True)


def _run(*command: str) -> str:
    # LC_ALL: what a compiler says is looked through for the word error.
    environment = {**os.environ, "LC_ALL": "C"}
    done = subprocess.run(command, check=True, capture_output=True, encoding="utf-8", errors="replace", env=environment)
    return done.stdout


def _reason(error: BaseException) -> str:
    """What went wrong, in a few words: a compiler's first complaint."""
    if not isinstance(error, subprocess.CalledProcessError):
        return str(error)
    lines = [line.strip() for line in error.stderr.splitlines() if line.strip()]
    told = next((line for line in lines if "error" in line), lines[0] if lines else f"it ended with {error.returncode}")
    return f"{error.cmd[0]} failed ({told})"


def report(built: Built) -> list[str]:
    """What to say of a build: a line for each path that is missing, and what there is."""
    lines = [f"left out the path {name}, since {why}." for name, why in built.left_out.items()]
    return [*lines, f"built {built.library} for {built.machine}: {', '.join((*built.paths, 'plain'))}."]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m deploykit.kernels.build", description="Compile the fused int8 operators for onnxruntime."
    )
    parser.add_argument("-o", "--output", type=Path, default=LIBRARY, help="instead of the package's own library")
    try:
        built = build(parser.parse_args(arguments).output)
    except BuildError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    sys.stdout.writelines(f"{line}\n" for line in report(built))
    return 0


if __name__ == "__main__":
    sys.exit(main())
