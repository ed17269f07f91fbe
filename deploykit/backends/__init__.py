"""What a backend is. Each lies in a file of its own here, defines ``BACKEND``, and is found by that file's name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self

from deploykit.artifact import Artifact

if TYPE_CHECKING:
    from deploykit.types import Array, Feeds


@dataclass(frozen=True)
class RunOptions:
    """How to run: ``threads`` is the number of threads one inference may use (1 unless asked otherwise)."""

    threads: int = 1


class Runner(ABC):
    """One opened artifact, a context manager. NumPy in and out, finished when ``infer`` returns; no timing inside."""

    #: Sentences on how it runs that a reader of its numbers should know, as far as they are known by now.
    notes: tuple[str, ...] = ()
    #: What its weights take, where that is known and no file's size.
    size_bytes: int | None = None
    #: GPU time of the last inference in milliseconds, by events, without transfers; None where the runner does not
    #: measure it.
    device_ms: float | None = None

    @abstractmethod
    def infer(self, feeds: Feeds) -> dict[str, Array]:
        """Outputs by name for the inputs by name.

        Raises:
            BackendFailedError: the backend refused the inputs or failed on them.
        """

    def carry(self, pairs: Mapping[str, str]) -> Callable[[Feeds], dict[str, Array]]:
        """A stream that begins now: a function that infers one step of it, and returns the outputs that are no states.

        ``pairs`` names the output that each state's input is taken from. The first step's feeds hold the states to
        begin with; those in later feeds are passed over. A runner that can keep them where they are computed overrides
        this.
        """
        states: dict[str, Array] = {}

        def step(feeds: Feeds) -> dict[str, Array]:
            outputs = self.infer({**feeds, **states})
            states.update({name: outputs.pop(result) for name, result in pairs.items()})
            return outputs

        return step

    def close(self) -> None:  # noqa: B027 - most runners hold nothing that needs closing
        """Release what the runner holds. Calling it twice does no harm."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Backend(ABC):
    """Something that can run artifacts of some formats."""

    #: Artifact formats that it runs.
    accepts: frozenset[str] = frozenset()
    #: The pip extra that brings what it needs; None when the core install does.
    extra: str | None = None
    #: The command that makes what it runs, where that is not an export.
    made_by: str | None = None
    #: One line for `deploykit backends`.
    summary: str = ""
    #: The precision that it computes in, where that is not the artifact's own: its rows are judged and shown by it.
    precision: str | None = None
    #: Whether it runs where no backend is named: ``always`` (where it cannot, its row says why), only where it is
    #: ``available``, or ``never``. `--backend all` takes every one.
    default: Literal["always", "available", "never"] = "never"
    #: Where it computes.
    device: Literal["cpu", "gpu"] = "cpu"
    #: True for one that is no use outside tests: `--backend all` and `deploykit backends` leave it out.
    hidden: bool = False

    @abstractmethod
    def available(self) -> str | None:
        """None when it can run here, else one sentence: what is missing and what to install."""

    @abstractmethod
    def open(self, artifact: Artifact, options: RunOptions) -> Runner:
        """Load ``artifact`` and return a runner for it.

        Raises:
            BackendUnavailableError: it cannot run here, or has no use for such a model; says why.
            BackendFailedError: the artifact cannot be loaded.
        """
