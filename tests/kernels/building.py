"""Compiles the kernels and their checker for the tests, each object once for all the workers of a run."""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from deploykit.kernels import build

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SOURCES = ROOT / "deploykit" / "kernels" / "src"
EMULATED = ("-I", str(HERE / "emulated"), "-mavx2", "-mfma")
#: What the shipped library is compiled with is what is tested.
FLAGS = (*build.FLAGS, *build.ALWAYS)
#: The first mistake ends the program. Without optimization: GCC takes minutes to optimize what it has instrumented.
ADDRESS = ("-O0", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
THREAD = ("-O1", "-g", "-fsanitize=thread")
ARM_COMPILER, ARM_EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64-static"


@dataclass(frozen=True)
class Source:
    """One file and the flags of its own that it is compiled with."""

    path: Path
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Builder:
    """Compiles into a folder that all workers share."""

    folder: Path
    compiler: tuple[str, ...]
    flags: tuple[str, ...]

    def object(self, source: Source) -> Path:
        command = [*self.compiler, *self.flags, *source.flags, "-c", str(source.path)]
        return self._made(command, f"{source.path.stem}-", ".o")

    def program(self, sources: Sequence[Source], *flags: str, objects: Sequence[Path] = ()) -> Path:
        """Links what ``sources`` compile to and ``objects``; with -shared among the flags, a library."""
        made = [*map(self.object, sources), *objects]
        return self._made([*self.compiler, *self.flags, *flags, *map(str, made), "-pthread"], "made-", "")

    def _made(self, command: list[str], prefix: str, suffix: str) -> Path:
        name = prefix + hashlib.sha256(shlex.join(command).encode()).hexdigest()[:16] + suffix
        target = self.folder / name
        self.folder.mkdir(parents=True, exist_ok=True)
        with _alone(target.with_name(name + ".lock")):
            if not target.exists():
                half = target.with_name(name + ".half")
                done = subprocess.run([*command, "-o", str(half)], capture_output=True, text=True, check=False)
                assert done.returncode == 0, f"{shlex.join(command)}\n{done.stderr[-4000:]}"
                half.rename(target)
        return target


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def native(folder: Path, *flags: str) -> Builder:
    """The compiler that deploykit itself is compiled with; later flags stand behind the build's own and win."""
    return Builder(folder, compiler(), (*FLAGS, *flags))


def compiler() -> tuple[str, ...]:
    return tuple(shlex.split(os.environ.get("CXX", "c++")))


def core(machine: str) -> list[Source]:
    """The kernels for one kind of machine, but what knows of onnxruntime, in the order that they are linked in."""
    own = build.CPU_FLAGS.get(machine, {})
    defined = tuple(f"-DDEPLOYKIT_WITH_{name.upper()}" for name in own)
    base = [Source(SOURCES / f"{name}.cpp") for name in build.BASE if name != "operators"]
    paths = [Source(SOURCES / f"{name}.cpp", flags) for name, flags in own.items()]
    return [*base, Source(SOURCES / "paths.cpp", defined), *paths]


#: The checker is no part of what is measured: quick to compile, and as exact as the rest.
CHECKER = Source(HERE / "check.cpp", ("-O1",))
OPERATORS = Source(SOURCES / "operators.cpp")


def sanitized(builder: Builder, plain: Builder, sources: Sequence[Source], *flags: str) -> Path:
    """A program of ``sources`` and the core; what this CPU cannot run is not worth a sanitizer's long build."""
    runs = [source for source in core(platform.machine()) if "vnni" not in source.path.stem]
    rest = [plain.object(source) for source in core(platform.machine()) if source not in runs]
    return builder.program([*sources, *runs], *flags, objects=rest)


def missing(*tools: str) -> str | None:
    """Which of these programs are not installed, in a sentence."""
    absent = [tool for tool in tools if shutil.which(tool) is None]
    return f"not installed: {', '.join(absent)}" if absent else None


def run(command: Sequence[str | Path], **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
