"""From trained weights to files, by deploykit's own functions: exported, quantized, validated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.torch import save
from torch import Tensor

from deploykit import artifact, loading, registry
from deploykit.artifact import Artifact, ModelRef
from deploykit.backends import RunOptions
from deploykit.errors import DeploykitError, KernelsError
from deploykit.export import export
from deploykit.files import atomic_path, write_text
from deploykit.kernels import why_missing
from deploykit.quantize import quantize

from .plan import Job
from .results import Deployed
from .tasks import Shape, study_task

if TYPE_CHECKING:
    from deploykit.types import ModelSpec

_FACTORY = '''"""A model of a study, as deploykit's commands take it: {file}:{function}, with --weights {weights}."""

from {package} import load


def {function}():
    return load({task!r}, {architecture!r}, hidden={hidden}, window={window}, data={data!r})
'''


@dataclass(frozen=True)
class Files:
    """One model's artifacts; ``fused`` is None where the kernels' library is not there, which ``reason`` then says."""

    job: Job
    model: ModelRef
    plain: Artifact
    int8: Artifact
    fused: Artifact | None
    reason: str | None = None


def load(task: str, architecture: str, *, hidden: int, window: int, data: str | None) -> ModelSpec:
    """What the factory files call: the untrained model with its specs and metric."""
    found = study_task(task, None if data is None else Path(data))
    return found.spec(found.module(architecture, Shape(hidden)), window)


def named(task: str, job: Job, folder: Path) -> ModelRef:
    """How deploykit calls the job's model, whether its files are there or not."""
    stem = job.name.removeprefix("family-")
    file = folder / "models" / f"{stem.replace('-', '_')}.py"
    return ModelRef(f"{file}:{_function(task, job)}", weights=str(file.with_name(f"{stem}.safetensors")))


def write_model(task: str, job: Job, weights: Mapping[str, Tensor], data: Path | None, folder: Path) -> ModelRef:
    """Weights and a factory file that ``deploykit`` takes as any user's.

    Raises:
        OutputError: a file cannot be written.
    """
    model = named(task, job, folder)
    assert model.weights is not None
    file, state = Path(model.ref.rpartition(":")[0]), Path(model.weights)
    given = None if data is None else str(data.resolve())
    text = _FACTORY.format(
        file=file.name,
        function=_function(task, job),
        weights=state.name,
        package=__name__,
        task=task,
        architecture=job.architecture,
        hidden=job.shape.hidden,
        window=job.window,
        data=given,
    )
    write_text(file, text)
    with atomic_path(state) as temporary:
        temporary.write_bytes(save({name: value.contiguous() for name, value in weights.items()}))
    return model


def convert(model: ModelRef, job: Job) -> Files:
    """Export and quantize. int8 wherever it can be, fast or not and exact or not: what that costs is what is asked.

    Raises:
        DeploykitError: the model cannot be exported or quantized; ``Files`` need both.
    """
    assert model.weights is not None
    stem = Path(model.weights).with_suffix("")
    plain = export(model, stem.with_suffix(".onnx"))
    int8 = quantize(plain, stem.with_suffix(".int8.onnx"), prefer="int8", allow_partial=True, bounds=None)
    try:
        fused = quantize(
            plain, stem.with_suffix(".fused.onnx"), prefer="int8", kernels="fused", allow_partial=True, bounds=None
        )
    except KernelsError as error:
        return Files(job, model, plain, int8, None, str(error))
    return Files(job, model, plain, int8, fused)


def opened(task: str, job: Job, folder: Path) -> Files:
    """What ``convert`` made of the job's model.

    Raises:
        ArtifactError: a file is not there, or is not what its manifest says.
    """
    model = named(task, job, folder)
    assert model.weights is not None
    stem = Path(model.weights).with_suffix("")
    plain, int8 = (artifact.read(stem.with_suffix(suffix)) for suffix in (".onnx", ".int8.onnx"))
    missing = why_missing()
    return Files(job, model, plain, int8, None if missing else artifact.read(stem.with_suffix(".fused.onnx")), missing)


def judge(files: Files, threads: int) -> Deployed:
    """The metric of each file in onnxruntime, over the same test split as PyTorch's; export has proved the float one.

    Raises:
        DeploykitError: a file does not run.
    """
    spec = loading.load(files.model)
    assert spec.metric is not None
    found = []
    for file in (files.plain, files.int8):
        with registry.backend("ort").open(file, RunOptions(threads)) as runner:
            found.append(spec.metric.evaluate(runner.infer))
    coverage = files.int8.coverage
    return Deployed(
        float_bytes=files.plain.size_bytes,
        int8_bytes=files.int8.size_bytes,
        float_metric=found[0],
        int8_metric=found[1],
        coverage=None if coverage is None else coverage.mac_share,
    )


def deploy(model: ModelRef, job: Job, threads: int) -> tuple[Deployed, Files | None]:
    """``convert`` and ``judge``; what fails is the record's reason, so that the study goes on."""
    try:
        files = convert(model, job)
        return judge(files, threads), files
    except DeploykitError as error:
        return Deployed(reason=str(error)), None


def _function(task: str, job: Job) -> str:
    return f"{task}_{job.architecture.replace('-', '_')}"
