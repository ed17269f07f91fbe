"""Where the tests find the data that are not in the repository: $DEPLOYKIT_DATA, or shared/data beside the checkout."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

TRAFFIC, NAMES = "pems04_sensor0_5min.csv", "names"


def data(name: str) -> Path:
    """The file or folder of that name; the test is skipped where there is none."""
    default = Path(__file__).resolve().parents[3] / "shared/data"
    folder = Path(os.environ.get("DEPLOYKIT_DATA") or default)
    if not (folder / name).exists():
        pytest.skip(f"no {name} in {folder}: set DEPLOYKIT_DATA to a folder that has it")
    return folder / name
