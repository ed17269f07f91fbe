"""TensorRT against PyTorch on a GPU: are the engines right, and are they faster? It was never run on a GPU so far.

Run by hand, on a machine with an NVIDIA GPU, TensorRT and pycuda that does nothing else::

    python -m tests.benchmarks.gpu > gpu.md

Each model is exported, built as an engine in each precision, held against PyTorch in float32 on the CPU at several
sizes, and timed in turn with PyTorch: eager (cuDNN), replayed from a CUDA graph, and by torch.compile, in the engine's
precision (float16 for int8, which PyTorch has not on a GPU). Every inference begins with NumPy arrays and ends with
them. Two times are told apart: end to end on the host, transfers included, and what the GPU computed, by events
around the compute alone. Prints Markdown for docs/gpu.md: medians, in brackets the middle half of all inferences.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from deploykit import registry
from deploykit.artifact import Artifact, ModelRef
from deploykit.backends import Runner, RunOptions
from deploykit.backends._outputs import named_outputs
from deploykit.bench.tolerance import tolerance
from deploykit.cli._shared import IntList, NameList
from deploykit.errors import DeploykitError, first_line
from deploykit.export import export
from deploykit.loading import load
from deploykit.quantize import quantize
from deploykit.trt.build import build
from deploykit.versions import versions
from tests.benchmarks.gpu_torch import InTorch

if TYPE_CHECKING:
    from deploykit.trt.options import Precision
    from deploykit.types import Array, Feeds, ModelSpec

FACTORY = """
import torch
from torch import nn

class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.rnn = nn.{layer}({hidden}, {hidden}, batch_first=True, bidirectional={bidirectional})

    def forward(self, x):
        y = self.rnn(x)[0]
        if {attention}:
            y = torch.softmax(y @ y.transpose(1, 2) / {hidden} ** 0.5, -1) @ y
        return y
