"""``deploykit backends``."""

from __future__ import annotations

from typing import Any

import click

from deploykit import registry
from deploykit.cli import _shared, _table


@click.command(help="List the backends: which run here, and what each missing one needs.")
@_shared.json_option
def command(json_target: str | None) -> None:
    entries = backend_entries()
    if json_target is not None:
        _shared.emit_json(_shared.as_json(entries), json_target)
    if json_target == "-":
        return
    rows = [
        (
            entry["name"],
            "yes" if entry["available"] else "no",
            ", ".join(entry["accepts"]),
            entry["reason"] or entry["summary"],
        )
        for entry in entries
    ]
    _table.show(("backend", "here", "runs", "what it is, or what it needs"), rows)


def backend_entries() -> list[dict[str, Any]]:
    """Each backend that a user can name, and whether it runs here."""
    found = {name: registry.backend(name) for name in registry.backend_names()}
    reasons = {name: backend.available() for name, backend in found.items() if not backend.hidden}
    return [
        {
            "name": name,
            "available": reason is None,
            "reason": reason,
            "accepts": sorted(found[name].accepts),
            "extra": found[name].extra,
            "summary": found[name].summary,
        }
        for name, reason in reasons.items()
    ]
