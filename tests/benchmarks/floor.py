"""How close do the fused int8 operators come to what the machine allows?

Run by hand, on a machine that does nothing else::

    python -m tests.benchmarks.floor --hidden 64,128,256,512,1024

First ``floor.cpp`` measures how many products of 8-bit numbers one thread can sum in a second, with the weights in each
of the caches. From that follows the least time of a layer: its arithmetic, at the rate that the cache which holds its
weights allows (the state's weights are read in every step, the input's once for many steps). Against it stands the
fastest of the runs of the fused operator in onnxruntime, the call from Python included: other work on the machine only
ever slows a run down.
"""

from __future__ import annotations

import subprocess
import tempfile
import time
from pathlib import Path

import click
import numpy as np

from deploykit.artifact import ModelRef
from deploykit.cli._shared import IntList, NameList
from deploykit.export import export
from deploykit.kernels.build import Tools
from deploykit.quantize import quantize
from deploykit.runtime import session
from tests.benchmarks.layers import FACTORY

GATES = {"GRU": 3, "LSTM": 4, "RNN": 1}


def rates() -> dict[int, float]:
    """Multiply-accumulates a second by the size of the weights in bytes."""
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "floor"
        source = Path(__file__).with_name("floor.cpp")
        Tools.from_environment().run("-std=c++17", "-O3", "-march=native", str(source), "-o", str(program))
        printed = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    return {int(size): float(rate) * 1e9 for size, rate, _ in map(str.split, printed.splitlines())}


def least(kind: str, hidden: int, batch: int, steps: int, found: dict[int, float]) -> float:
    """Seconds that a layer with as many inputs as units takes at least."""
    matrix = GATES[kind] * hidden * hidden
    fitting = next((rate for size, rate in sorted(found.items()) if size >= matrix), min(found.values()))
    fastest = max(found.values())
    # Several rows share what is read of the weights: then the arithmetic binds. One step reads the input's once too.
    state = matrix * batch * steps / (fitting if batch == 1 else fastest)
    given = matrix * batch * steps / (fitting if batch * steps == 1 else fastest)
    return state + given


def fastest_run(kind: str, hidden: int, batch: int, steps: int, seconds: float) -> float:
    """Seconds of the fastest run of the fused operator."""
    x = np.random.default_rng(1).standard_normal((batch, steps, hidden)).astype(np.float32)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "layer.py").write_text(FACTORY.format(kind=kind, hidden=hidden))
        ref = ModelRef(f"{folder}/layer.py:Layer", inputs=(f"x:float32[batch,time,{hidden}]",))
        made = quantize(export(ref, folder / "layer.onnx"), folder / "fused.onnx", kernels="fused", bounds=None)
        opened = session(made.path, threads=1)
        best, end = float("inf"), time.monotonic() + seconds
        while time.monotonic() < end:
            start = time.perf_counter()
            opened.run(None, {"x": x})
            best = min(best, time.perf_counter() - start)
    return best


@click.command(help=__doc__)
@click.option("--kinds", type=NameList(), default="GRU,LSTM,RNN", show_default=True)
@click.option("--hidden", type=IntList(), default="64,128,256,512,1024", show_default=True)
@click.option("--batch", type=IntList(), default="1,16", show_default=True)
@click.option("--time", "times", type=IntList(), default="100", show_default=True)
@click.option("--seconds", type=float, default=2.0, show_default=True, help="Measuring time for one layer.")
def main(
    kinds: tuple[str, ...], hidden: tuple[int, ...], batch: tuple[int, ...], times: tuple[int, ...], seconds: float
) -> None:
    """Measure, and print the tables row by row."""
    found = rates()
    click.echo("| weights, KiB | 10^9 multiply-accumulates a second |")
    click.echo("|---|---|")
    for size, rate in found.items():
        click.echo(f"| {size >> 10} | {rate / 1e9:.0f} |")
    click.echo("\n| layer | batch x time | floor, ms | fused, ms | fused / floor |")
    click.echo("|---|---|---|---|---|")
    for kind in kinds:
        for size in hidden:
            for rows in batch:
                for steps in times:
                    floor = least(kind, size, rows, steps, found) * 1e3
                    took = fastest_run(kind, size, rows, steps, seconds) * 1e3
                    shape = f"{rows} x {steps}"
                    click.echo(f"| {kind} {size} | {shape} | {floor:.3f} | {took:.3f} | {took / floor:.2f} |")


if __name__ == "__main__":
    main()
