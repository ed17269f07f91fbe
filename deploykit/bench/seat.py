"""One subject at the bench: its worker, what was found out about it so far, and whether it is still in the run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from deploykit.artifact import Artifact
from deploykit.backends import RunOptions
from deploykit.bench.client import Worker
from deploykit.bench.report import Accuracy, Check, Drift, Invariance, MetricResult, Server, Tolerance
from deploykit.bench.settings import Settings, Subject
from deploykit.bench.shapes import Shape
from deploykit.bench.tolerance import tolerance
from deploykit.bench.worker import Stats
from deploykit.errors import BackendFailedError, BackendUnavailableError, DeploykitError, UsageError

if TYPE_CHECKING:
    from deploykit.types import Array, Feeds


@dataclass
class Seat:
    """Mutable on purpose: the stages of a run fill it in, and ``rows`` reads it at the end."""

    subject: Subject
    settings: Settings
    worker: Worker | None = None
    failed: str | None = None
    unavailable: str | None = None
    error: DeploykitError | None = None
    checks: list[Check] = field(default_factory=list)
    accuracy: dict[Shape, Accuracy] = field(default_factory=dict)
    invariance: Invariance | None = None
    windows: dict[Shape, list[list[int]]] = field(default_factory=dict)
    device: dict[Shape, list[float]] = field(default_factory=dict)
    metric: MetricResult | None = None
    stats: Stats | None = None
    drift: Drift | None = None
    server: dict[Shape, Server] = field(default_factory=dict)
    objections: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def live(self) -> bool:
        """Whether it is opened and has not failed."""
        return self.worker is not None and self.failed is None and self.unavailable is None

    @property
    def artifact(self) -> Artifact:
        """The artifact; only of a seat that is not unavailable from the start."""
        if self.subject.artifact is None:
            raise BackendFailedError(f"the backend {self.subject.backend!r} has no artifact.")
        return self.subject.artifact

    @property
    def allowed(self) -> Tolerance:
        """The tolerance for the artifact's precision."""
        return tolerance(self.artifact.precision, self.settings.overrides)

    def open(self, stack: contextlib.ExitStack) -> None:
        """Start the worker and open the artifact in it; ``stack`` ends it."""
        if self.subject.unavailable is not None:
            self.unavailable = self.subject.unavailable
            return
        with self.attempt():
            self.worker = stack.enter_context(Worker(self.settings.threads, self.settings.timeout_s))
            self.worker.call("open", self.subject.backend, self.artifact, RunOptions(threads=self.settings.threads))

    def infer(self, feeds: Feeds) -> dict[str, Array]:
        """One inference.

        Raises:
            BackendFailedError: it failed.
        """
        outputs: dict[str, Array] = self.connected.call("infer", dict(feeds))
        return outputs

    @property
    def connected(self) -> Worker:
        """The worker of a live seat."""
        if self.worker is None:
            raise BackendFailedError("it was not opened.")
        return self.worker

    @contextlib.contextmanager
    def attempt(self) -> Iterator[None]:
        """Turn a failure of this subject into its row's reason, so that the others go on."""
        try:
            yield
        except BackendUnavailableError as error:
            self.unavailable = str(error)
            self.error = error
        except (BackendFailedError, UsageError) as error:
            self.failed = str(error)
            self.error = error

    def reject(self, reason: str | None) -> None:
        """Note why it does not pass; it is still measured."""
        if reason is not None:
            self.objections.append(reason)
