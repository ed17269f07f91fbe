"""Only what pyproject.toml cannot say.

The zoo in ``models/`` is installed as ``deploykit.models``: in site-packages a top-level package called ``models``
would collide with the ``models`` that half of all projects have. And the fused int8 operators for onnxruntime are
compiled, where there is a C++ compiler: ``deploykit/kernels/build.py`` says how.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from setuptools import Extension, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext


def _kernels() -> ModuleType:
    """deploykit/kernels/build.py, by its path: deploykit itself needs packages that are not there yet."""
    path = Path(__file__).resolve().parent / "deploykit/kernels/build.py"
    spec = importlib.util.spec_from_file_location("kernels_build", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


kernels = _kernels()


class Build(build_ext):
    """Builds one shared library that is no Python module, and goes on without it if that fails."""

    #: What the library of this run was built for.
    machine: str | None = None

    def run(self) -> None:
        library = kernels.LIBRARY if self.inplace or self.editable_mode else self._outside()
        library.unlink(missing_ok=True)  # or one of other sources would stay where this build fails
        try:
            built = kernels.build(library)
        except kernels.BuildError as error:
            sys.stderr.write(f"deploykit: {error}\n")
            return
        Build.machine = built.machine
        sys.stderr.writelines(f"deploykit: {line}\n" for line in kernels.report(built))

    def _outside(self) -> Path:
        return Path(self.build_lib, "deploykit/kernels", kernels.LIBRARY.name)

    def get_outputs(self) -> list[str]:
        return [str(self._outside())] if Build.machine else []

    def get_output_mapping(self) -> dict[str, str]:
        in_place = self.inplace or self.editable_mode
        return {str(self._outside()): str(kernels.LIBRARY)} if Build.machine and in_place else {}

    def get_source_files(self) -> list[str]:
        return []  # they are package data


class Wheel(bdist_wheel):
    """A wheel for the library's machine and any Python 3, or for any machine where there is no library."""

    def get_tag(self) -> tuple[str, str, str]:
        # The tag alone: where its files lie was decided before the build, when nobody knew how it would end.
        self.root_is_pure = not any(Path(self.bdist_dir).rglob(kernels.LIBRARY.name))
        _, _, platform = super().get_tag()
        if Build.machine in kernels.CPU_FLAGS and not self.root_is_pure and not self.plat_name_supplied:
            platform = f"linux_{Build.machine}"  # a cross compiler's
        return "py3", "none", platform


setup(
    packages=[
        *find_packages(include=["deploykit", "deploykit.*"]),
        "deploykit.models",
        *(f"deploykit.models.{name}" for name in find_packages("models")),
    ],
    package_dir={"deploykit": "deploykit", "deploykit.models": "models"},
    # Not build/, which is where deploykit itself puts its artifacts.
    options={"build": {"build_base": "dist/build"}},
    ext_modules=[Extension("deploykit.kernels.library", sources=[], optional=True)],
    cmdclass={"build_ext": Build, "bdist_wheel": Wheel},
)
