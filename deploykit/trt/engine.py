"""A plan made an engine: checked, deserialized, refitted where it was stripped, and what it takes and returns."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit.artifact import Artifact, load_onnx
from deploykit.errors import ArtifactError, BackendFailedError, DeploykitError, first_line
from deploykit.files import sha256_file
from deploykit.trt import cuda, library, plan
from deploykit.trt.dtypes import HELD, PUBLIC
from deploykit.trt.log import Messages, hearing, logger
from deploykit.trt.options import SHORT
from deploykit.types import TensorSpec

if TYPE_CHECKING:
    import tensorrt as trt

    Shape = tuple[int, ...]
    Range = tuple[Shape, Shape, Shape]


@dataclass(frozen=True)
class Port:
    """An input or output of an engine. ``kind`` is its numbers' type by TensorRT's name.

    ``on_host`` ones are read or written in the host's memory: TensorRT computes shapes from them. ``ranges`` holds each
    profile's smallest, tuned and largest shape, for inputs alone; ``dims`` has -1 where a size is left open.
    """

    name: str
    kind: str
    dims: Shape
    on_host: bool
    ranges: tuple[Range, ...] = ()

    @property
    def held(self) -> str:
        """The dtype of NumPy that has its bytes."""
        return HELD[self.kind]

    @property
    def spec(self) -> TensorSpec:
        """As a user gives it, where no manifest says more."""
        dims = tuple(f"{self.name}_{axis}" if size < 0 else size for axis, size in enumerate(self.dims))
        return TensorSpec(self.name, PUBLIC[self.kind], dims)


class Engine:
    """A deserialized plan. ``messages`` holds what TensorRT said of it."""

    def __init__(self, artifact: Artifact) -> None:
        """Load the plan of ``artifact`` on the GPU whose context is current.

        Raises:
            ArtifactError: the plan does not fit this TensorRT or GPU, or the weights it was stripped of are missing.
            BackendUnavailableError: TensorRT cannot be used here.
            BackendFailedError: TensorRT refuses the plan, or it has inputs or outputs that we cannot fill.
        """
        library.require()
        import tensorrt as trt

        self.version = str(trt.__version__)
        self.gpu = cuda.describe()
        plan.require_fits(artifact, self.version, self.gpu.name, self.gpu.compute_capability)
        options = artifact.engine.options if artifact.engine is not None else {}
        self.messages = Messages()
        self.name = artifact.path.name
        with self.saying(f"TensorRT cannot load {self.name}"):
            self._runtime: trt.Runtime = trt.Runtime(logger())
            if options.get("version_compatible") or options.get("trusted"):
                # Such a plan holds the code of a lean runtime. It was built here or is vouched for: see ``plan``.
                self._runtime.engine_host_code_allowed = True
            # Nothing, whatever the bindings' types say, where it refuses.
            engine: trt.ICudaEngine | None = self._runtime.deserialize_cuda_engine(artifact.path.read_bytes())
            if engine is None:
                raise BackendFailedError(self.failed(f"TensorRT cannot load {self.name}"))
            self._engine = engine
            self.refitted = bool(options.get("strip"))
            if self.refitted:
                self._refit(artifact)
            ports = [self._port(number) for number in range(self._engine.num_io_tensors)]
        self.inputs = {port.name: port for port in ports if port.ranges}
        self.outputs = {port.name: port for port in ports if not port.ranges}

    @contextlib.contextmanager
    def saying(self, what: str) -> Iterator[None]:
        """Turn whatever TensorRT's bindings raise into a sentence that begins with ``what``; our own errors pass.

        Raises:
            BackendFailedError: TensorRT failed.
        """
        from pycuda import driver

        try:
            with hearing(self.messages):
                yield
        except (DeploykitError, driver.Error):
            raise
        except Exception as error:  # the bindings raise RuntimeError, TypeError and more
            raise BackendFailedError(self.failed(what, first_line(error))) from error

    def failed(self, what: str, otherwise: str = "it does not say why") -> str:
        """The sentence on a failure, in TensorRT's own words where it had any."""
        return f"{what}: {self.messages.told(otherwise)}."

    def context(self) -> trt.IExecutionContext:
        """A new execution context.

        Raises:
            BackendFailedError: TensorRT has no memory for it, most of the time.
        """
        what = f"TensorRT cannot prepare {self.name} to run"
        with self.saying(what):
            context: trt.IExecutionContext | None = self._engine.create_execution_context()
        if context is None:
            raise BackendFailedError(self.failed(what))
        return context

    def profile(self, shapes: Mapping[str, Shape]) -> int:
        """The number of the profile to run ``shapes`` in: of those that they lie in, the narrowest.

        Raises:
            BackendFailedError: they lie in none.
        """
        fitting = [
            number
            for number in range(self.profiles)
            if all(_inside(shapes[port.name], port.ranges[number]) for port in self.inputs.values())
        ]
        if not fitting:
            raise BackendFailedError(self._outside(shapes))
        return min(fitting, key=lambda number: (self._largest(number), self._distance(shapes, number)))

    @property
    def profiles(self) -> int:
        """How many profiles it has."""
        return min((len(port.ranges) for port in self.inputs.values()), default=1)

    def told(self, number: int) -> str:
        """The profile's shapes, as they are written on the command line."""
        return ",".join(
            f"{port.name}={':'.join(map(_text, port.ranges[number]))}"
            for port in self.inputs.values()
            if min(port.dims, default=0) < 0
        )

    def close(self) -> None:
        """Release it, once: every execution context must be gone."""
        del self._engine, self._runtime

    def _port(self, number: int) -> Port:
        import tensorrt as trt

        engine = self._engine
        name = str(engine.get_tensor_name(number))
        kind = str(engine.get_tensor_dtype(name).name)
        if kind not in HELD:
            raise BackendFailedError(
                f"the engine's {name!r} has numbers of type {kind}, which deploykit cannot give it: build it from an "
                "ONNX file whose inputs and outputs are float32, integers or bool."
            )
        if engine.get_tensor_format(name) != trt.TensorFormat.LINEAR:
            raise BackendFailedError(
                f"the engine's {name!r} is laid out in a vectorized format: build it without formats of its own."
            )
        dims = sizes(engine.get_tensor_shape(name))
        on_host = engine.get_tensor_location(name) == trt.TensorLocation.HOST
        is_input = engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
        return Port(name, kind, dims, on_host, self._ranges(name, dims) if is_input else ())

    def _ranges(self, name: str, dims: Shape) -> tuple[Range, ...]:
        numbers = range(max(self._engine.num_optimization_profiles, 1))
        if min(dims, default=0) >= 0:
            return tuple((dims, dims, dims) for _ in numbers)
        found = [self._engine.get_tensor_profile_shape(name, number) for number in numbers]
        return tuple((sizes(low), sizes(tuned), sizes(high)) for low, tuned, high in found)

    def _largest(self, number: int) -> int:
        return sum(_elements(port.ranges[number][2]) for port in self.inputs.values())

    def _distance(self, shapes: Mapping[str, Shape], number: int) -> int:
        return sum(
            abs(_elements(port.ranges[number][1]) - _elements(shapes[port.name])) for port in self.inputs.values()
        )

    def _outside(self, shapes: Mapping[str, Shape]) -> str:
        for port in self.inputs.values():
            if not any(_inside(shapes[port.name], one) for one in port.ranges):
                ranges = ", or ".join(_span(one) for one in port.ranges)
                return (
                    f"the input {port.name!r} is {_text(shapes[port.name])}, and the engine takes {ranges}: build it "
                    "again with --shapes that hold this one."
                )
        told = ", ".join(f"{name} {_text(shape)}" for name, shape in shapes.items())
        profiles = "; ".join(self.told(number) for number in range(self.profiles))
        return f"no profile of the engine holds {told} together: it has {profiles}; build it again with one that does."

    def _refit(self, artifact: Artifact) -> None:
        """Give a stripped plan its weights: those of the ONNX file that it was built from."""
        import tensorrt as trt

        from deploykit.trt.prepare import prepared, saved

        source = _source(artifact)
        version = library.parse_version(self.version)
        model = prepared(load_onnx(source), SHORT[artifact.precision], version)
        refitter = trt.Refitter(self._engine, logger())
        parser = library.member(trt, "OnnxParserRefitter")(refitter, logger())
        what = f"TensorRT cannot take the weights of {source.name} into {self.name}"
        with tempfile.TemporaryDirectory(prefix="deploykit-") as folder:
            taken = parser.refit_from_file(str(saved(model, Path(folder))))
        if not taken:
            said = "; ".join(str(parser.get_error(number).desc()) for number in range(parser.num_errors))
            raise BackendFailedError(self.failed(what, said or "it does not say why"))
        if not refitter.refit_cuda_engine():
            missing = ", ".join(refitter.get_missing_weights())
            raise BackendFailedError(self.failed(what, f"it lacks {missing}" if missing else "it does not say why"))


