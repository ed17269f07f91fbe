"""Made-up data for the tasks, small and easy to learn."""

from __future__ import annotations

from pathlib import Path

import numpy as np

MINUTES = 60.0  # so that a day has 24 rows


def traffic(path: Path, rows: int = 480) -> Path:
    """A CSV file of hourly rows: a daily wave of flow, speed against it, occupancy with it."""
    generator = np.random.default_rng(0)
    wave = np.sin(np.arange(rows) * 2 * np.pi / 24)
    flow = 200 + 100 * wave + 5 * generator.standard_normal(rows)
    lines = [f"{60 - 10 * w:.2f},{f:.1f},{f / 5000:.4f}" for w, f in zip(wave, flow, strict=True)]
    path.write_text("\n".join(["speed,flow,occupancy", *lines]) + "\n", encoding="utf-8")
    return path


def names(folder: Path, each: int = 40) -> Path:
    """A folder of two languages that differ in their last letter, with a name in both and one listed twice."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    for language, last in (("Aish", "a"), ("Onish", "o")):
        stems = {"".join(generator.choice(list("bdklmn"), generator.integers(2, 7))) for _ in range(each)}
        listed = [f"{stem.title()}{last}" for stem in sorted(stems)]
        (folder / f"{language}.txt").write_text("\n".join([*listed, listed[0], "Bothé"]) + "\n", encoding="utf-8")
    return folder
