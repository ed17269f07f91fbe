"""Versions of the packages that had a hand in an artifact."""

from __future__ import annotations

from collections.abc import Iterable


def version(package: str) -> str | None:
    """The installed version, or None."""
    import importlib.metadata  # slow enough for `deploykit --help` to be without it

    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Those that are installed, by name."""
    return {package: found for package in packages if (found := version(package)) is not None}
