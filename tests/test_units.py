"""Numbers with units."""

from __future__ import annotations

import pytest

from deploykit.units import size


@pytest.mark.parametrize(
    ("value", "text"), [(None, "–"), (0, "0 B"), (999, "999 B"), (1000, "1 kB"), (2_500_000, "2.5 MB")]
)
def test_sizes_have_units(value: int | None, text: str) -> None:
    assert size(value) == text
