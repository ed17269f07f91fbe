"""What a user gives in place of the model's own: inputs, recorded or made by a function, and a metric.

The functions are the user's own code, and run: in the worker of the reference, and for the gate of ``quantize`` in this
process. Whatever they raise is told in one sentence.

- **Metric**, ``FILE.py:FUNCTION``: called as ``FUNCTION(infer)`` or, with two parameters, as ``FUNCTION(infer, data)``.
  Higher is better, or lower where the name ends in ``:min``.
- **Inputs**, ``FILE.py:FUNCTION``: called as ``FUNCTION(seed, **sizes)`` for inputs of those sizes or, without
  parameters, as ``FUNCTION()`` for recorded arrays, which are cut as those of an .npz file are.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit.errors import DeploykitError, ModelError, UsageError, first_line
from deploykit.types import Metric, ModelSpec, TensorSpec, ValueRange

if TYPE_CHECKING:
    from deploykit.types import Array, Infer

    Arrays = Mapping[str, Array]

LOWER = ":min"


@dataclass(frozen=True)
class Source:
    """Inputs for any sizes, and the recorded arrays that they are cut from; None where each seed makes its own."""

    sample: Callable[..., dict[str, Array]]
    arrays: Arrays | None


def is_function(named: str) -> bool:
    """Whether ``--data`` names a function rather than a file."""
    file, colon, name = named.rpartition(":")
    return bool(colon and file) and name.isidentifier() and not Path(named).is_file()


def applied(spec: ModelSpec, data: str | None, metric_at: str | None) -> ModelSpec:
    """``spec`` with the user's inputs and metric in place of its own.

    Raises:
        UsageError: a function cannot be found or called so, or what it returns does not fit.
        ModelError: a recording's function fails.
    """
    arrays: Callable[[], Arrays] | None = None
    missing = "give them with --data FILE.npz, or with a function that takes no parameters"
    if data is not None:
        spec = replace(spec, ranges=_ranges(spec))
        if is_function(data):
            made = source(data, spec.inputs, spec.ranges)
            recorded = made.arrays
            spec = replace(spec, sample=made.sample)
            arrays = None if recorded is None else lambda: recorded
        else:
            arrays = _file(Path(data))
    if metric_at is not None:
        spec = replace(spec, metric=for_streams(metric(metric_at, arrays, missing), spec))
    return spec


def for_streams(found: Metric, spec: ModelSpec) -> Metric:
    """``found``, with states of zero where a streaming model is given none."""
    if not hasattr(spec.module, "plain"):
        return found
    from deploykit.streaming import of_wholes

    return of_wholes(found, spec)


def metric(named: str, arrays: Callable[[], Arrays] | None, missing: str) -> Metric:
    """The user's metric; ``arrays`` reads its data, and where there is none ``missing`` says how to give some.

    Raises:
        UsageError: the function cannot be found, takes other parameters, or takes data and there is none.
    """
    target = named.removesuffix(LOWER)
    function = _function(target, "--metric", "returns a number")
    takes_data = _takes_data(function, named, arrays is not None)
    if takes_data and arrays is None:
        raise UsageError(f"the metric {target} takes the arrays of recorded data, and there are none: {missing}.")

    def evaluate(infer: Infer) -> float:
        given = (arrays(),) if takes_data and arrays is not None else ()
        return _number(_called(lambda: function(infer, *given), f"the metric {target}"), target)

    return Metric(target.rpartition(":")[2], higher_is_better=target == named, evaluate=evaluate)


def source(named: str, inputs: Sequence[TensorSpec], ranges: Mapping[str, ValueRange]) -> Source:
    """The user's function of inputs.

    Raises:
        UsageError: it cannot be found, or a recording does not fit.
        ModelError: a recording's function fails.
    """
    function = _function(named, "--data", "returns inputs")
    signature = _signature(function, named)
    if not signature.parameters:
        from deploykit import examples

        arrays = _by_name(_called(function, named), inputs, named)
        return Source(examples.sample(named, inputs, {spec.name: arrays[spec.name] for spec in inputs}, ranges), arrays)

    def sample(seed: int, **sizes: int) -> dict[str, Array]:
        _require_bindable(signature, named, sizes)
        made = _by_name(_called(lambda: function(seed, **sizes), named), inputs, named)
        for spec in inputs:
            _require_fits(made[spec.name], spec, sizes, named)
        return {spec.name: made[spec.name] for spec in inputs}

    return Source(sample, None)


def _file(path: Path) -> Callable[[], Arrays]:
    def read() -> Arrays:
        from deploykit.data import everything

        return everything(path)

    return read


def _ranges(spec: ModelSpec) -> Mapping[str, ValueRange]:
    """What the integer inputs mean; seen by running the model where, for a sample of its own, nobody has yet."""
    plain: ModelSpec = getattr(spec.module, "plain", spec)
    if plain.sample is None or not hasattr(plain.module, "state_dict"):
        return plain.ranges
    from deploykit import probing

    return probing.with_ranges(replace(plain, sample=None)).ranges


def _function(named: str, option: str, does: str) -> Callable[..., Any]:
    from deploykit import loading

    try:
        return loading.function_at(named, option, does)
    except ModelError as error:
        raise UsageError(f"{option} {named}: {error}") from error


def _called(call: Callable[[], Any], told: str) -> Any:
    try:
        return call()
    except DeploykitError:  # a backend that was asked for an inference, and failed
        raise
    # The function is the user's own code: whatever it raises is the answer.
    except (Exception, SystemExit) as error:
        text = first_line(error)
        kind = type(error).__name__
        raise ModelError(f"{told} failed with {kind if text == kind else f'{kind}: {text}'}.") from error


def _signature(function: Callable[..., Any], named: str) -> inspect.Signature:
    try:
        return inspect.signature(function)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{named} does not say what parameters it takes: name a plain Python function.") from error


def _takes_data(function: Callable[..., Any], named: str, there_is: bool) -> bool:
    """Whether the metric is called with data: where it must be, and where it can be and there is some."""
    signature = _signature(function, named)
    alone, both = _binds(signature, None), _binds(signature, None, None)
    if not alone and not both:
        raise UsageError(f"the metric {named} takes {signature}, and is called as (infer) or (infer, data).")
    return both and (there_is or not alone)


def _binds(signature: inspect.Signature, *arguments: object, **keywords: object) -> bool:
    try:
        signature.bind(*arguments, **keywords)
    except TypeError:
        return False
    return True


def _require_bindable(signature: inspect.Signature, named: str, sizes: Mapping[str, int]) -> None:
    if not _binds(signature, 0, **sizes):
        called = ", ".join(("seed", *(f"{dim}={size}" for dim, size in sizes.items())))
        raise UsageError(f"{named} takes {signature}, and is called as ({called}): let it take (seed, **sizes).")


def _number(value: Any, target: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError, RuntimeError) as error:  # RuntimeError: a tensor of several elements
        raise ModelError(
            f"the metric {target} returned a {type(value).__name__}: it must return one number."
        ) from error
    if not math.isfinite(number):
        raise ModelError(f"the metric {target} returned {number}: it must return a finite number.")
    return number


def _by_name(value: Any, inputs: Sequence[TensorSpec], named: str) -> dict[str, Array]:
    """What was returned, by name: a dict, the inputs in their order, or the only one.

    Unlike what ``examples.arrays`` takes, a dict may hold more, such as labels of any dtype, and nothing is nested.
    """
    from deploykit import examples

    if isinstance(value, Mapping):
        found = {str(name): _array(part, str(name), named) for name, part in value.items()}
    else:
        parts = value if isinstance(value, (tuple, list)) else (value,)
        names = [spec.name for spec in inputs]
        if len(parts) != len(names):
            raise UsageError(
                f"{named} returned {len(parts)} {'array' if len(parts) == 1 else 'arrays'}, and the model takes "
                f"{', '.join(map(str, inputs))}: return a dict of them by name, or all in order."
            )
        found = {name: _array(part, name, named) for name, part in zip(names, parts, strict=True)}
    examples.require_all(found, inputs, named)
    return found


def _array(value: Any, name: str, named: str) -> Array:
    import numpy as np

    if hasattr(value, "detach"):  # a tensor, without importing PyTorch to see that
        value = value.detach().cpu().numpy()
    if not isinstance(value, (np.ndarray, np.generic)):
        raise UsageError(f"{named} returned a {type(value).__name__} as {name}: return NumPy arrays.")
    return np.ascontiguousarray(value) if value.ndim else np.asarray(value)


def _require_fits(array: Array, spec: TensorSpec, sizes: Mapping[str, int], named: str) -> None:
    if str(array.dtype) != spec.dtype or array.shape != spec.shape(sizes):
        found = f"{spec.name}:{array.dtype}[{','.join(map(str, array.shape))}]"
        wanted = f"{spec.name}:{spec.dtype}[{','.join(map(str, spec.shape(sizes)))}]"
        raise UsageError(f"{named} returned {found}, and was asked for {wanted}.")
