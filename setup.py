"""Only what pyproject.toml cannot say.

The zoo in ``models/`` is installed as ``deploykit.models``: in site-packages a top-level package called ``models`` would
collide with the ``models`` that half of all projects have. And the fused int8 operators for onnxruntime are compiled,
where there is a C++ compiler.
"""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

SOURCES = Path("deploykit/kernels/src")
LIBRARY = "libdeploykit_kernels.so"
#: -ffp-contract=off: a row's answer must not depend on which of several functions the compiler put together.
FLAGS = ("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-fno-math-errno")
#: What each file of one kind of CPU is compiled for beside the base; the others run on any.
CPU_FLAGS = {
    "x86_64": {
        "avx2.cpp": ("-mavx2", "-mfma"),
        "avxvnni.cpp": ("-mavx2", "-mfma", "-mavxvnni"),
        "avx512vnni.cpp": ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni", "-mfma"),
    },
    "aarch64": {"neon.cpp": ("-march=armv8.2-a+dotprod",)},
}
#: First, so that the linker takes functions that several files share from those that run on any CPU.
BASE = ("paths.cpp", "plain.cpp", "operators.cpp")


class Build(build_ext):
    """Builds one shared library that is no Python module, and goes on without it if that fails."""

    def get_ext_filename(self, ext_name: str) -> str:
        return str(Path(*ext_name.split(".")[:-1]) / LIBRARY)

    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name))
        objects = Path(self.build_temp) / "kernels"
        for folder in (target.parent, objects):
            folder.mkdir(parents=True, exist_ok=True)
        compiler = shlex.split(os.environ.get("CXX", "c++"))
        own = CPU_FLAGS.get(platform.machine(), {})
        made = []
        try:
            for name, flags in [*((name, ()) for name in BASE), *own.items()]:
                made.append(str(objects / f"{name}.o"))
                subprocess.run([*compiler, *FLAGS, *flags, "-c", str(SOURCES / name), "-o", made[-1]], check=True)
            subprocess.run([*compiler, "-shared", "-o", str(target), *made, "-pthread"], check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"deploykit: the fused int8 operators are not built: {error}", file=sys.stderr)


setup(
    packages=[*find_packages(include=["deploykit", "deploykit.*"]), "deploykit.models"],
    package_dir={"deploykit": "deploykit", "deploykit.models": "models"},
    # Not build/, which is where deploykit itself puts its artifacts.
    options={"build": {"build_base": "dist/build"}},
    ext_modules=[Extension("deploykit.kernels.library", sources=[], optional=True)],
    cmdclass={"build_ext": Build},
)
