"""From the command line's words to a PyTorch model: a zoo name, ``file.py:factory``, ``package.module:factory``."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit import registry, weights
from deploykit.artifact import ModelRef
from deploykit.errors import ModelError, UsageError
from deploykit.types import DimRange, ModelSpec, TensorSpec, dynamic_dims

if TYPE_CHECKING:
    from torch import nn

    from deploykit.examples import Example


def model_name(ref: ModelRef) -> str:
    """A short name for files and tables: the zoo name, the factory's, or the .pt2 file's."""
    name = Path(ref.ref).stem if is_program(ref) else ref.ref.rpartition(":")[2]
    return name.replace("_", "-") + ("-streaming" if ref.streaming else "")


def is_program(ref: ModelRef) -> bool:
    """Whether the model is a file of torch.export."""
    return ref.ref.endswith(".pt2")


def load(ref: ModelRef) -> ModelSpec:
    """Build the model, load its weights, put it in eval mode, and find out what its inputs mean.

    A ``.py`` file or a package named here is imported, so its code runs: it is code that the user asked to run. A
    ``.pt2`` file holds a graph and no code.

    Raises:
        UnknownNameError: no zoo model has that name.
        ModelError: the file or factory cannot be found, fails, or returns no module.
        WeightsError: the weights are missing, unsafe, or do not fit.
        UsageError: an input description is malformed, or there is none.
        ExportError: the model cannot stream, and ``--streaming`` asks for it.
    """
    made = _program(ref) if is_program(ref) else _zoo(ref) if ":" not in ref.ref else _users(ref)
    example = None
    if ref.example is not None:
        from deploykit import examples

        example = examples.example(run_example(ref.example), made.module, ref.example)
    spec = _described(made, ref, example)
    if ref.weights is not None:
        path = Path(ref.weights)
        weights.fit(spec.module, weights.read_state(path), path)
    _require_finite(spec.module, ref)
    if not is_program(ref):  # a program of torch.export has one mode only, and refuses to be asked
        spec.module.eval()
    spec.module.requires_grad_(False)
    return _prepared(spec, ref, example)


def _prepared(spec: ModelSpec, ref: ModelRef, example: Example | None) -> ModelSpec:
    """``spec`` with what is found out by running it: the values of integer inputs, and the states of a stream."""
    from deploykit import examples, probing

    if example is not None:
        # The specs are final only now: values are cut along the dims that they name.
        ranges = probing.with_ranges(replace(spec, sample=None)).ranges
        spec = replace(spec, ranges=ranges, sample=examples.sample(spec.name, spec.inputs, example.values, ranges))
    else:
        spec = probing.with_ranges(spec)
    if ref.streaming:
        from deploykit.streaming import streaming

        spec = streaming(spec)
    return spec


def source_hash(module: nn.Module) -> str:
    """SHA-256 over the module's class, structure and state dict: names, dtypes, shapes and bytes."""
    import torch

    digest = hashlib.sha256(f"{type(module).__qualname__}\n{module}\n".encode())
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        # Bytes by way of uint8, since NumPy has no bfloat16.
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _zoo(ref: ModelRef) -> ModelSpec:
    if ref.ref not in registry.zoo_names() and Path(ref.ref).suffix == ".py":
        raise UsageError(f"{ref.ref} names a file but no factory in it: write {ref.ref}:FACTORY.")
    spec = registry.zoo_model(ref.ref, None if ref.weights is None else Path(ref.weights))
    if ref.weights is None:
        path = registry.zoo_weights(ref.ref)
        weights.fit(spec.module, weights.read_state(path), path)
    return spec


def _users(ref: ModelRef) -> ModelSpec:
    from torch import nn

    where, _, name = ref.ref.rpartition(":")
    factory = _factory(where, name)
    try:
        made = factory if isinstance(factory, nn.Module) else factory()
    # The factory is the user's own code: whatever it raises is the answer.
    except (Exception, SystemExit) as error:
        raise ModelError(f"the factory {ref.ref} failed with {type(error).__name__}: {error}") from error
    if isinstance(made, ModelSpec):
        return made
    if isinstance(made, nn.Module):
        return ModelSpec(made, (), name=model_name(replace(ref, streaming=False)))
    raise ModelError(
        f"the factory {ref.ref} returned a {type(made).__name__}: it must return an nn.Module or a ModelSpec."
    )


def _program(ref: ModelRef) -> ModelSpec:
    from deploykit import pt2

    program = pt2.read(Path(ref.ref))
    inputs = pt2.describe(program)
    return ModelSpec(
        pt2.module(program), inputs, name=model_name(ref), dims=pt2.dims(program), call=pt2.calling(program)
    )


def run_example(named: str) -> Any:
    """What the user's function ``FILE.py:FUNCTION`` returns: inputs of a model. Its code runs.

    Raises:
        UsageError: the name has another form.
        ModelError: the function cannot be found, or fails.
    """
    function = function_at(named, "--example", "returns the model's inputs")
    try:
        return function()
    # The function is the user's own code: whatever it raises is the answer.
    except (Exception, SystemExit) as error:
        raise ModelError(f"the example {named} failed with {type(error).__name__}: {error}") from error