"""


@dataclass(frozen=True)
class Kind:
    """A model: a recurrent layer and what stands around it. ``quantized``: as a Q/DQ file, for an int8 engine."""

    layer: str
    bidirectional: bool = False
    attention: bool = False
    streaming: bool = False
    quantized: bool = False

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """Those that its engine is built in."""
        return ("int8",) if self.quantized else ("fp32", "fp16")


KINDS = {
    "RNN": Kind("RNN"),
    "LSTM": Kind("LSTM"),
    "GRU": Kind("GRU"),
    "bidirectional GRU": Kind("GRU", bidirectional=True),
    "GRU + attention": Kind("GRU", attention=True),
    "streaming GRU": Kind("GRU", streaming=True),
    "Q/DQ GRU": Kind("GRU", quantized=True),
}
#: What engines are tuned and allowed for, and the sizes at which their answers are compared.
SHAPES = "batch=1:1:32,time=1:100:160"
COMPARED = ((1, 1), (3, 7), (2, 137), (32, 100))
NAMES: Mapping[Precision, str] = {"fp32": "float32", "fp16": "float16", "int8": "int8"}
#: Of what the versions are told.
PACKAGES = ("deploykit", "torch", "tensorrt", "pycuda", "onnx", "numpy")
WARM = 10
EAGER = "PyTorch eager"
ENGINES = {"TensorRT": "trt", "TensorRT, CUDA graph": "trt-graph"}
PEERS = {EAGER: "eager", "PyTorch, CUDA graph": "graph", "torch.compile": "compiled"}

#: One inference from start to end; returns what the GPU computed, in milliseconds, where that is known.
Run = Callable[[], float | None]


@dataclass(frozen=True)
class Times:
    """Milliseconds of each inference of one contestant: on the host, and on the GPU where it was measured."""

    host: list[float] = field(default_factory=list)
    device: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Difference:
    """How far an engine is from PyTorch: the largest error, the SNR (None without any error), and whether it passes."""

    max_abs: float
    snr_db: float | None
    passed: bool


def interleave(contestants: Mapping[str, Run], rounds: int, each: int, warm: int = WARM) -> dict[str, Times]:
    """Time all of them in turn, in another order each round, ``each`` inferences at a time; one before them is not."""
    found = {name: Times() for name in contestants}
    for run in contestants.values():
        for _ in range(warm):
            run()
    order, shuffle = list(contestants), random.Random(0).shuffle
    for _ in range(rounds):
        shuffle(order)
        for name in order:
            run, times = contestants[name], found[name]
            run()
            for _ in range(each):
                begin = time.perf_counter_ns()
                device = run()
                times.host.append((time.perf_counter_ns() - begin) / 1e6)
                if device is not None:
                    times.device.append(device)
    return found


def compare(expected: Feeds, found: Feeds, precision: Precision) -> Difference:
    """Hold every output against PyTorch's by the tolerance that the bench has for the precision.

    Raises:
        ValueError: an output is missing, or has another shape.
    """
    allowed = tolerance(NAMES[precision])
    passed, errors, least = True, [0.0], None
    for name, reference in expected.items():
        if name not in found or found[name].shape != reference.shape:
            raise ValueError(f"the output {name!r} is missing or has another shape")
        error = np.abs(found[name].astype(np.float64) - reference.astype(np.float64))
        noise, signal = float(np.square(error).sum()), float(np.square(reference.astype(np.float64)).sum())
        snr = 10 * float(np.log10(signal / noise)) if noise > 0 and signal > 0 else None
        errors.append(float(error.max(initial=0.0)))
        least = snr if least is None or (snr is not None and snr < least) else least
        if allowed.min_snr_db is None:
            # Written so that a NaN does not pass.
            passed = passed and bool((error <= allowed.atol + allowed.rtol * np.abs(reference)).all())
        else:
            passed = passed and (noise == 0 or (snr is not None and snr >= allowed.min_snr_db))
    return Difference(float(np.max(errors)), least, passed)


def spread(milliseconds: list[float]) -> str:
    """The median and the middle half; a dash without any."""
    if not milliseconds:
        return "–"
    low, median, high = np.percentile(milliseconds, (25, 50, 75))
    return f"{median:.3f} ({low:.3f} to {high:.3f})"


def lines(model: str, sizes: str, precision: str, times: Mapping[str, Times]) -> Iterator[str]:
    """A row of the table for each contestant, with how many times faster than PyTorch eager it is, both ways."""
    eager = times.get(EAGER, Times())
    for name, own in times.items():
        ratios = [_ratio(eager.host, own.host), _ratio(eager.device, own.device)]
        cells = [model, sizes, precision, name, spread(own.host), spread(own.device), *ratios]
        yield f"| {' | '.join(cells)} |"


def _ratio(reference: list[float], own: list[float]) -> str:
    return f"{float(np.median(reference) / np.median(own)):.2f}" if reference and own else "–"


def reference(spec: ModelSpec, feeds: Feeds) -> dict[str, Array]:
    """PyTorch in float32 on the CPU."""
    import torch

    with torch.inference_mode():
        outputs = named_outputs(spec, spec.run([torch.from_numpy(feeds[tensor.name]) for tensor in spec.inputs]))
    return {name: tensor.numpy() for name, tensor in outputs.items()}


def in_tensorrt(runner: Runner, feeds: Feeds) -> Run:
    """One inference of an engine; its GPU time is what the runner says."""

    def run() -> float | None:
        runner.infer(feeds)
        return runner.device_ms

    return run


def exported(kind: Kind, hidden: int, folder: Path) -> tuple[ModelRef, Artifact]:
    """The model and the ONNX file of it that engines are built from."""
    text = FACTORY.format(layer=kind.layer, hidden=hidden, bidirectional=kind.bidirectional, attention=kind.attention)
    (folder / "layer.py").write_text(text)
    ref = ModelRef(f"{folder}/layer.py:Layer", inputs=(f"x:float32[batch,time,{hidden}]",), streaming=kind.streaming)
    found = export(ref, folder / "layer.onnx")
    if kind.quantized:
        inputs: dict[str, Any] = dict(load(ref).feeds(2, batch=8, time=100))
        np.savez(folder / "inputs.npz", **inputs)
        qdq = folder / "layer.qdq.onnx"
        found = quantize(found, qdq, method="static", calibration=folder / "inputs.npz", bounds=None)
    return ref, found


def measure(name: str, hidden: int, batches: tuple[int, ...], times: tuple[int, ...], rounds: int) -> Iterator[str]:
    """What came of one model: the comparisons and failures as sentences, the timings as rows of the table."""
    kind, title = KINDS[name], f"{name} {hidden}"
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        ref, source = exported(kind, hidden, Path(folder))
        spec = load(ref)
        for precision in kind.precisions:
            said = f"{title} {precision}"
            try:
                engine = build(source, Path(folder, f"{precision}.engine"), precision=precision, shapes=(SHAPES,))
            except DeploykitError as error:
                yield f"{said}: not built, {first_line(error)}"
                continue
            runners: dict[str, Runner] = {}
            for told, backend in ENGINES.items():
                try:
                    runners[told] = stack.enter_context(registry.backend(backend).open(engine, RunOptions()))
                except DeploykitError as error:
                    yield f"{said}, {told}: does not run, {first_line(error)}"
            yield from _comparisons(said, spec, runners, precision)
            for batch, steps in product(batches, times):
                feeds = spec.feeds(0, batch=batch, time=steps)
                makers: dict[str, Callable[[], Run]] = {
                    told: partial(in_tensorrt, runner, feeds) for told, runner in runners.items()
                }
                inputs = [feeds[tensor.name] for tensor in spec.inputs]
                makers |= {told: partial(_in_torch, ref, inputs, precision, way) for told, way in PEERS.items()}
                running, failures = started(makers)
                yield from (f"{said} at {batch} x {steps}, {failure}" for failure in failures)
                yield from lines(title, f"{batch} x {steps}", precision, interleave(running, rounds, 20))


def started(makers: Mapping[str, Callable[[], Run]]) -> tuple[dict[str, Run], list[str]]:
    """Those that can be made and run once, and a sentence for each that cannot, so that the others go on."""
    found: dict[str, Run] = {}
    failures = []
    for name, make in makers.items():
        try:
            run = make()
            run()
        except (DeploykitError, RuntimeError) as error:
            failures.append(f"{name}: failed, {first_line(error)}")
        else:
            found[name] = run
    return found, failures


def _comparisons(title: str, spec: ModelSpec, runners: Mapping[str, Runner], precision: Precision) -> Iterator[str]:
    for batch, steps in COMPARED:
        feeds = spec.feeds(1, batch=batch, time=steps)
        expected = reference(spec, feeds)
        for told, runner in runners.items():
            at = f"{title}, {told} at {batch} x {steps}"
            try:
                found = compare(expected, runner.infer(feeds), precision)
            except (DeploykitError, ValueError) as error:
                yield f"{at}: failed, {first_line(error)}"
                continue
            snr = "no error" if found.snr_db is None else f"SNR {found.snr_db:.1f} dB"
            verdict = "within" if found.passed else "OUTSIDE"
            yield f"{at}: largest error {found.max_abs:.1e}, {snr}, {verdict} tolerance."


def _in_torch(ref: ModelRef, inputs: list[Array], precision: Precision, way: str) -> Run:
    # A module of its own, as one that moved its weights would pull them from under another's graph.
    return InTorch(load(ref).module.eval(), inputs, precision != "fp32", way)


def missing() -> str | None:
    """Why nothing can be measured here, in one sentence."""
    import torch

    if not torch.cuda.is_available():
        return "PyTorch sees no GPU here, and without one there is nothing to measure: run this on a GPU machine."
    return registry.backend("trt").available()


def environment() -> Iterator[str]:
    """The versions of everything, as a list."""
    import torch

    from deploykit.trt.cuda import describe

    gpu = describe()
    cudnn: Any = torch.backends.cudnn  # has no types
    yield f"- GPU: {gpu.name}, compute capability {gpu.compute_capability}, driver for CUDA {gpu.driver}"
    yield f"- PyTorch's CUDA {torch.version.cuda}, cuDNN {cudnn.version()}, TF32 off"
    yield "- " + ", ".join(f"{name} {version}" for name, version in versions(PACKAGES).items())


@click.command(help=__doc__)
@click.option("--kinds", type=NameList(), default=",".join(KINDS), show_default=True)
@click.option("--hidden", type=IntList(), default="256,1024", show_default=True)
@click.option("--batch", type=IntList(), default="1,32", show_default=True)
@click.option("--time", "times", type=IntList(), default="1,100", show_default=True)
@click.option("--rounds", default=30, show_default=True, help="Of 20 inferences each, for every contestant.")
def main(
    kinds: tuple[str, ...], hidden: tuple[int, ...], batch: tuple[int, ...], times: tuple[int, ...], rounds: int
) -> None:
    """Measure, and print comparisons and table."""
    unknown = [name for name in kinds if name not in KINDS]
    if unknown:
        raise click.UsageError(f"unknown kind {unknown[0]!r}: use one of {', '.join(KINDS)}.")
    reason = missing()
    if reason is not None:
        raise click.ClickException(reason)
    import torch

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    for line in environment():
        click.echo(line)
    table = []
    click.echo()
    for name in kinds:
        for size in hidden:
            for line in measure(name, size, batch, times, rounds):
                if line.startswith("|"):
                    table.append(line)
                else:
                    click.echo(f"- {line}")
    click.echo("\n| model | B x T | precision | by | end to end, ms | GPU, ms | / eager, end to end | / eager, GPU |")
    click.echo(f"|{'---|' * 8}")
    for line in table:
        click.echo(line)


if __name__ == "__main__":
    main()
