"""``deploykit export``."""

from __future__ import annotations

from pathlib import Path

import click

from deploykit.artifact import Artifact, ModelRef, manifest_path
from deploykit.cli import _shared
from deploykit.config import Config
from deploykit.export import DEFAULT_OPSET, OPSETS
from deploykit.units import size


@click.command(
    help=f"PyTorch to ONNX, dynamic batch and time, verified against PyTorch before it returns.\n\n{_shared.MODEL_HELP}"
)
@click.argument("model", required=False)
@_shared.describe_options
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="The ONNX file; default: build/NAME.onnx, or NAME.fp16.onnx.",
)
@click.option(
    "--opset",
    type=click.IntRange(OPSETS[0], OPSETS[-1]),
    default=DEFAULT_OPSET,
    show_default=True,
    help="The ai.onnx opset to export.",
)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16"]),
    default="fp32",
    show_default=True,
    help="What the file computes in; fp16 covers the recurrence too.",
)
@click.option(
    "--io-precision",
    type=click.Choice(["fp32", "fp16"]),
    default="fp32",
    show_default=True,
    help="With --precision fp16, what its inputs and outputs are.",
)
@click.option("--no-verify", is_flag=True, help="Skip the comparison with PyTorch; the manifest then says so.")
@_shared.json_option
@click.pass_obj
def command(
    config: Config,
    model: str | None,
    described: ModelRef,
    output: Path | None,
    opset: int,
    precision: str,
    io_precision: str,
    no_verify: bool,
    json_target: str | None,
) -> None:
    ref = _shared.model_ref(config, model, described)
    made = _shared.export_now(
        config, ref, output, opset=opset, verify=not no_verify, precision=precision, io_precision=io_precision
    )
    if json_target is not None:
        _shared.emit_json(manifest_path(made.path).read_text(encoding="utf-8"), json_target)
    if json_target != "-":
        click.echo(describe(made))


def describe(made: Artifact) -> str:
    """What was exported, what to know about it, and how far it was proved."""
    interface = f"{', '.join(map(str, made.inputs))} -> {', '.join(map(str, made.outputs))}"
    proof = made.verification or {}
    checks = proof.get("checks", [])
    head = "\n".join(
        [f"{made.path}  {size(made.size_bytes)}  {interface}", *(f"note: {one}" for one in proof.get("notes", []))]
    )
    if not proof.get("verified"):
        return f"{head}\nNOT verified against PyTorch (--no-verify)."
    worst = max(check["max_abs"] for check in checks)
    at = "; ".join(
        ", ".join(f"{name}={value}" for name, value in check["sizes"].items()) or "its fixed shape" for check in checks
    )
    return f"{head}\nverified against PyTorch on {proof.get('inputs')} at {at}: largest error {worst:.1e}."
