"""The words deploykit is written in: tensors, dimensions, models and metrics."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from deploykit.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor, nn

    Array = npt.NDArray[Any]
    Feeds = Mapping[str, Array]
    Infer = Callable[[Feeds], dict[str, Array]]
    Sampler = Callable[..., dict[str, Array]]
    Call = Callable[[nn.Module, Sequence[Tensor]], Any]

#: The two dims that recurrent models are measured along; a model may name its dims otherwise, or have neither.
BATCH, TIME = "batch", "time"

DTYPES = ("float32", "float64", "float16", "int64", "int32", "int8", "uint8", "bool")

_TENSOR = re.compile(r"^\s*(?P<name>[^\s:\[\]]+?)\s*(:\s*(?P<dtype>\w+)\s*)?\[(?P<dims>[^\]]*)\]\s*$")
_RANGE = re.compile(r"^\s*(?P<name>[A-Za-z_]\w*)\s*=\s*(?P<low>\d+)\s*:\s*(?P<high>\d+)\s*$")


@dataclass(frozen=True)
class TensorSpec:
    """Name, dtype and dims of one input or output. A dim that is a name is dynamic; equal names are equal sizes."""

    name: str
    dtype: str
    dims: tuple[int | str, ...]

    @classmethod
    def parse(cls, text: str) -> TensorSpec:
        """Read ``x:float32[batch,time,40]``; the dtype is float32 when left out.

        Raises:
            UsageError: the text has another form, an unknown dtype, or a dim that is neither a name nor positive.
        """
        match = _TENSOR.match(text)
        if match is None:
            raise UsageError(f"cannot read the input {text!r}: write it like 'x:float32[batch,time,40]'.")
        dtype = match["dtype"] or "float32"
        if dtype not in DTYPES:
            raise UsageError(f"unknown dtype {dtype!r} in {text!r}: use one of {', '.join(DTYPES)}.")
        parts = match["dims"].split(",") if match["dims"].strip() else []
        dims = tuple(_dim(part.strip(), text) for part in parts)
        return cls(match["name"], dtype, dims)

    def __str__(self) -> str:
        return f"{self.name}:{self.dtype}[{','.join(map(str, self.dims))}]"

    @property
    def dynamic(self) -> tuple[str, ...]:
        """The names among the dims, in order."""
        return tuple(dim for dim in self.dims if isinstance(dim, str))

    def shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """The concrete shape where every dynamic dim has the size given for its name."""
        return tuple(sizes[dim] if isinstance(dim, str) else dim for dim in self.dims)


def _dim(text: str, whole: str) -> int | str:
    if text.isidentifier():
        return text
    if text.isdecimal() and int(text) > 0:
        return int(text)
    raise UsageError(f"cannot read the dim {text!r} in {whole!r}: a dim is a positive number or a name.")


@dataclass(frozen=True)
class DimRange:
    """Smallest and largest size that a dynamic dim may take, both inclusive."""

    low: int = 1
    high: int = 2**31 - 1

    def clamp(self, size: int) -> int:
        """The nearest size within the range."""
        return min(max(size, self.low), self.high)

    @staticmethod
    def parse(text: str) -> tuple[str, DimRange]:
        """Read ``time=1:4096`` into its name and range.

        Raises:
            UsageError: the text has another form, or the range is empty.
        """
        match = _RANGE.match(text)
        if match is None:
            raise UsageError(f"cannot read the dim range {text!r}: write it like 'time=1:4096'.")
        low, high = int(match["low"]), int(match["high"])
        if not 1 <= low <= high:
            raise UsageError(f"the dim range {text!r} is empty: it needs 1 <= low <= high.")
        return match["name"], DimRange(low, high)


@dataclass(frozen=True)
class Metric:
    """What a model is judged by in its own field.

    ``evaluate(infer)`` runs ``infer`` (feeds by input name to outputs by name) over the metric's own held-out data and
    returns one number. Every backend gets the same data, so the numbers compare.
    """

    name: str
    higher_is_better: bool
    evaluate: Callable[[Infer], float]


@dataclass(frozen=True)
class ValueRange:
    """The values that an integer input may hold, both ends inclusive.

    ``high`` may be a dim's name: its size. ``descending`` asks for them in falling order along the input's only axis:
    the lengths of sequences that PyTorch wants sorted.
    """

    low: int
    high: int | str
    descending: bool = False

    def top(self, sizes: Mapping[str, int]) -> int:
        """The largest value at these sizes of the dynamic dims."""
        return sizes[self.high] if isinstance(self.high, str) else self.high

    def within(self, values: Array, sizes: Mapping[str, int]) -> Array:
        """``values`` moved into the range and, where asked for, sorted; a row of full length among lengths."""
        import numpy as np

        held = np.clip(values, self.low, self.top(sizes))
        if isinstance(self.high, str) and held.size and held.ndim == 1:
            held[0] = self.top(sizes)
        return np.ascontiguousarray(np.sort(held)[::-1]) if self.descending else held


@dataclass(frozen=True)
class ModelSpec:
    """A module and what it takes: all that export, quantization and validation need to know.

    ``inputs`` are in the order of ``module.forward``'s arguments, unless ``call`` says how the module is called with
    tensors in that order: nested arguments, keywords, constants. ``outputs`` may be left empty: export then names
    them itself. ``sample(seed, **dims)`` returns plausible inputs by name for the given sizes of the dynamic dims;
    ``ranges`` holds what is known of the values of integer inputs, for models without a sample.
    """

    module: nn.Module
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...] = ()
    sample: Sampler | None = None
    name: str = "model"
    dims: Mapping[str, DimRange] = field(default_factory=dict)
    metric: Metric | None = None
    call: Call | None = None
    ranges: Mapping[str, ValueRange] = field(default_factory=dict)

    @property
    def dynamic(self) -> tuple[str, ...]:
        """Names of all dynamic dims, in order of first appearance."""
        return dynamic_dims(self.inputs)

    def feeds(self, seed: int, **sizes: int) -> dict[str, Array]:
        """Inputs by name: the model's own sample, or seeded noise where it has none."""
        if self.sample is not None:
            return self.sample(seed, **sizes)
        return noise(self.inputs, seed, sizes, self.ranges)

    @property
    def has_own_sample(self) -> bool:
        """Whether its inputs are a sample of its own, and no noise; a streaming model's are made of the plain one's."""
        plain: ModelSpec = getattr(self.module, "plain", self)
        return plain.sample is not None

    def run(self, tensors: Sequence[Tensor]) -> Any:
        """What the module returns for the tensors, which are in the order of ``inputs``."""
        return self.module(*tensors) if self.call is None else self.call(self.module, tensors)


