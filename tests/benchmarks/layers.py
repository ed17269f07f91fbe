"""How fast is int8 on this machine? One recurrent layer of each kind and size, float and int8, against PyTorch.

Run by hand, on a machine that does nothing else::

    python -m tests.benchmarks.layers --hidden 128,256,512,1024

Input size = hidden size, one thread. Prints a table for docs/benchmarks.md: medians over rounds of paired ratios, with
their 95 % intervals, all backends interleaved in one run for each layer.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import click

from deploykit.artifact import Artifact, ModelRef
from deploykit.bench import Report, Row, Settings, Subject, bench
from deploykit.bench.report import Speedup
from deploykit.cli._shared import IntList, NameList
from deploykit.export import export
from deploykit.quantize import quantize

FACTORY = """
import torch
from torch import nn

class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.rnn = nn.{kind}({hidden}, {hidden}, batch_first=True)

    def forward(self, x):
        return self.rnn(x)[0]
"""


@click.command(help=__doc__)
@click.option("--kinds", type=NameList(), default="GRU,LSTM,RNN", show_default=True)
@click.option("--hidden", type=IntList(), default="128,256,512,1024", show_default=True)
@click.option("--batch", type=IntList(), default="1", show_default=True)
@click.option("--time", "times", type=IntList(), default="100", show_default=True)
@click.option("--methods", type=NameList(), default="dynamic,dynamic-8bit", show_default=True)
def main(
    kinds: tuple[str, ...],
    hidden: tuple[int, ...],
    batch: tuple[int, ...],
    times: tuple[int, ...],
    methods: tuple[str, ...],
) -> None:
    """Measure, and print the table row by row."""
    click.echo("| layer | batch x time | method | int8 / torch | float / torch | int8 / float | SNR | stable |")
    click.echo("|---|---|---|---|---|---|---|---|")
    for kind in kinds:
        for size in hidden:
            report = _measure(kind, size, methods, Settings(batches=batch, times=times, seconds=4.0, rounds=30))
            for line in _lines(f"{kind} {size}", report, methods):
                click.echo(line)


def _measure(kind: str, hidden: int, methods: tuple[str, ...], settings: Settings) -> Report:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "layer.py").write_text(FACTORY.format(kind=kind, hidden=hidden))
        ref = ModelRef(f"{folder}/layer.py:Layer", inputs=(f"x:float32[batch,time,{hidden}]",))
        exported = export(ref, folder / "layer.onnx")
        quantized = [quantize(exported, folder / f"{method}.onnx", method=method, prefer="int8") for method in methods]
        subjects = [Subject("ort", artifact) for artifact in (exported, *quantized)]
        return bench(subjects, Artifact.of_model(ref, f"{kind} {hidden}"), settings)


def _lines(name: str, report: Report, methods: tuple[str, ...]) -> list[str]:
    lines = []
    for float_row in (row for row in report.rows if row.backend == "ort" and row.precision == "float32"):
        at = (float_row.batch, float_row.time)
        int8 = [row for row in report.rows if row.precision == "int8" and (row.batch, row.time) == at]
        for method, row in zip(methods, int8, strict=True):
            stable = all(one.latency_ms is not None and one.latency_ms.stable for one in (row, float_row))
            snr = row.accuracy.snr_db if row.accuracy else None
            cells = [
                name,
                f"{at[0]} x {at[1]}",
                method,
                _ratio(row.speedup),
                _ratio(float_row.speedup),
                f"{_median(row) / _median(float_row):.2f}",
                "-" if snr is None else f"{snr:.1f} dB",
                "yes" if stable else "no",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def _median(row: Row) -> float:
    return row.speedup.median if row.speedup is not None else float("nan")


def _ratio(speedup: Speedup | None) -> str:
    return "-" if speedup is None else f"{speedup.median:.2f} ({speedup.low:.2f} to {speedup.high:.2f})"


if __name__ == "__main__":
    main()
