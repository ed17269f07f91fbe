"""``deploykit quantize``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from deploykit import registry
from deploykit.artifact import Artifact, manifest_path
from deploykit.cli import _progress, _shared, _table
from deploykit.config import Config
from deploykit.coverage import RECURRENT
from deploykit.errors import UsageError
from deploykit.quantize import DEFAULT_BOUNDS, DEFAULT_METHOD, KERNELS, PREFERENCES, Kernels, Preference
from deploykit.quantize._gate import Bounds, Cost
from deploykit.units import size

kernels_option = click.option(
    "--kernels",
    type=click.Choice(KERNELS),
    help="What GRU, LSTM and RNN become. portable (the default): nodes that plain onnxruntime has; fused: one operator "
    "of deploykit's, faster, for sessions that load its library; auto: fused where it can be loaded here.",
)

FASTER = (
    "faster: --kernels fused makes each recurrent layer one operator of deploykit's own, for sessions that load its "
    "library (docs/kernels.md)."
)


@click.command(
    short_help="int8 ONNX that covers the recurrence, with a coverage table.",
    help="""Make an int8 ONNX file that runs on plain onnxruntime, and say node by node what became int8. With --kernels
fused it runs faster, where the library of deploykit's operators is loaded.

ARTIFACT is an ONNX file, ours or another's; without it the newest export in build/ is taken, and made where there is
none. The source is never changed. Ends with 3, and writes nothing, when a recurrent layer would stay in float.""",
)
@click.argument("artifact", required=False)
@click.option("--int8", is_flag=True, help="Quantize to int8; so far the only precision, and it has to be said.")
@click.option(
    "--method", default=DEFAULT_METHOD, show_default=True, help=f"One of: {', '.join(registry.scheme_names())}."
)
@click.option(
    "--target",
    type=click.Choice(["ort", "trt"]),
    default="ort",
    show_default=True,
    help="Where the file shall run; trt means --method static, the form that TensorRT's parser takes.",
)
@click.option(
    "--prefer",
    type=click.Choice(PREFERENCES),
    help="What to do with a layer too small to be faster in int8. speed (the default): int8 storage, float arithmetic; "
    "size: int8 where that saves memory; int8: int8 arithmetic wherever it can be.",
)
@kernels_option
@click.option(
    "--allow-coupled",
    is_flag=True,
    help="Take onnxruntime's own int8 LSTM: faster, but a row's answer depends on its neighbours and on later steps.",
)
@click.option("--exclude", multiple=True, metavar="NODE", help="Leave this node in float; repeatable.")
@click.option(
    "--calibration", type=click.Path(path_type=Path), help="Real inputs by name, as .npz, to judge the result on."
)
@click.option(
    "--example",
    metavar="FILE.py:FUNCTION",
    help="Real inputs to judge the result on: a function (its code runs) that returns them in order, or by name.",
)
@click.option(
    "--min-snr",
    type=float,
    default=DEFAULT_BOUNDS.min_snr,
    show_default=True,
    help="Least SNR of every output against float, in dB.",
)
@click.option("--max-error", type=click.FloatRange(0), help="Largest absolute error of any output against float.")
@click.option(
    "--max-metric-drop",
    type=float,
    default=DEFAULT_BOUNDS.max_metric_drop,
    show_default=True,
    help="Largest loss of the metric, the model's own or --metric, as a share of it.",
)
@click.option(
    "--metric",
    metavar="FILE.py:FUNCTION[:min]",
    help="Your metric in place of the model's, for --max-metric-drop: a function (its code runs), called as "
    "FUNCTION(infer) or FUNCTION(infer, data) with the arrays of --calibration, that returns a number; higher is "
    "better, or with :min lower.",
)
@click.option(
    "--no-verify", is_flag=True, help="Write whatever comes out, measured by nobody; the manifest then says so."
)
@click.option("--allow-partial", is_flag=True, help="Accept recurrent layers that stay in float.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="The int8 file; default: NAME.int8.onnx beside the source, NAME.qdq.onnx for static.",
)
@_shared.json_option
@click.pass_obj
def command(
    config: Config,
    artifact: str | None,
    int8: bool,
    method: str,
    target: str,
    prefer: Preference | None,
    kernels: Kernels | None,
    allow_coupled: bool,
    exclude: tuple[str, ...],
    calibration: Path | None,
    example: str | None,
    min_snr: float,
    max_error: float | None,
    max_metric_drop: float,
    metric: str | None,
    no_verify: bool,
    allow_partial: bool,
    output: Path | None,
    json_target: str | None,
) -> None:
    if not int8:
        raise UsageError("say what to quantize to: deploykit quantize --int8.")
    if target == "trt":
        if (
            click.get_current_context().get_parameter_source("method") is not ParameterSource.DEFAULT
            and method != "static"
        ):
            raise UsageError(f"--target trt takes the form of --method static, not of {method}: leave --method out.")
        method = "static"
    registry.scheme(method)  # an unknown method is told before anything is exported
    source = _shared.exported(config, config.model) if artifact is None else _shared.artifact_at(artifact)
    path = _target(source, output, method)
    _shared.require_apart(json_target, source.path, path, manifest_path(path), *filter(None, [calibration]))
    made = quantize_now(
        source,
        output,
        method=method,
        exclude=frozenset(exclude),
        prefer=prefer,
        kernels=kernels,
        allow_coupled=allow_coupled,
        allow_partial=allow_partial,
        calibration=calibration,
        example=example,
        metric=metric or True,
        bounds=None if no_verify else Bounds(min_snr, max_error, max_metric_drop),
    )
    if json_target is not None:
        _shared.emit_json(_shared.as_json(_with_totals(made)), json_target)
    if json_target != "-":
        show(made, source, kernels)


def _with_totals(made: Artifact) -> dict[str, Any]:
    """The manifest, with each row's shares and the totals of the coverage."""
    import msgspec

    manifest: dict[str, Any] = msgspec.json.decode(manifest_path(made.path).read_bytes())
    coverage = made.coverage
    assert coverage is not None
    for row, (weights, macs) in zip(manifest["coverage"]["rows"], coverage.shares(), strict=True):
        row |= {"weight_share": weights, "mac_share": macs}
    totals = {"weight_share": coverage.weight_share, "mac_share": coverage.mac_share}
    manifest["coverage"] |= totals | {
        "weight_bytes": sum(row.weight_bytes for row in coverage.rows),
        "macs": sum(row.macs for row in coverage.rows),
    }
    return manifest


