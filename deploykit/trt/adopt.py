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
    import tensorrt as trt

    from deploykit.trt.log import Messages, logger

    gpu = cuda.describe()
    messages = Messages()
    with cuda.context():
        runtime = trt.Runtime(logger(messages))
        engine = runtime.deserialize_cuda_engine(path.read_bytes())
        if engine is None:
            raise ArtifactError(
                f"TensorRT {library.installed_text()} cannot load {path.name}, which version "
                f"{'.'.join(map(str, written))} wrote: {messages.told('it gave no reason')}."
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
    return Artifact(
        path,
        "trt-engine",
        "float32",
        sha256_file(path),
        inputs=tuple(specs[name] for name in inputs),
        outputs=tuple(specs[name] for name in names if name not in inputs),
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
        ),
    )


def _spec(name: str, kind: str, shape: object) -> TensorSpec:
    sizes = [int(size) for size in shape]  # type: ignore[attr-defined] # trt.Dims is a sequence of ints
    if kind not in _TYPES:
        raise ArtifactError(f"the plan's {name!r} is of type {kind}, which NumPy has not.")
    return TensorSpec(
        name, _TYPES[kind], tuple(size if size >= 0 else f"{name}_{axis}" for axis, size in enumerate(sizes))
    )
