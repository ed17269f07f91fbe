"""``deploykit ship``."""

from __future__ import annotations

from pathlib import Path

import click

from deploykit import loading
from deploykit.artifact import ModelRef
from deploykit.cli import _bench, _engines, _gates, _shared
from deploykit.cli import export as export_command
from deploykit.cli import quantize as quantize_command
from deploykit.config import Config
from deploykit.given import is_function
from deploykit.quantize import Kernels


@click.command(
    short_help="The whole job: export, quantize to int8, build engines, validate, bench.",
    help=f"""Export, quantize to int8, validate both against PyTorch, time all of them, and report. Where an
NVIDIA GPU and TensorRT are here, engines in float32 and float16 are built and held to the same.

{_shared.MODEL_HELP}""",
)
@click.argument("model", required=False)
@_shared.describe_options
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    help="The folder for everything; default: build.",
)
@click.option("--batch", type=_shared.IntList(), help="Batch sizes to time; default: 1.")
@click.option("--time", "times", type=_shared.IntList(), help="Numbers of time steps to time; default: 100.")
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="Threads for one inference.")
@quantize_command.kernels_option
@_bench.data_option
@_bench.metric_option
@_bench.drift_option
@_gates.options(latency=True)
@_shared.json_option
@click.pass_obj
def command(
    config: Config,
    model: str | None,
    described: ModelRef,
    output: Path | None,
    batch: tuple[int, ...] | None,
    times: tuple[int, ...] | None,
    threads: int,
    kernels: Kernels | None,
    data: Path | None,
    metric: str | None,
    drift: int | None,
    json_target: str | None,
    asked: _gates.Asked,
) -> None:
    from deploykit.bench import html
    from deploykit.bench.engine import Settings
    from deploykit.bench.gates import judge
    from deploykit.bench.report import to_json

    settings = Settings(
        batches=batch,
        times=times,
        threads=threads,
        data=data,
        metric=metric,
        overrides=asked.overrides(),
        drift=_bench.drift_steps(drift),
        drift_asked=bool(drift),
    )
    gates = asked.gates(settings.scenario)
    ref = _shared.model_ref(config, model, described)
    folder = output or config.build_dir
    name = loading.model_name(ref)
    talk = json_target != "-"
    exported = _shared.export_now(config, ref, folder / f"{name}.onnx")
    if talk:
        click.echo(export_command.describe(exported) + "\n")
    # Without the metric: the bench judges that against PyTorch in a moment.
    real = None if data is None or is_function(str(data)) else data
    quantized = quantize_command.quantize_now(exported, None, kernels=kernels, metric=False, calibration=real)
    if talk:
        quantize_command.show(quantized, exported, kernels)
        click.echo()
    engines = _engines.for_ship(exported, talk=talk)
    reference = _bench.reference(ref, [exported])
    artifacts = [exported, quantized, *engines]
    subjects = _bench.plan(_bench.wanted_backends((_bench.DEFAULT,)), reference, artifacts)
    report = judge(_bench.run(subjects, reference, settings), gates)
    path = folder / "report.json"
    _shared.emit_json(to_json(report), str(path))
    html.save(report, path.with_suffix(".html"))
    if talk:
        click.echo(f"report: {path}, and as a page {path.with_suffix('.html')}")
    _bench.finish(report, json_target, None, asked)
