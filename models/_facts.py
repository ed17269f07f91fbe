"""What a weights file tells of its model besides weights: text by name, in its safetensors metadata."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import msgspec

from deploykit.errors import WeightsError

LAYOUT = "layout"

LayoutT = TypeVar("LayoutT")


def read_facts(path: Path | None) -> dict[str, str]:
    """The metadata of a safetensors file; nothing where there is no such file, or it is of another form."""
    from safetensors import SafetensorError, safe_open

    if path is None or not path.is_file() or path.suffix != ".safetensors":
        return {}
    try:
        with safe_open(path, framework="np") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError):  # whoever reads the weights tells it
        return {}


def read_layout(path: Path | None, kind: type[LayoutT]) -> LayoutT | None:
    """What the module of these weights takes; None where they do not tell.

    Raises:
        WeightsError: they tell it of another task.
    """
    text = read_facts(path).get(LAYOUT)
    if text is None:
        return None
    try:
        return msgspec.json.decode(text, type=kind)
    except msgspec.ValidationError as error:
        raise WeightsError(f"{path} holds weights of another task: {error}.") from error


def write_layout(layout: msgspec.Struct) -> dict[str, str]:
    """The metadata that ``read_layout`` reads."""
    return {LAYOUT: msgspec.json.encode(layout).decode()}