def unknown_inputs(spec: ModelSpec) -> list[str]:
    """Inputs whose noise may well be senseless: integers and booleans of which nothing is known."""
    if spec.sample is not None:
        return []
    return [one.name for one in spec.inputs if not one.dtype.startswith("float") and one.name not in spec.ranges]


def dynamic_dims(inputs: Iterable[TensorSpec]) -> tuple[str, ...]:
    """Names of all dynamic dims, in order of first appearance."""
    return tuple(dict.fromkeys(dim for spec in inputs for dim in spec.dynamic))


def noise(
    inputs: Iterable[TensorSpec], seed: int, sizes: Mapping[str, int], ranges: Mapping[str, ValueRange] | None = None
) -> dict[str, Array]:
    """Seeded inputs by name: floats standard normal, integers from their range, or 0 and 1 where none is known."""
    import numpy as np

    generator = np.random.default_rng(seed)
    return {spec.name: _noise(generator, spec, sizes, (ranges or {}).get(spec.name)) for spec in inputs}


def _noise(
    generator: np.random.Generator, spec: TensorSpec, sizes: Mapping[str, int], values: ValueRange | None
) -> Array:
    import numpy as np

    shape = spec.shape(sizes)
    if spec.dtype.startswith("float"):
        return generator.standard_normal(shape).astype(spec.dtype)
    if values is None:
        return np.asarray(generator.integers(0, 2, shape)).astype(spec.dtype)
    drawn = generator.integers(values.low, values.top(sizes), shape, endpoint=True)
    return values.within(np.asarray(drawn), sizes).astype(spec.dtype)
