"""Time to export a recurrent layer, against torch.onnx's own exporter: python -m tests.benchmarks.export

Both in one process, in turn, verification aside; after one export of each that is not timed. deploykit's time includes
the runs that find random draws, kept state and written inputs. torch.onnx leaves nn.RNN unrolled at a fixed length, and
freezes the length on a second export unless a cache of its own is cleared, which is done here.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import click
import torch
from torch import nn

from deploykit.export import _trace, to_onnx
from deploykit.types import ModelSpec, TensorSpec


class Layer(nn.Module):
    def __init__(self, kind: Callable[..., nn.RNNBase], hidden: int) -> None:
        super().__init__()
        self.rnn = kind(hidden, hidden, num_layers=3, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.rnn(x)[0]  # type: ignore[no-any-return]


def theirs(module: nn.Module, hidden: int, dynamic_time: bool) -> None:
    for operator in (torch.ops.aten.lstm.input, torch.ops.aten.gru.input):
        operator._dispatch_cache.clear()
    shapes = {0: torch.export.Dim("batch")} | ({1: torch.export.Dim("time")} if dynamic_time else {})
    with _trace.quiet():
        torch.onnx.export(module, (torch.randn(2, 7, hidden),), dynamo=True, dynamic_shapes=(shapes,), verbose=False)


def timed(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


@click.command()
@click.option("--hidden", default=256, show_default=True)
@click.option("--runs", default=7, show_default=True)
def main(hidden: int, runs: int) -> None:
    """Print the median of paired ratios, and its range."""
    torch.manual_seed(0)
    for name, kind in {"GRU": nn.GRU, "LSTM": nn.LSTM, "RNN": nn.RNN}.items():
        module = Layer(kind, hidden).eval().requires_grad_(False)
        spec = ModelSpec(module, (TensorSpec("x", "float32", ("batch", "time", hidden)),))
        pairs = [
            (timed(lambda: to_onnx(spec)), timed(lambda: theirs(module, hidden, kind is not nn.RNN)))  # noqa: B023
            for _ in range(runs + 1)
        ][1:]
        ratios = sorted(ours / other for ours, other in pairs)
        click.echo(
            f"3-layer {name}, hidden {hidden}: deploykit takes {statistics.median(ratios):.2f} times as long as "
            f"torch.onnx ({ratios[0]:.2f} to {ratios[-1]:.2f} in {runs} pairs; "
            f"{statistics.median(ours for ours, _ in pairs):.2f} s and {statistics.median(o for _, o in pairs):.2f} s)"
        )


if __name__ == "__main__":
    main()