def function_at(named: str, option: str, does: str) -> Callable[..., Any]:
    """The user's function ``FILE.py:FUNCTION`` that ``option`` names, and what it ``does``. The file's code runs.

    Raises:
        UsageError: the name has another form.
        ModelError: the function cannot be found, or its file fails.
    """
    file, _, name = named.rpartition(":")
    if not file:
        raise UsageError(f"cannot read {option} {named!r}: write FILE.py:FUNCTION.")
    return _factory(file, name, does)


def _inputs(spec: ModelSpec, ref: ModelRef, example: Example | None) -> ModelSpec:
    """``spec`` with the inputs that the user described: by an example, by words, or in the spec itself."""
    from deploykit import examples

    described = tuple(TensorSpec.parse(text) for text in ref.inputs)
    if example is not None:
        inputs = examples.with_axes(described or example.inputs, ref.axes)
        for tensor, found in zip(inputs, example.inputs, strict=False):
            if len(inputs) != len(example.inputs) or tensor.name != found.name:
                told = ", ".join(map(str, example.inputs))
                raise UsageError(f"{ref.example} returns {told}: give --input for each of them, in order, or for none.")
        return replace(spec, inputs=inputs, call=example.call)
    if is_program(ref) and (described or ref.axes):
        from deploykit import pt2

        pt2.unchecked(spec.module)
    if described:
        call = spec.call if is_program(ref) else examples.call_by_name(described, spec.module)
        return replace(spec, inputs=examples.with_axes(described, ref.axes), call=call, sample=None)
    return replace(spec, inputs=examples.with_axes(spec.inputs, ref.axes)) if ref.axes else spec


def _described(spec: ModelSpec, ref: ModelRef, example: Example | None) -> ModelSpec:
    spec = _inputs(spec, ref, example)
    inputs = spec.inputs
    if not inputs:
        raise UsageError(
            f"say what {ref.ref} takes: --input 'x:float32[batch,time,40]' (once for each input), or --example."
        )
    names = [tensor.name for tensor in inputs]
    if len(set(names)) < len(names):
        raise UsageError(f"two inputs of {ref.ref} have one name: {', '.join(names)}.")
    dims = dict(spec.dims) | dict(DimRange.parse(text) for text in ref.dims)
    _require_dims(inputs, dims, ref)
    fixed = {name: bounds.low for name, bounds in dims.items() if bounds.low == bounds.high}
    inputs = tuple(replace(tensor, dims=tuple(fixed.get(str(dim), dim) for dim in tensor.dims)) for tensor in inputs)
    dims = {name: bounds for name, bounds in dims.items() if name not in fixed}
    return replace(spec, inputs=inputs, dims=dims)


def _require_dims(inputs: tuple[TensorSpec, ...], dims: Mapping[str, DimRange], ref: ModelRef) -> None:
    unknown = sorted(dims.keys() - set(dynamic_dims(inputs)))
    if unknown:
        raise UsageError(f"--dim names {unknown[0]!r}, which no input of {ref.ref} has: {', '.join(map(str, inputs))}.")


def _factory(where: str, name: str, does: str = "returns the model") -> Callable[..., Any]:
    module = _import_file(Path(where)) if where.endswith(".py") else _import_module(where)
    factory = getattr(module, name, None)
    if not callable(factory):
        raise ModelError(f"{where} has no function or class {name!r}: name one that {does}.")
    found: Callable[..., Any] = factory
    return found


def _import_file(path: Path) -> object:
    if not path.is_file():
        raise ModelError(f"no file {path}: check its path.")
    folder = str(path.resolve().parent)
    if folder not in sys.path:  # as when the file is run as a script, so that it finds its neighbours
        sys.path.insert(0, folder)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ModelError(f"{path} cannot be imported as a Python file.")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses and pickles look their module up by name; a module of that name which is already there stays.
    sys.modules.setdefault(path.stem, module)
    try:
        spec.loader.exec_module(module)
    # Importing runs the user's own code: whatever it raises is the answer.
    except (Exception, SystemExit) as error:
        raise ModelError(f"importing {path} failed with {type(error).__name__}: {error}") from error
    return module


def _import_module(name: str) -> object:
    if "" not in sys.path and str(Path.cwd()) not in sys.path:  # a console script does not look in the current folder
        sys.path.insert(0, str(Path.cwd()))
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        raise ModelError(f"importing {name} failed with {type(error).__name__}: {error}") from error


def _require_finite(module: nn.Module, ref: ModelRef) -> None:
    import torch

    for name, parameter in module.named_parameters():
        if not torch.isfinite(parameter).all():
            raise ModelError(f"{ref.ref} has NaN or Inf in its parameter {name}: nothing can be compared with it.")
    for name, buffer in module.named_buffers():  # where -inf is a mask
        if torch.isnan(buffer).any():
            raise ModelError(f"{ref.ref} has NaN in its buffer {name}: nothing can be compared with it.")
