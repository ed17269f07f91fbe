"""``deploykit validate``."""

from __future__ import annotations

from pathlib import Path

import click

from deploykit.artifact import ModelRef
from deploykit.cli import _bench, _engines, _gates, _locate, _shared
from deploykit.config import Config


@click.command(
    short_help="The accuracy half of bench alone; the exit code is the verdict.",
    help="""Hold each backend's answers against the PyTorch reference, without timing anything.

TARGETS as for `deploykit bench`. Ends with 0 when every answer lies within its tolerance, with 3 when one does not, and
with 1 when a backend did not run. [bench] in deploykit.toml holds here too, unless [validate] says otherwise.""",
)
@click.argument("targets", nargs=-1)
@_shared.describe_options
@_bench.backend_option
@click.option("--batch", type=_shared.IntList(), help="Batch sizes, besides those always checked; default: 1.")
@click.option("--time", "times", type=_shared.IntList(), help="Time steps, besides those always checked; default: 100.")
@click.option(
    "--locate",
    is_flag=True,
    help="Compare the values inside each ONNX artifact, layer by layer, with what it was made from, instead.",
)
@_bench.data_option
@_bench.metric_option
@_bench.drift_option
@_gates.options(latency=False)
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
    locate: bool,
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
    if locate:
        _locate.locate(config, targets, ref, data, json_target)
        return
    settings = Settings(
        batches=batch,
        times=times,
        data=data,
        metric=metric,
        latency=False,
        overrides=asked.overrides(),
        drift=_bench.drift_steps(drift),
        drift_asked=bool(drift),
    )
    _bench.evaluate(config, targets, ref, backends, settings, json_target, html_target, asked, engines)
