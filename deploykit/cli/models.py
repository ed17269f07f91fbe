"""``deploykit models``."""

from __future__ import annotations

from typing import Any

import click

from deploykit import registry
from deploykit.cli import _shared, _table
from deploykit.units import size


@click.command(help="List the zoo: trained models that need no download.")
@_shared.json_option
def command(json_target: str | None) -> None:
    entries = [_entry(name) for name in registry.zoo_names()]
    if json_target is not None:
        _shared.emit_json(_shared.as_json(entries), json_target)
    if json_target == "-":
        return
    rows = [
        (entry["name"], _millions(entry["parameters"]), size(entry["size_bytes"]), _told(entry)) for entry in entries
    ]
    _table.show(("model", "parameters", "size", "what it is"), rows, right=("parameters", "size"))


def _millions(count: int | None) -> str:
    return "" if count is None else f"{count / 1e6:.2f} M"


def _told(entry: dict[str, Any]) -> str:
    """The file's first line, and what the model reaches; or that its weights are not there."""
    if not entry["trained"]:
        return f"{entry['summary']} Not trained: python -m models.train {entry['name']}."
    return f"{entry['summary']} {entry['metric']}: {entry['value']:.3f}, baseline {entry['baseline']:.3f}."


def _entry(name: str) -> dict[str, Any]:
    """What is known of one model without importing it: its file's first line and its weights' metadata."""
    weights = registry.zoo_weights(name)
    noted: dict[str, str] = {}
    if weights.is_file():
        from safetensors import safe_open

        with safe_open(weights, framework="numpy") as file:
            noted = file.metadata() or {}
    return {
        "name": name,
        "default": name == registry.DEFAULT_MODEL,
        "summary": registry.zoo_summary(name),
        "trained": weights.is_file(),
        "parameters": int(noted["parameters"]) if "parameters" in noted else None,
        "size_bytes": weights.stat().st_size if weights.is_file() else None,
        "metric": noted.get("metric"),
        "value": float(noted["value"]) if "value" in noted else None,
        "baseline": float(noted["baseline"]) if "baseline" in noted else None,
    }
