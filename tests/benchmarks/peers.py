"""int8 of one recurrent layer by deploykit, by torch.ao and by onnxruntime's quantize_dynamic, in one interleaved run.

Run by hand, on a machine that does nothing else::

    python -m tests.benchmarks.peers --hidden 256,512,1024

Input size = hidden size, one thread. Prints a table for docs/benchmarks.md: how many times faster each deploykit file
is than a peer (median of paired ratios, the middle half of them in brackets), and the largest error against PyTorch.
"""

from __future__ import annotations

import logging
import random
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import nn

from deploykit.artifact import ModelRef
from deploykit.cli._shared import IntList, NameList
from deploykit.export import export
from deploykit.quantize import quantize
from deploykit.runtime import session
from tests.benchmarks.layers import FACTORY

PEERS = ("torch", "torch.ao int8", "onnxruntime float32", "quantize_dynamic")
Run = Callable[[], np.ndarray]


def layer(kind: str, hidden: int) -> nn.Module:
    """The layer of ``FACTORY``."""
    names: dict[str, Any] = {}
    exec(FACTORY.format(kind=kind, hidden=hidden), names)
    module: nn.Module = names["Layer"]().eval()
    return module


def subjects(kind: str, hidden: int, x: np.ndarray, folder: Path) -> tuple[dict[str, Run], dict[str, Run]]:
    """What deploykit makes of the layer, and the peers, by name, each ready to run on ``x``."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    (folder / "layer.py").write_text(FACTORY.format(kind=kind, hidden=hidden))
    ref = ModelRef(f"{folder}/layer.py:Layer", inputs=(f"x:float32[batch,time,{hidden}]",))
    exported = export(ref, folder / "layer.onnx")

    def in_onnxruntime(path: Path) -> Run:
        opened = session(path, threads=1)
        return lambda: np.asarray(opened.run(None, {"x": x})[0])

    def in_torch(module: nn.Module) -> Run:
        def run() -> np.ndarray:
            with torch.inference_mode():
                return np.asarray(module(torch.from_numpy(x)))

        return run

    ours = {}
    for name in ("fused", "dynamic", "dynamic-8bit", *["coupled"] * (kind == "LSTM")):
        coupled, fused = name == "coupled", name == "fused"
        made = quantize(
            exported,
            folder / f"{name}.onnx",
            method="dynamic" if coupled or fused else name,
            prefer="int8",
            kernels="fused" if fused else "portable",
            allow_coupled=coupled,
            bounds=None,
        )
        ours[name] = in_onnxruntime(made.path)
    module = layer(kind, hidden)
    peers = {"torch": in_torch(module), "onnxruntime float32": in_onnxruntime(exported.path)}
    if kind != "RNN":
        peers["torch.ao int8"] = in_torch(torch.ao.quantization.quantize_dynamic(module, {nn.LSTM, nn.GRU}))
    quantize_dynamic(exported.path, folder / "peer.onnx", weight_type=QuantType.QInt8, per_channel=True)
    peers["quantize_dynamic"] = in_onnxruntime(folder / "peer.onnx")
    return ours, peers


def measure(kind: str, hidden: int, batch: int, steps: int, seconds: float) -> list[str]:
    """The rows of one layer."""
    x = np.random.default_rng(1).standard_normal((batch, steps, hidden)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        ours, peers = subjects(kind, hidden, x, Path(folder))
        runs = ours | peers
        expected = runs["torch"]()
        errors = {name: float(np.abs(run() - expected).max()) for name, run in runs.items()}
        times: dict[str, list[float]] = {name: [] for name in runs}
        end = time.monotonic() + seconds
        order, draw = list(runs), random.Random(0)
        while time.monotonic() < end or len(times["torch"]) < 15:
            # PyTorch leaves caches cold that cost whoever is next 15 us: nobody shall always be that.
            draw.shuffle(order)
            for name in order:
                start = time.perf_counter()
                runs[name]()
                times[name].append(time.perf_counter() - start)
    lines = []
    for name in ours:
        cells = [f"{kind} {hidden}", f"{batch} x {steps}", name]
        cells += ["-" if peer not in peers else _ratio(times[peer], times[name]) for peer in PEERS]
        told = ", ".join(f"{errors[one]:.3f}" for one in ("torch.ao int8", "quantize_dynamic") if one in errors)
        lines.append(f"| {' | '.join([*cells, f'{errors[name]:.3f} ({told})'])} |")
    return lines


def _ratio(theirs: list[float], ours: list[float]) -> str:
    low, median, high = np.percentile(np.array(theirs) / np.array(ours), [25, 50, 75])
    return f"{median:.2f} ({low:.2f} to {high:.2f})"


@click.command(help=__doc__)
@click.option("--kinds", type=NameList(), default="GRU,LSTM,RNN", show_default=True)
@click.option("--hidden", type=IntList(), default="256,512,1024", show_default=True)
@click.option("--batch", type=IntList(), default="1", show_default=True)
@click.option("--time", "times", type=IntList(), default="100", show_default=True)
@click.option("--seconds", type=float, default=8.0, show_default=True, help="Measuring time for one layer.")
def main(
    kinds: tuple[str, ...], hidden: tuple[int, ...], batch: tuple[int, ...], times: tuple[int, ...], seconds: float
) -> None:
    """Measure, and print the table row by row."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    click.echo(
        "| layer | batch x time | method | / torch | / torch.ao | / float32 | / quantize_dynamic | error (peers') |"
    )
    click.echo(f"|{'---|' * 8}")
    for kind in kinds:
        for size in hidden:
            for rows in batch:
                for steps in times:
                    for line in measure(kind, size, rows, steps, seconds):
                        click.echo(line)


if __name__ == "__main__":
    main()
