"""Stands in for pycuda in tests: device memory is host memory, and an address is where it lies."""

from __future__ import annotations

VERSION = (2026, 1)
VERSION_STATUS = ""
VERSION_TEXT = "2026.1"