def _target(source: Artifact, output: Path | None, method: str = DEFAULT_METHOD) -> Path:
    """The file that was asked for, else one beside the source; what is for TensorRT leaves the other one alone."""
    return output or source.path.with_suffix(".qdq.onnx" if method == "static" else ".int8.onnx")


def quantize_now(source: Artifact, output: Path | None, **options: Any) -> Artifact:
    """Quantize ``source`` to ``output``, or beside the source, with the options of ``deploykit.quantize.quantize``."""
    from deploykit.quantize import quantize

    path = _target(source, output, options.get("method", DEFAULT_METHOD))
    with _progress.steps(f"quantizing {source.path}") as step:
        return quantize(source, path, progress=step, **options)


def show(made: Artifact, source: Artifact, kernels: Kernels | None = None) -> None:
    """Print what was made, and the coverage table; ``kernels`` is what was asked for."""
    coverage = made.coverage
    assert coverage is not None
    rows = []
    for row, (weights, macs) in zip(coverage.rows, coverage.shares(), strict=True):
        shares = (f"{weights:.0%}", f"{macs:.0%}")
        told = "; ".join(filter(None, (row.form, row.reason, "couples batch rows" if row.coupled else None)))
        rows.append((row.node, row.kind, row.became, *shares, told))
    ratio = source.size_bytes / made.size_bytes
    relation = f"{ratio:.2f} times smaller than" if ratio >= 1 else f"{1 / ratio:.2f} times LARGER than"
    click.echo(f"{made.path}  {size(made.size_bytes)}, {relation} {source.path}")
    _table.show(("node", "kind", "became", "weights", "MACs", "how, or why not"), rows, right=("weights", "MACs"))
    uncounted = sum(row.macs == 0 and row.became == "float32" and row.kind != "Gather" for row in coverage.rows)
    besides = f"; float products of unknown size, not counted: {uncounted}" if uncounted else ""
    total = f"{coverage.weight_share:.1%} of the weight bytes, {coverage.mac_share:.1%} of the multiply-accumulates"
    click.echo(f"int8: {total}{besides}.")
    preferred = sum(row.by_preference for row in coverage.rows)
    if preferred:
        nodes = "1 node computes" if preferred == 1 else f"{preferred} nodes compute"
        click.echo(f"{nodes} in float on int8 weights by preference, not for want of an int8 form: --prefer int8.")
    taken = _kernels_taken(made, kernels)
    if taken:
        click.echo(taken)
    click.echo(_proof(made))


def _kernels_taken(made: Artifact, asked: Kernels | None) -> str | None:
    """Which form the recurrent layers have, what a session needs for it, or that there is a faster one; None else."""
    if made.operators:
        needs = ", ".join(f"version {version} of {domain}" for domain, version in made.operators.items())
        return f"kernels: fused; a session has to load the library of {needs} (docs/kernels.md), as deploykit's do."
    if asked == "portable":
        return None
    from deploykit.kernels import why_missing

    if asked is None:
        assert made.coverage is not None
        fusible = any(row.kind in RECURRENT and (row.by_preference or "Scan" in row.form) for row in made.coverage.rows)
        return FASTER if fusible and why_missing() is None else None
    reason = why_missing() if asked == "auto" else None
    return f"kernels: portable, since {reason or 'no layer here has a fused form.'}"


def _proof(made: Artifact) -> str:
    """How far the result lies from its parent, on which inputs, and what had to stay in float for that."""
    proof = made.verification or {}
    if not proof.get("verified"):
        return "NOT held against the float artifact (--no-verify)."
    accuracy, metric = proof["accuracy"], proof["metric"]
    told = [] if accuracy["snr_db"] is None else [f"SNR {accuracy['snr_db']:.1f} dB"]
    for name, error in accuracy["outputs"].items():
        if error["cosine"] is None and error["outside"] is None and error["equal"] < 1:
            told.append(f"{name} equal in {error['equal']:.1%}")
    if not told and accuracy["max_abs"] == 0:
        told = ["no error"]
    told.append(f"largest error {accuracy['max_abs']:.2g}")
    lines = [f"against the float artifact: {', '.join(told)}, on {proof['inputs']}."]
    if accuracy["grows"]:
        lines.append("the error grows over the time steps.")
    if metric is not None:
        lines.append(f"{metric['name']}: {metric['value']:.4f}, in float {metric['parent']:.4f}.")
    kept = [*proof["kept_float"], *proof["kept_storage"]]
    if kept:
        costs = ", ".join(Cost(cost["node"], cost["snr_db"], cost["max_abs"]).told for cost in proof["ranking"])
        lines.append(f"float arithmetic to hold the bounds: {', '.join(kept)}; each quantized alone: {costs}.")
    return "\n".join(lines)
