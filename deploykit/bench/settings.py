"""What is put to the bench, and how."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from deploykit.artifact import Artifact
from deploykit.bench.scenario import DRIFT_STEPS, Scenario
from deploykit.bench.tolerance import Overrides
from deploykit.errors import UsageError


@dataclass(frozen=True)
class Subject:
    """One backend with one artifact; or, with ``unavailable``, the sentence why there is nothing to run.

    ``backend`` is a name of the registry, or ``package.module:attribute`` for somebody's own.
    """

    backend: str
    artifact: Artifact | None
    unavailable: str | None = None

    def __post_init__(self) -> None:
        if self.artifact is None and self.unavailable is None:
            raise UsageError(f"the backend {self.backend!r} has no artifact to run: name one.")


@dataclass(frozen=True)
class Settings:
    """``batches`` and ``times``: the sizes to report; None means 1 and 100, moved into the model's ranges.

    ``seconds`` of measured time for each subject and shape, in ``rounds`` windows; ``latency`` False leaves the timing
    out, which is ``deploykit validate``. ``data``: an .npz of real inputs by name, or ``FILE.py:FUNCTION`` that returns
    inputs, in place of the model's own sample; ``metric``: ``FILE.py:FUNCTION`` in place of its own, see ``given``.
    ``timeout_s``: how long one command of a worker may take before it counts as hanging. ``overrides``: tolerances in
    place of the defaults. ``command``: the command line that asked for all this, for the report. ``scenario``: what is
    timed. ``drift``: the steps that a model with carried states is streamed over, 0 for none; ``drift_asked``: somebody
    wants that done, so that a model without such states is an error.
    """

    batches: tuple[int, ...] | None = None
    times: tuple[int, ...] | None = None
    threads: int = 1
    seconds: float = 3.0
    rounds: int = 20
    data: Path | None = None
    metric: str | None = None
    latency: bool = True
    seed: int = 0
    timeout_s: float = 120.0
    overrides: Overrides = field(default_factory=Overrides)
    command: str | None = None
    scenario: Scenario = field(default_factory=Scenario)
    drift: int = DRIFT_STEPS
    drift_asked: bool = False

    def __post_init__(self) -> None:
        if self.threads < 1:
            raise UsageError(f"--threads {self.threads} cannot be: name at least 1.")
        if self.rounds < 1 or self.seconds <= 0 or self.timeout_s <= 0:
            raise UsageError("rounds, seconds and the timeout must be more than 0.")
        if self.drift < 0:
            raise UsageError(f"--drift {self.drift} cannot be: name a number of steps, or 0 to leave it out.")
