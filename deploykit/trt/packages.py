"""TensorRT's pip packages: one kind for each CUDA, each in three parts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from deploykit.versions import versions

#: The CUDA versions that TensorRT's packages of 8.6 to 11 are made for.
CUDAS = (11, 12, 13)
#: `tensorrt` stands for one of the others; `tensorrt-bindings` and `tensorrt-libs` are those of 8.6.
NAMES = (
    "tensorrt",
    "tensorrt-bindings",
    "tensorrt-libs",
    *(f"tensorrt-cu{cuda}{part}" for cuda in CUDAS for part in ("", "-bindings", "-libs")),
)


def installed(names: Iterable[str] = NAMES) -> dict[str, str]:
    """The versions of those that are installed."""
    return versions(names)


def version_of(packages: Mapping[str, str]) -> str | None:
    """TensorRT's version, whichever of its packages brought it; None where there is none."""
    return next((packages[name] for name in NAMES if name in packages), None)


def cudas_of(packages: Mapping[str, str]) -> tuple[int, ...]:
    """The CUDA versions that the installed packages are made for: more than one cannot work."""
    return tuple(cuda for cuda in CUDAS if any(name.startswith(f"tensorrt-cu{cuda}") for name in packages))
