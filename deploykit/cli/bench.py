"""``deploykit bench``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from deploykit.artifact import ModelRef
from deploykit.cli import _bench, _engines, _gates, _scenario, _shared
from deploykit.config import Config

if TYPE_CHECKING:
    from deploykit.bench.scenario import Scenario


@click.command(
    short_help="Latency and accuracy of each backend against PyTorch.",
    help="""Time each backend and hold its answers against the PyTorch reference, all in one interleaved run.

TARGETS are one model, or artifacts that came from one model; without any, the newest export in build/ and what was made
from it, exported first where there is none. A backend that is named and cannot run here is an error that says what to
install; in `all` and `default` it is a row that says so.""",
)
@click.argument("targets", nargs=-1)
@_shared.describe_options
@_bench.backend_option
@click.option("--batch", type=_shared.IntList(), help="Batch sizes; default: 1, for `offline` 1,4,16,64.")
@click.option("--time", "times", type=_shared.IntList(), help="Numbers of time steps; default: 100, for `streaming` 1.")
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="Threads for one inference.")
@_scenario.options
@_bench.data_option
@_bench.metric_option
@_bench.drift_option
@_gates.options(latency=True, scenarios=True)
@_engines.options
@_shared.json_option
@_bench.html_option
@click.pass_obj
def command(
    config: Config,
    targets: tuple[str, ...],
    described: ModelRef,
    backends: tuple[str, ...],
    batch: tuple[int, ...] | None,
    times: tuple[int, ...] | None,
    threads: int,
    scenario: Scenario,
    data: Path | None,
    metric: str | None,
    drift: int | None,
    json_target: str | None,
    html_target: Path | None,
    asked: _gates.Asked,
    engines: _engines.Asked,
) -> None:
    from deploykit.bench.engine import Settings

    ref = _bench.model(config, targets, described)
    settings = Settings(
        batches=batch,
        times=times,
        threads=threads,
        data=data,
        metric=metric,
        overrides=asked.overrides(),
        scenario=scenario,
        drift=_bench.drift_steps(drift),
        drift_asked=bool(drift),
    )
    _bench.evaluate(config, targets, ref, backends, settings, json_target, html_target, asked, engines)
