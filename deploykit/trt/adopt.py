"""Plans of others, which have no manifest: TensorRT is asked what they take and give."""

from __future__ import annotations

from pathlib import Path

from deploykit.artifact import Artifact, Engine
from deploykit.errors import ArtifactError
from deploykit.files import sha256_file
from deploykit.trt import cuda, library, plan
from deploykit.types import TensorSpec

#: TensorRT's names of types, and NumPy's.
_TYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "INT8": "int8",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
    "UINT8": "uint8",
}


def adopted(path: Path) -> Artifact:
    """The artifact of a plan that somebody vouches for; it is deserialized, so its code runs.

    Its precision counts as float32, the strictest, since nobody says what it computes in. A dim that may vary is named
    after its tensor and place, as nobody says which are equal.

    Raises:
        BackendUnavailableError: there is no TensorRT, no pycuda or no GPU.
        ArtifactError: it is no plan, or not for this TensorRT.
    """
    written = plan.header_version(path)
    library.require()
    gpu = cuda.describe()
    with cuda.context():
        # In a function of its own: what TensorRT made is released when that returns, while the context is current.
        specs, inputs, shapes = _described(path, ".".join(map(str, written)))
    return Artifact(
        path,
        "trt-engine",
        "float32",
        sha256_file(path),
        inputs=tuple(specs[name] for name in inputs),
        outputs=tuple(specs[name] for name in specs if name not in inputs),
        name=path.stem,
        size_bytes=path.stat().st_size,
        engine=Engine(
            # What its header says is all that is known, and TensorRT has just loaded it.
            ".".join(map(str, written)),
            gpu.name,
            gpu.compute_capability,
            tuple(
                {name: (found[number][0], found[number][1], found[number][2]) for name, found in shapes.items()}
                for number in range(len(next(iter(shapes.values()), [])))
            ),
            {"trusted": True},
        ),
    )


def _described(
    path: Path, written: str
) -> tuple[dict[str, TensorSpec], list[str], dict[str, list[tuple[tuple[int, ...], ...]]]]:
    """Its inputs and outputs by name, which of them are inputs, and their shapes in each profile."""
    import tensorrt as trt

    from deploykit.trt.log import Messages, hearing, logger

    messages = Messages()
    with hearing(messages):
        try:
            runtime = trt.Runtime(logger())
            # A version-compatible plan brings code along, and somebody vouches for this one.
            runtime.engine_host_code_allowed = True
            engine = runtime.deserialize_cuda_engine(path.read_bytes())
        except TypeError:  # what the bindings raise where TensorRT makes no runtime
            engine = None
        if engine is None:
            raise ArtifactError(
                f"TensorRT {library.installed_text()} cannot load {path.name}, which version {written} wrote: "
                f"{messages.told('it gave no reason')}."
            )
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        shapes = {
            name: [
                tuple(tuple(int(size) for size in shape) for shape in engine.get_tensor_profile_shape(name, number))
                for number in range(engine.num_optimization_profiles)
            ]
            for name in inputs
        }
        specs = {name: _spec(name, engine.get_tensor_dtype(name).name, engine.get_tensor_shape(name)) for name in names}
        return specs, inputs, shapes


def _spec(name: str, kind: str, shape: object) -> TensorSpec:
    sizes = [int(size) for size in shape]  # type: ignore[attr-defined] # trt.Dims is a sequence of ints
    if kind not in _TYPES:
        raise ArtifactError(f"the plan's {name!r} is of type {kind}, which NumPy has not.")
    return TensorSpec(
        name, _TYPES[kind], tuple(size if size >= 0 else f"{name}_{axis}" for axis, size in enumerate(sizes))
    )
