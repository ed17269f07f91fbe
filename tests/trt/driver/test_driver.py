"""Runs ``with_pycuda.py`` in a process that has the true pycuda and a stand-in for NVIDIA's driver.

It is skipped where pycuda is not installed or there is no C compiler. ``DEPLOYKIT_TEST_PYCUDA`` names a folder that has
pycuda and what it needs, where it is not installed beside deploykit.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from importlib.machinery import PathFinder
from pathlib import Path

import pytest

HERE = Path(__file__).parent
#: Where pycuda may lie: the search does not look at modules that other tests have put in its place.
PLACES = [*filter(None, [os.environ.get("DEPLOYKIT_TEST_PYCUDA")]), *sys.path]


def true_pycuda() -> Path | None:
    """The folder of the true package: the one with a module in C."""
    spec = PathFinder.find_spec("pycuda", [place for place in PLACES if Path(place).name != "stand_in"])
    folders = [] if spec is None else [Path(folder) for folder in spec.submodule_search_locations or ()]
    return next((folder for folder in folders if list(folder.glob("_driver.*"))), None)


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """That of a process in which ``import pycuda.driver`` finds our driver, and ``import tensorrt`` our stand-in."""
    pycuda = true_pycuda()
    if pycuda is None:
        pytest.skip("pycuda is not installed")
    if not (shutil.which("cc") and shutil.which("nm")):
        pytest.skip("there is no C compiler")
    folder = tmp_path_factory.mktemp("driver")
    library = folder / "libcuda.so.1"
    (module,) = pycuda.glob("_driver.*.so")
    _compile(folder, library, module)
    # The stand-in's tensorrt, without the pycuda beside it.
    played = folder / "trt" / "played"
    played.mkdir(parents=True)
    (played / "tensorrt").symlink_to(HERE.parent / "stand_in" / "tensorrt")
    (folder / "trt" / "api").symlink_to(HERE.parent / "api")
    paths = (played, *PLACES[:1], HERE.parents[2])
    return {
        **os.environ,
        # Linked or not: a linker may leave out a library that nothing was taken from when pycuda was built.
        "LD_PRELOAD": str(library),
        "LD_LIBRARY_PATH": str(folder),
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
    }


def _compile(folder: Path, library: Path, module: Path) -> None:
    def names(*command: str) -> set[str]:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return set(re.findall(r"\bcu[A-Z]\w*", done.stdout))

    wanted = names("nm", "-D", "--undefined-only", str(module))
    source = (HERE / "cuda.c").read_text()
    own = set(re.findall(r"^CUresult (cu\w+)\(", source, re.MULTILINE))
    (folder / "others.h").write_text("".join(f"OTHER({name})\n" for name in sorted(wanted - own)))
    flags = ["-std=c11", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1"]
    subprocess.run(["cc", *flags, f"-I{folder}", "-o", str(library), str(HERE / "cuda.c")], check=True)


def run(environment: Mapping[str, str], *command: str, **further: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command], env={**environment, **further}, capture_output=True, text=True, check=False
    )


def test_cuda_and_the_runner_work_through_the_true_pycuda(environment: Mapping[str, str]) -> None:
    done = run(environment, "-m", "pytest", "-n0", "-p", "no:cacheprovider", str(HERE / "with_pycuda.py"))
    assert done.returncode == 0, done.stdout[-4000:]


@pytest.mark.parametrize(("code", "step"), [("100", "--gpus all"), ("803", "reboot"), ("999", "deploykit doctor")])
def test_a_driver_that_does_not_start_is_a_sentence(environment: Mapping[str, str], code: str, step: str) -> None:
    done = run(environment, "-c", _DESCRIBE, DEPLOYKIT_TEST_CUINIT=code)
    assert done.returncode == 0, done.stderr
    assert step in done.stdout
    assert done.stdout.count("\n") == 1


_DESCRIBE = """
from deploykit.errors import BackendUnavailableError
from deploykit.trt import cuda
try:
    cuda.describe()
except BackendUnavailableError as error:
    print(error)
"""


def test_a_primary_context_is_kept_since_pycuda_leaves_it_current(environment: Mapping[str, str]) -> None:
    """Why ``cuda.py`` never gives one up: should pycuda change, it can do so."""
    done = run(environment, "-c", _DETACH)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "1\n"


_DETACH = """
import ctypes
import pycuda.driver as driver
driver.init()
driver.Device(0).retain_primary_context().detach()
print(ctypes.CDLL("libcuda.so.1").deploykit_depth())
"""


def test_a_process_that_closes_nothing_ends_quietly(environment: Mapping[str, str]) -> None:
    done = run(environment, "-c", _LEFT)
    assert (done.returncode, done.stderr) == (0, "")


_LEFT = """
from deploykit.trt import cuda
device = cuda.Device()
with device.current():
    device.memory().reserve(10)
    device.pinned().array((3,), "float32")
"""
