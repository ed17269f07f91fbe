"""Holds the code against TensorRT's true bindings: ``python -m tests.trt.bindings --check`` (or ``--write``).

TensorRT's libraries need an NVIDIA GPU, its Python bindings do not: they are small wheels of their own, and can be
imported where empty libraries stand for those that they are linked with. So each supported version's names and
signatures can be read anywhere. From them come

- ``tests/trt/api/VERSION.json``, which ``--write`` writes and ``--check`` compares,
- stubs of the module ``tensorrt``, against which mypy checks the code that uses it, once per version.

It needs the package registry, a C compiler and nm and readelf; without one of them it fails and says so.
"""

from __future__ import annotations

import argparse
import difflib
import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from deploykit.trt.library import SINCE, UNTIL
from tests.trt import api, introspect, stubs

ROOT = Path(__file__).parents[2]
#: The Python whose wheels are fetched; any that all versions have wheels for would do.
PYTHON = (3, 11)
#: The code that is checked against every version's stubs.
CHECKED = ("deploykit/trt/*.py", "deploykit/backends/trt*.py")
#: TensorRT's own libraries, for which an empty one does.
STOOD_IN = ("libnvinfer", "libnvonnxparser", "libnvparsers")
MYPY = """\
[mypy]
python_version = 3.11
strict = True
warn_unreachable = True
# Where TensorRT has no types, as in the ordinary run of mypy, some lines need a comment that is not needed here.
warn_unused_ignores = False
mypy_path = {stubs}
cache_dir = {cache}
# Nothing but the files named is checked, and torch is large.
follow_imports = silent
[mypy-tensorrt.*]
ignore_errors = True
[mypy-torch.*,google.*,onnxruntime.*,onnxscript.*,openvino.*,pycuda.*]
ignore_missing_imports = True
follow_imports = skip
"""


class Failure(Exception):
    """Why the check could not be made, or what it found."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.trt.bindings", description=__doc__.partition("\n")[0])
    modes = parser.add_mutually_exclusive_group()
    modes.add_argument("--check", action="store_true", help="compare with the files in tests/trt/api (the default)")
    modes.add_argument("--write", action="store_true", help="write them")
    parser.add_argument("--folder", type=Path, default=ROOT / "build/bindings", help="where to fetch and build")
    options = parser.parse_args(arguments)
    if sys.version_info[:2] != PYTHON:
        wanted = ".".join(map(str, PYTHON))
        say(f"The bindings are read with Python {wanted}: run python{wanted} -m tests.trt.bindings.")
        return 1
    found = list[str]()
    for version in api.VERSIONS:
        started = time.monotonic()
        try:
            problems = list(held(version, options.folder.resolve(), write=options.write))
        except Failure as failure:
            problems = [str(failure)]
        state = "ok" if not problems else "FAILED"
        say(f"TensorRT {version}: {state} ({time.monotonic() - started:.0f} s)")
        found += problems
    for problem in found:
        say(problem)
    return 1 if found else 0


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def held(version: str, folder: Path, *, write: bool) -> Iterator[str]:
    """What is wrong with the committed names and with the code, seen from one version."""
    full = read(version, folder)
    text, path = api.text(api.chosen(full)), api.FOLDER / f"{version}.json"
    if write:
        path.write_text(text)
    elif text != (kept := path.read_text() if path.exists() else ""):
        names = (f"tests/trt/api/{path.name}", "the bindings")
        difference = difflib.unified_diff(kept.splitlines(), text.splitlines(), *names, lineterm="", n=1)
        yield "\n".join([*difference][:40]) + "\nRun python -m tests.trt.bindings --write."
    yield from typed(version, full, folder)


def read(version: str, folder: Path) -> dict[str, Any]:
    """Everything that a version's bindings hold."""
    place = folder / version
    if not (place / "lib/ready").exists():
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        with zipfile.ZipFile(fetched(version, folder)) as wheel:
            wheel.extractall(place)
        stand_in_libraries(place)
        (place / "lib/ready").touch()
    environment = {**os.environ, "LD_LIBRARY_PATH": str(place / "lib"), "PYTHONPATH": str(place)}
    # -S: what else is installed here is none of the bindings' business.
    full: dict[str, Any] = json.loads(run([sys.executable, "-S", introspect.__file__], environment))
    if full["version"] != version:
        raise Failure(f"the wheel of TensorRT {version} says that it is {full['version']}.")
    return full


def fetched(version: str, folder: Path) -> Path:
    """The wheel of a version's bindings."""
    name = api.PACKAGES[version]
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest", folder]
    run([*map(str, pip), f"{name}=={version}"])
    wheels = sorted(folder.glob(f"{name}-{version}-cp311-*.whl"))
    if not wheels:
        raise Failure(f"pip brought no wheel of {name} {version} for Python {'.'.join(map(str, PYTHON))}.")
    return wheels[0]


def stand_in_libraries(place: Path) -> None:
    """Libraries that define what the bindings ask of TensorRT's, so that they can be loaded; nothing is ever called."""
    module = next((place / introspect.MODULE).glob("tensorrt*.so"))
    needed = [line.partition("[")[2].rstrip("]") for line in run(["readelf", "-d", str(module)]).splitlines()]
    libraries = [name for name in needed if name.startswith(STOOD_IN)]
    (place / "lib").mkdir()
    source = place / "lib/empty.c"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in undefined(module)))
    for library in libraries:
        run(["cc", "-shared", "-fPIC", f"-Wl,-soname,{library}", "-o", str(place / "lib" / library), str(source)])


def undefined(module: Path) -> list[str]:
    """Symbols that a library asks others for and that no system library versions: those of TensorRT."""
    lines = [line.split() for line in run(["nm", "-D", "--undefined-only", str(module)]).splitlines()]
    return [name for kind, name in lines if kind == "U" and "@" not in name and not name.startswith(("Py", "_Py"))]


def typed(version: str, full: dict[str, Any], folder: Path) -> Iterator[str]:
    """What mypy finds in the code that uses TensorRT, where ``tensorrt`` is of this version."""
    place = folder / version / "stubs"
    (place / "tensorrt").mkdir(parents=True, exist_ok=True)
    elsewhere = sorted(name for name in {*SINCE, *UNTIL} if "." not in name and name not in full["classes"])
    (place / "tensorrt/__init__.pyi").write_text(stubs.text(full, elsewhere))
    settings = folder / version / "mypy.ini"
    # One cache for all: what does not depend on TensorRT is read once.
    settings.write_text(MYPY.format(stubs=place, cache=folder / "mypy"))
    files = sorted(str(path.relative_to(ROOT)) for pattern in CHECKED for path in ROOT.glob(pattern))
    command = [sys.executable, "-m", "mypy", "--config-file", str(settings), "--no-error-summary", *files]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        yield f"mypy, with the types of TensorRT {version}:\n{done.stdout}{done.stderr}".rstrip()


def run(command: Sequence[str], environment: dict[str, str] | None = None) -> str:
    """What a command prints.

    Raises:
        Failure: it is not there, or failed.
    """
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise Failure(f"{command[0]} is not installed, and the bindings cannot be read without it.") from error
    if done.returncode:
        raise Failure(f"{' '.join(command)} failed:\n{done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
