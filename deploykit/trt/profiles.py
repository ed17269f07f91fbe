"""Shape profiles: for each input the smallest shape, the one that TensorRT tunes for, and the largest."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from deploykit.errors import UsageError
from deploykit.types import BATCH, TIME, DimRange, TensorSpec, dynamic_dims

if TYPE_CHECKING:
    Shape = tuple[int, ...]
    Shapes = tuple[Shape, Shape, Shape]
    Profile = Mapping[str, Shapes]
    Sizes = tuple[int, int, int]

#: What a dynamic dim's sizes are where nobody says: the smallest, the one tuned for, the largest.
SIZES: Mapping[str, Sizes] = {BATCH: (1, 1, 32), TIME: (1, 100, 1024)}
OTHER: Sizes = (1, 16, 256)
#: A range up to here was never given: it is what DimRange says of a dim that nobody bounded.
_UNBOUNDED = DimRange().high
_ENDS = ("smallest", "tuned", "largest")


def derive(
    texts: Sequence[str], inputs: Sequence[TensorSpec], dims: Mapping[str, DimRange]
) -> tuple[dict[str, Shapes], ...]:
    """One profile for each of ``texts``, or one of the model's dims where there are none.

    A text is ``x=1x1x40:1x100x40:16x400x40``: the smallest shape, the tuned one and the largest, or one for all three.
    ``batch=1:1:16`` gives the sizes of a dynamic dim. Several are parted by commas; inputs and dims that are left out
    follow from those given, by the names of their dims, then from ``dims``, then from ``SIZES``.

    Raises:
        UsageError: a text has another form, or sizes that the model does not take.
    """
    return tuple(_profile(text, inputs, dims) for text in texts or ("",))


def fits(profile: Profile, shapes: Mapping[str, Shape]) -> bool:
    """Whether every shape lies within the profile."""
    return all(
        name in profile
        and len(shape) == len(profile[name][0])
        and all(low <= size <= high for low, size, high in zip(profile[name][0], shape, profile[name][2], strict=True))
        for name, shape in shapes.items()
    )


def told(profile: Profile) -> str:
    """The profile as it is written on the command line; without scalars, which have one shape."""
    return ",".join(f"{name}={':'.join(map(_shape_text, shapes))}" for name, shapes in profile.items() if shapes[0])


def _profile(text: str, inputs: Sequence[TensorSpec], dims: Mapping[str, DimRange]) -> dict[str, Shapes]:
    given = _given(text, inputs)
    sizes: dict[str, Sizes] = {}
    by_name = {spec.name: spec for spec in inputs}
    for name, shapes in given.items():
        if name in by_name:
            _bind(by_name[name], shapes, sizes, text)
        elif any(len(shape) != 1 for shape in shapes):
            raise UsageError(f"{name} in --shapes {text!r} is one dim: give it one size, or three like {name}=1:4:16.")
        elif (known := (shapes[0][0], shapes[1][0], shapes[2][0])) != sizes.setdefault(name, known):
            raise UsageError(f"--shapes {text!r} gives the dim {name} two different sizes.")
    for name in dynamic_dims(inputs):
        sizes.setdefault(name, _default(name, dims.get(name, DimRange())))
        _check(name, sizes[name], dims.get(name, DimRange()), text)
    return {spec.name: _shapes(spec, sizes) for spec in inputs}


def _given(text: str, inputs: Sequence[TensorSpec]) -> dict[str, Shapes]:
    known = [*(spec.name for spec in inputs), *dynamic_dims(inputs)]
    found: dict[str, Shapes] = {}
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        name, equals, rest = part.rpartition("=")
        name = name.strip()
        if not equals:
            raise UsageError(f"cannot read {part!r} in --shapes: write it like x=1x1x40:1x100x40:16x400x40.")
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"it has {', '.join(known)}."
            raise UsageError(f"the model has no input and no dynamic dim {name!r}, which --shapes names: {hint}")
        if name in found:
            raise UsageError(f"--shapes {text!r} names {name} twice; a second profile is a second --shapes.")
        found[name] = _three(rest, part)
    return found


def _three(text: str, whole: str) -> Shapes:
    shapes = [_read(shape, whole) for shape in text.split(":")]
    if len(shapes) == 1:
        shapes *= 3
    if len(shapes) != 3:
        raise UsageError(f"{whole!r} in --shapes has {len(shapes)} shapes: give the smallest, the tuned, the largest.")
    if len({len(shape) for shape in shapes}) > 1:
        raise UsageError(f"the shapes in {whole!r} have different numbers of dims.")
    return shapes[0], shapes[1], shapes[2]


def _read(text: str, whole: str) -> Shape:
    parts = text.strip().lower().split("x")
    # Beyond 18 digits no size is one, and int() refuses those of a few thousand.
    if not all(part.strip().isdecimal() and len(part) <= 18 and int(part) > 0 for part in parts):
        raise UsageError(f"cannot read {text!r} in --shapes {whole!r}: a shape is positive sizes, like 16x400x40.")
    return tuple(int(part) for part in parts)


def _bind(spec: TensorSpec, shapes: Shapes, sizes: dict[str, Sizes], text: str) -> None:
    """Take the sizes of an input's dynamic dims from its shapes."""
    if any(len(shape) != len(spec.dims) for shape in shapes):
        raise UsageError(f"--shapes {text!r} gives {spec.name} {len(shapes[0])} dims, and the model takes {spec}.")
    for axis, dim in enumerate(spec.dims):
        found = (shapes[0][axis], shapes[1][axis], shapes[2][axis])
        if isinstance(dim, int):
            if set(found) != {dim}:
                raise UsageError(f"--shapes {text!r} gives {spec.name} other sizes than {spec} has: {dim} is fixed.")
        elif found != sizes.setdefault(dim, found):
            raise UsageError(f"--shapes {text!r} gives the dim {dim} two different sizes.")


def _default(name: str, bounds: DimRange) -> Sizes:
    low, tuned, high = SIZES.get(name, OTHER)
    if bounds.high != _UNBOUNDED:
        high = bounds.high
    low, high = bounds.low, max(high, bounds.low)
    return low, min(max(tuned, low), high), high


def _check(name: str, sizes: Sizes, bounds: DimRange, text: str) -> None:
    low, tuned, high = sizes
    if not low <= tuned <= high:
        raise UsageError(f"--shapes {text!r}: {name} must grow from the {', the '.join(_ENDS)}, and is {sizes}.")
    if low < bounds.low or high > bounds.high:
        raise UsageError(
            f"--shapes {text!r} lets {name} be {low} to {high}, and the model was exported for {bounds.low} to "
            f"{bounds.high}: stay within, or export again with --dim {name}={min(low, bounds.low)}:"
            f"{max(high, bounds.high)}."
        )


def _shapes(spec: TensorSpec, sizes: Mapping[str, Sizes]) -> Shapes:
    low, tuned, high = (spec.shape({name: three[end] for name, three in sizes.items()}) for end in range(3))
    return low, tuned, high


def _shape_text(shape: Shape) -> str:
    return "x".join(map(str, shape))
