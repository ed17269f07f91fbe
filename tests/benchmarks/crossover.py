"""From which size on is int8 arithmetic faster than float in onnxruntime? The source of `--prefer speed`'s sizes.

Run by hand, on a machine that does nothing else::

    python -m tests.benchmarks.crossover

One layer or one product, weights drawn at random, one thread, float and int8 in one process and in turn. Prints tables
for docs/quantization.md: medians over rounds of float time / int8 time, in brackets the middle half of them.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from deploykit.cli._shared import IntList, NameList
from deploykit.quantize import QuantizeOptions
from deploykit.quantize.dynamic import SCHEME
from deploykit.runtime import session

if TYPE_CHECKING:
    import onnxruntime

GATES = {"GRU": 3, "LSTM": 4, "RNN": 1}
SIZES = ((64, 256), (128, 128), (256, 64), (256, 256), (256, 512), (512, 64), (512, 512), (1024, 256), (1024, 1024))


def layer(kind: str, hidden: int) -> onnx.ModelProto:
    """One layer, input size = hidden size, weights as PyTorch draws them."""
    rng, gates, limit = np.random.default_rng(0), GATES[kind] * hidden, hidden**-0.5
    shapes = {"W": (1, gates, hidden), "R": (1, gates, hidden), "B": (1, 2 * gates)}
    weights = [
        numpy_helper.from_array(rng.uniform(-limit, limit, shape).astype(np.float32), name)
        for name, shape in shapes.items()
    ]
    attrs: dict[str, Any] = {"linear_before_reset": 1} if kind == "GRU" else {}
    node = helper.make_node(kind, ["x", "W", "R", "B"], ["y"], name="layer", hidden_size=hidden, **attrs)
    return _model(node, ["time", "batch", hidden], ["time", 1, "batch", hidden], weights)


def product(rows: int, columns: int) -> onnx.ModelProto:
    """A MatMul with a constant matrix."""
    drawn = np.random.default_rng(0).standard_normal((rows, columns)).astype(np.float32)
    node = helper.make_node("MatMul", ["x", "W"], ["y"], name="product")
    weights = [numpy_helper.from_array(drawn, "W")]
    return _model(node, ["time", "batch", rows], ["time", "batch", columns], weights)


def _model(
    node: onnx.NodeProto, x: list[int | str], y: list[int | str], weights: list[onnx.TensorProto]
) -> onnx.ModelProto:
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, dims) for name, dims in (("x", x), ("y", y))]
    graph = helper.make_graph([node], "net", ends[:1], ends[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def ratios(model: onnx.ModelProto, steps: int, batch: int, width: int, rounds: int) -> str:
    """How many times faster int8 is."""
    quantized, _ = SCHEME.apply(model, QuantizeOptions(prefer="int8"))
    sessions = [session(one.SerializeToString(), threads=1) for one in (model, quantized)]
    x = np.random.default_rng(1).standard_normal((steps, batch, width)).astype(np.float32)
    once = min(_window(one, x, 1) for one in sessions for _ in range(3))
    runs = max(1, int(0.01 / once))
    times = np.array([[_window(one, x, runs) for one in sessions] for _ in range(rounds)])
    low, median, high = np.percentile(times[:, 0] / times[:, 1], [25, 50, 75])
    return f"{median:.2f} ({low:.2f} to {high:.2f})"


def _window(opened: onnxruntime.InferenceSession, x: np.ndarray, runs: int) -> float:
    start = time.perf_counter()
    for _ in range(runs):
        opened.run(None, {"x": x})
    return (time.perf_counter() - start) / runs


def _table(head: Sequence[str]) -> None:
    click.echo(f"\n| {' | '.join(head)} |\n|{'---|' * len(head)}")


@click.command(help=__doc__)
@click.option("--kinds", type=NameList(), default="GRU,LSTM,RNN", show_default=True)
@click.option("--hidden", type=IntList(), default="128,160,192,224,256,320,512,1024", show_default=True)
@click.option("--rounds", type=int, default=25, show_default=True)
def main(kinds: tuple[str, ...], hidden: tuple[int, ...], rounds: int) -> None:
    """Measure, and print both tables row by row."""
    shapes = ((100, 1), (20, 1), (1, 1), (100, 16))
    _table(["layer", *(f"{steps} steps, batch {batch}" for steps, batch in shapes)])
    for kind in kinds:
        for size in hidden:
            model = layer(kind, size)
            found = [ratios(model, steps, batch, size, rounds) for steps, batch in shapes]
            click.echo(f"| {kind} {size} | {' | '.join(found)} |")
    _table(["product", *(f"{steps} rows" for steps in (1, 16, 100))])
    for rows, columns in SIZES:
        model = product(rows, columns)
        found = [ratios(model, steps, 1, rows, rounds) for steps in (1, 16, 100)]
        click.echo(f"| {rows} x {columns} | {' | '.join(found)} |")


if __name__ == "__main__":
    main()
