"""Numbers with units."""

from __future__ import annotations

import pytest

from deploykit.units import milliseconds, parse_size, size


@pytest.mark.parametrize(
    ("value", "text"), [(None, "–"), (0, "0 B"), (999, "999 B"), (1000, "1 kB"), (2_500_000, "2.5 MB")]
)
def test_sizes_have_units(value: int | None, text: str) -> None:
    assert size(value) == text


@pytest.mark.parametrize(
    ("text", "value"), [("1MB", 10**6), ("512 kB", 512_000), ("1.5MiB", 3 * 2**19), ("20000", 20_000), ("7b", 7)]
)
def test_sizes_are_read(text: str, value: int) -> None:
    assert parse_size(text) == value


@pytest.mark.parametrize("text", ["", "MB", "-1MB", "1 XB", "0", "nan"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="^" + text):
        parse_size(text)


@pytest.mark.parametrize(("value", "text"), [(None, "–"), (0.0412, "41.2 µs"), (1.239, "1.24 ms"), (3100.0, "3.1 s")])
def test_times_have_units(value: float | None, text: str) -> None:
    assert milliseconds(value) == text
