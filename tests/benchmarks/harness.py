"""Does the harness measure what it says? Four experiments with a known answer.

Run by hand::

    python -m tests.benchmarks.harness

- A against A: one backend as two subjects. The speed-up's 95 % interval should hold 1 about 19 times out of 20.
- A known difference: one that sleeps 2 ms more than another is measured as 2 ms slower.
- One that takes 20 % longer is told apart from one that does not.
- Overhead: a call that takes 50 microseconds by its own clock is measured as 50 microseconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

import click

from deploykit.artifact import Artifact, ModelRef
from deploykit.backends import Runner, RunOptions
from deploykit.bench import Report, Row, Settings, Subject, bench
from tests.bench.fakes import FakeBackend, FakeRunner, Outputs, spec_of

if TYPE_CHECKING:
    from deploykit.types import Feeds


def _lasting(microseconds: float, sleeping_ms: float = 0.0) -> Callable[[Feeds, Outputs], Outputs]:
    """Computing for a while by the clock, then sleeping."""

    def change(feeds: Feeds, outputs: Outputs) -> Outputs:
        end = time.perf_counter_ns() + int(microseconds * 1000)
        while time.perf_counter_ns() < end:
            pass
        if sleeping_ms:
            # A sleep ends late, by how much is the machine's mood: the rest of it is watched by the clock.
            end = time.perf_counter_ns() + int(sleeping_ms * 1e6)
            time.sleep(sleeping_ms * 0.7 / 1000)
            while time.perf_counter_ns() < end:
                pass
        return outputs

    return change


class _Fifty(FakeRunner):
    """Every call lasts 50 microseconds by its own clock, from its first line on; the answers are worked out before."""

    _answers: ClassVar[dict[tuple[int, ...], Outputs]] = {}

    def infer(self, feeds: Feeds) -> Outputs:
        end = time.perf_counter_ns() + 50_000
        key = feeds["x"].shape
        if key not in self._answers:
            self._answers[key] = super().infer({"x": feeds["x"]})
        while time.perf_counter_ns() < end:
            pass
        return self._answers[key]


class _FiftyBackend(FakeBackend):
    def open(self, artifact: Artifact, options: RunOptions) -> Runner:
        return _Fifty(spec_of(None, {}), lambda feeds, outputs: outputs)


FIFTY = _FiftyBackend()
WORKING, TWIN = FakeBackend(), FakeBackend()
FIVE, SEVEN = FakeBackend(_lasting(5000)), FakeBackend(_lasting(5000, sleeping_ms=2))
PLAIN, SAME, LONGER = FakeBackend(_lasting(1000)), FakeBackend(_lasting(1000)), FakeBackend(_lasting(1200))


def subject(name: str) -> Subject:
    """The backend of that name in this module, importable by the workers."""
    artifact = Artifact.of_model(ModelRef("fake"), "fake")
    return Subject(f"tests.benchmarks.harness:{name}", replace(artifact, precision="float32"))


def row(report: Report, name: str) -> Row:
    """The row of a backend of this module."""
    return next(row for row in report.rows if row.backend.endswith(f":{name}"))


def overhead(settings: Settings) -> None:
    """What a call of 50 microseconds is measured as; its answers are not held against anything here."""
    report = bench([], subject("FIFTY"), settings)
    found = row(report, "FIFTY").latency_ms
    assert found is not None
    assert found.p50 is not None
    click.echo(
        f"a call of 50 us: p50 {found.p50 * 1000:.2f} us, {found.p50 / 0.05 - 1:.2%} more; "
        f"mean {found.mean * 1000:.2f} us, {found.mean / 0.05 - 1:.2%} more."
    )


def a_against_a(runs: int, settings: Settings) -> None:
    """Count the intervals that hold 1."""
    held, widths = 0, []
    for number in range(runs):
        report = bench([subject("TWIN")], subject("WORKING"), replace(settings, seed=number))
        found = row(report, "TWIN").speedup
        assert found is not None
        assert found.low is not None
        assert found.high is not None
        held += found.low <= 1 <= found.high
        widths.append(found.high - found.low)
    widths.sort()
    click.echo(f"A against A: {held} of {runs} intervals hold 1; their median width is {widths[len(widths) // 2]:.3f}.")


def known_difference(settings: Settings) -> None:
    """2 ms more, by the medians."""
    report = bench([subject("SEVEN")], subject("FIVE"), settings)
    five, seven = (row(report, name).latency_ms for name in ("FIVE", "SEVEN"))
    assert five is not None
    assert seven is not None
    assert five.p50 is not None
    assert seven.p50 is not None
    click.echo(f"sleeping 2 ms more: measured as {seven.p50 - five.p50:.3f} ms more.")


def told_apart(settings: Settings) -> None:
    """The speed-up of one that is as fast, and of one that takes 20 % longer."""
    report = bench([subject("SAME"), subject("LONGER")], subject("PLAIN"), settings)
    for name in ("SAME", "LONGER"):
        found = row(report, name).speedup
        assert found is not None
        click.echo(f"{name.lower()}: {found.median:.3f} times as fast ({found.low:.3f} to {found.high:.3f}).")


@click.command(help=__doc__)
@click.option("--runs", default=50, show_default=True, help="Of A against A.")
def main(runs: int) -> None:
    """Run all four and print what was found."""
    settings = Settings(batches=(1,), times=(20,), seconds=1.0, rounds=20)
    overhead(settings)
    known_difference(settings)
    told_apart(settings)
    a_against_a(runs, settings)


if __name__ == "__main__":
    main()
