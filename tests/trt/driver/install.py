"""Builds the true pycuda where there is no GPU: ``python -m tests.trt.driver.install FOLDER``.

pycuda is a source distribution. It needs CUDA's headers (those of the toolkit of ``nvcc``, or of ``CUDA_ROOT``)
and a C++ compiler, and is linked with the driver's library, for which the stand-in does. Without curand, which
deploykit does not use and which is a library of its own. FOLDER then holds pycuda and what it needs, and no NumPy:
``DEPLOYKIT_TEST_PYCUDA=FOLDER`` lets the tests find it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

VERSION = "2026.1"
NEEDS = ("pytools", "mako", "platformdirs")
HERE = Path(__file__).parent


def cuda_root() -> Path | None:
    """The toolkit's folder, found by its compiler or named by CUDA_ROOT."""
    named, compiler = os.environ.get("CUDA_ROOT"), shutil.which("nvcc")
    places = [Path(named)] if named else [] if compiler is None else [Path(compiler).resolve().parents[1]]
    return next(
        (place for place in (*places, Path("/usr/local/cuda")) if (place / "include" / "cuda.h").is_file()), None
    )


def install(folder: Path, root: Path) -> None:
    """Build pycuda into ``folder``.

    Raises:
        CalledProcessError: a command failed.
    """
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        (work / "others.h").touch()
        library = ["-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o", str(work / "libcuda.so")]
        run(["cc", "-std=c11", f"-I{work}", *library, str(HERE / "cuda.c")])
        run(
            [
                *pip,
                "download",
                "--no-deps",
                "--no-binary",
                "pycuda",
                "--no-build-isolation",
                f"pycuda=={VERSION}",
                "-d",
                name,
            ]
        )
        run(["tar", "xzf", str(work / f"pycuda-{VERSION}.tar.gz"), "-C", name])
        source = work / f"pycuda-{VERSION}"
        options = [f"--cuda-root={root}", f"--cudadrv-lib-dir={work}", "--no-cuda-enable-curand", "--cxxflags=-O0"]
        run([sys.executable, "configure.py", *options], cwd=source)
        run([*pip, "install", "--no-deps", "--no-build-isolation", "--target", str(folder), str(source)])
        run([*pip, "install", "--target", str(folder), *NEEDS])


def run(command: list[str], cwd: Path | None = None) -> None:
    subprocess.run(command, cwd=cwd, check=True, stdout=sys.stderr)


def main() -> None:
    root = cuda_root()
    if root is None:
        raise SystemExit("there are no CUDA headers here: install a toolkit, or name one in CUDA_ROOT.")
    install(Path(sys.argv[1]), root)


if __name__ == "__main__":
    main()