def _source(artifact: Artifact) -> Path:
    """The ONNX file that an engine was built from, beside it, by its hash."""
    folder = artifact.path.parent
    for path in sorted(folder.glob("*.onnx")):
        if sha256_file(path) == artifact.parent:
            return path
    raise ArtifactError(
        f"{artifact.path.name} was built without its weights, and the ONNX file that has them is not in {folder}: put "
        "it beside the engine, or build the engine again without --strip."
    )


def sizes(dims: Any) -> Shape:
    """TensorRT's ``Dims`` as numbers; its types do not say that it is a sequence."""
    return tuple(int(size) for size in dims)


def specs(artifact: Artifact, engine: Engine) -> tuple[Sequence[TensorSpec], Sequence[TensorSpec]]:
    """The inputs and outputs as their users know them: the manifest's, or the engine's own where it has none.

    Raises:
        ArtifactError: the manifest names others than the engine has.
    """
    inputs = artifact.inputs or tuple(port.spec for port in engine.inputs.values())
    outputs = artifact.outputs or tuple(port.spec for port in engine.outputs.values())
    for kind, told, found in (("inputs", inputs, engine.inputs), ("outputs", outputs, engine.outputs)):
        if {spec.name for spec in told} != set(found):
            raise ArtifactError(
                f"the manifest of {engine.name} names the {kind} {', '.join(spec.name for spec in told)}, and the "
                f"engine has {', '.join(found)}: build it again."
            )
    return inputs, outputs


def _inside(shape: Shape, within: Range) -> bool:
    low, _, high = within
    return len(shape) == len(low) and all(a <= size <= b for a, size, b in zip(low, shape, high, strict=True))


def _elements(shape: Shape) -> int:
    import math

    return math.prod(shape)


def _span(within: Range) -> str:
    low, _, high = within
    return _text(low) if low == high else f"{_text(low)} to {_text(high)}"


def _text(shape: Shape) -> str:
    return "x".join(map(str, shape)) or "a scalar"
