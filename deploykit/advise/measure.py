"""Takes costs here and now: exports and quantizes probes as a user's commands would, and times them in turn."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from deploykit import registry
from deploykit.advise import probes
from deploykit.advise.evidence import STATS, Cost
from deploykit.advise.probes import Probe
from deploykit.advise.question import Device
from deploykit.artifact import Artifact, ModelRef
from deploykit.bench import stages, stats
from deploykit.bench.model import learn
from deploykit.bench.seat import Seat
from deploykit.bench.settings import Settings, Subject
from deploykit.bench.shapes import Shape
from deploykit.errors import BackendUnavailableError, DeploykitError, KernelsError
from deploykit.trt.options import Precision

#: Models in one run: each is a process for each way to run it, and PyTorch's are large.
TOGETHER = 4
#: What an engine's format is called, and the precisions that engines are built in.
_ENGINE = "trt-engine"
_PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16")
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Timing:
    """How probes are timed. ``backends``: names, or none for every one of the device that runs here by default."""

    steps: tuple[int, ...]
    batch: int = 1
    threads: int = 1
    device: Device = "cpu"
    backends: tuple[str, ...] = ()
    seconds: float = 1.0
    rounds: int = 10


@dataclass(frozen=True)
class _Way:
    """One way to run one probe, and the file that it takes."""

    probe: Probe
    backend: str
    artifact: Artifact
    kernels: str


@dataclass
class Measured:
    """``costs`` of what ran, and a sentence on each thing that did not."""

    costs: list[Cost] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)


def backends(device: Device, named: Sequence[str] = ()) -> tuple[str, ...]:
    """The backends that probes are run on: those named, or all of the device that can run here.

    Raises:
        UnknownNameError: there is no backend of a name.
        BackendUnavailableError: a named one cannot run here, or none of the device can.
    """
    if named:
        for name in named:
            reason = registry.backend(name).available()
            if reason is not None:
                raise BackendUnavailableError(reason)
        return tuple(named)
    known = {name: registry.backend(name) for name in registry.backend_names()}
    fit = {name: one for name, one in known.items() if one.device == device and not one.hidden and _takes(one.accepts)}
    # On a CPU the usual ones: torch-compile needs minutes, and has to be named. A GPU's all do.
    wanted = {name: one for name, one in fit.items() if device == "gpu" or one.default != "never"}
    reasons = {name: one.available() for name, one in wanted.items()}
    found = tuple(name for name, reason in reasons.items() if reason is None)
    if not found:
        told = " ".join(str(reason) for reason in reasons.values())
        raise BackendUnavailableError(f"no backend of the {device} runs here: {told}")
    return found


def measure(wanted: Sequence[Probe], timing: Timing, tell: Tell = lambda _: None) -> Measured:
    """Costs of every probe on every backend, at every number of steps.

    Raises:
        BackendUnavailableError: no backend of the device can run here.
    """
    names = backends(timing.device, timing.backends)
    found = Measured()
    for start in range(0, len(wanted), TOGETHER):
        group = wanted[start : start + TOGETHER]
        tell(f"measuring {', '.join(probe.name for probe in group)}")
        with tempfile.TemporaryDirectory(prefix="deploykit-advise-") as folder:
            ways = [way for probe in group for way in _ways(probe, names, timing, Path(folder), found)]
            if ways:
                _time(ways, timing, found)
    return found


def _ways(probe: Probe, names: Sequence[str], timing: Timing, folder: Path, found: Measured) -> Iterator[_Way]:
    """Every way to run the probe; what cannot be made of it is told in ``found``."""
    model = probes.write(probe, folder)
    try:
        files = [*_files(probe, model, folder)]
    except DeploykitError as error:
        found.failed.append(f"{probe.name}: {error}")
        return
    if any(_ENGINE in registry.backend(name).accepts for name in names):
        files += _engines(files[1][0], probe, timing, found)
    for name in names:
        accepts = registry.backend(name).accepts
        for artifact, kernels in files:
            if artifact.format in accepts and (kernels != "fused" or name == "ort"):
                yield _Way(probe, name, artifact, kernels)


def _files(probe: Probe, model: ModelRef, folder: Path) -> Iterator[tuple[Artifact, str]]:
    """The model itself, its export, and int8 by the defaults of ``deploykit quantize``, with each kind of kernels."""
    from deploykit.export import export
    from deploykit.quantize import quantize

    yield Artifact.of_model(model, probe.name), ""
    plain = export(model, folder / f"{probe.name}.onnx")
    yield plain, ""
    # No bounds: what a random model's int8 answers says nothing of a trained one's.
    yield quantize(plain, folder / f"{probe.name}.int8.onnx", allow_partial=True, bounds=None), "portable"
    with contextlib.suppress(KernelsError):  # no library here: there is one way less
        fused = folder / f"{probe.name}.fused.onnx"
        yield quantize(plain, fused, kernels="fused", allow_partial=True, bounds=None), "fused"


def _engines(plain: Artifact, probe: Probe, timing: Timing, found: Measured) -> Iterator[tuple[Artifact, str]]:
    """Engines for just the shapes that are timed; what TensorRT refuses is told in ``found``."""
    from deploykit.trt.build import build

    shapes = [f"batch={timing.batch},time={steps}" for steps in timing.steps]
    for precision in _PRECISIONS:
        try:
            yield build(plain, precision=precision, shapes=shapes), ""
        except DeploykitError as error:
            found.failed.append(f"{probe.name}, engine in {precision}: {error}")


def _time(ways: Sequence[_Way], timing: Timing, found: Measured) -> None:
    settings = Settings(threads=timing.threads, seconds=timing.seconds, rounds=timing.rounds)
    seats = [Seat(Subject(way.backend, way.artifact), settings) for way in ways]
    # The model's inputs are asked of PyTorch, which runs whether it is timed or not.
    reference = next((seat for seat in seats if seat.subject.backend == "torch"), None)
    opened = seats
    if reference is None:
        reference = Seat(Subject("torch", _of_model(ways[0])), settings)
        opened = [reference, *seats]
    with contextlib.ExitStack() as workers:
        for seat in opened:
            seat.open(workers)
        if reference.error is not None:
            raise reference.error
        shapes = [Shape(timing.batch, steps) for steps in timing.steps]
        model, _ = learn(reference, settings, lambda _: shapes)
        for shape in shapes:
            stages.time_latency(model, seats, shape, settings, lambda _: None)
    for way, seat in zip(ways, seats, strict=True):
        reason = seat.unavailable or seat.failed
        if reason is not None:
            found.failed.append(f"{way.probe.name} on {way.backend}: {reason}")
            continue
        found.costs += [_cost(way, seat, shape, timing) for shape in shapes if seat.windows.get(shape)]


def _cost(way: _Way, seat: Seat, shape: Shape, timing: Timing) -> Cost:
    assert shape.time is not None
    latency = stats.latency(seat.windows[shape], timing.batch)
    coverage = way.artifact.coverage
    parameters = probes.parameters(way.probe)
    return Cost(
        architecture=way.probe.architecture,
        hidden=way.probe.hidden,
        features=way.probe.features,
        outputs=way.probe.outputs,
        parameters=parameters,
        steps=shape.time,
        batch=timing.batch,
        threads=timing.threads,
        backend=way.backend,
        precision=way.artifact.precision,
        kernels=way.kernels,
        # PyTorch's own file is its weights.
        size_bytes=way.artifact.size_bytes or 4 * parameters,
        mac_share=None if coverage is None else coverage.mac_share,
        latency_ms={stat: round(value, 5) for stat in STATS if (value := getattr(latency, stat)) is not None},
        samples=latency.samples,
        stable=latency.stable,
    )


def _of_model(way: _Way) -> Artifact:
    if way.artifact.format == "torch":
        return way.artifact
    assert way.artifact.model is not None
    return Artifact.of_model(way.artifact.model, way.probe.name)


def _takes(accepts: frozenset[str]) -> bool:
    return bool(accepts & {"torch", "onnx", _ENGINE})
