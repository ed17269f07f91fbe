"""Byte-level character language modelling: text, splits, sampler and metric of every ``charlm`` model.

The text is the source code of the running interpreter's standard library, so there is nothing to download. Held-out and
validation modules are fixed by name, and every Python from 3.11 on has them; none of them is ever trained on.
"""

from __future__ import annotations

import functools
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from deploykit.errors import ModelError, UsageError
from deploykit.types import DimRange, Metric, ModelSpec, TensorSpec

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import nn

    from deploykit.types import Array, Infer

    Bytes = npt.NDArray[np.uint8]

Split = Literal["train", "validation", "held-out"]

VOCABULARY = 256  # every byte is a character, so no text is out of vocabulary

HELD_OUT = (
    "argparse.py",
    "bisect.py",
    "calendar.py",
    "configparser.py",
    "dataclasses.py",
    "difflib.py",
    "fractions.py",
    "gettext.py",
    "heapq.py",
    "shlex.py",
    "statistics.py",
    "textwrap.py",
)
VALIDATION = (
    "cmd.py",
    "csv.py",
    "graphlib.py",
    "plistlib.py",
    "pprint.py",
    "smtplib.py",
    "tempfile.py",
    "uuid.py",
)

# Tests and generated tables are no ordinary code; the others are packages that Linux distributions install apart, or
# that left the standard library, so that two interpreters of one version train on nearly the same text.
EXCLUDED_FOLDERS = frozenset(
    {"site-packages", "dist-packages", "test", "tests", "idle_test", "idlelib", "turtledemo", "lib2to3", "ensurepip"}
    | {"encodings", "pydoc_data", "tkinter", "distutils", "venv", "lib-dynload", "__pycache__", "__phello__"}
)
EXCLUDED_FILES = ("_sysconfigdata*.py", "sitecustomize.py", "turtle.py", "_sysconfig_vars*.py")

WINDOWS, WINDOW = 64, 512  # what the metric scores: 32768 bytes
VALIDATION_WINDOWS = 32
EVALUATION_BATCH = 16


@functools.cache
def sources(split: Split) -> dict[str, bytes]:
    """The modules of a split: path below the standard library (``/`` between parts) to source text, in order of path.

    Raises:
        ModelError: this interpreter has no readable sources, as where its standard library is zipped.
    """
    folder = Path(sysconfig.get_path("stdlib"))
    if split == "train":
        apart = {*HELD_OUT, *VALIDATION}
        names = [name for name in _modules(folder) if name not in apart]
    else:
        names = list(HELD_OUT if split == "held-out" else VALIDATION)
    try:
        texts = {name: (folder / name).read_bytes().replace(b"\r\n", b"\n") for name in names}
    except OSError:
        texts = {}
    if not texts:
        raise ModelError(
            f"the standard library at {folder} has no source text, which the charlm models are trained and judged on: "
            "use a Python that is installed with its .py files."
        )
    return texts


@functools.cache
def text(split: Split) -> Bytes:
    """All modules of a split in order of path, one after another: uint8 [bytes]."""
    import numpy as np

    joined = np.frombuffer(b"".join(sources(split).values()), dtype=np.uint8)
    joined.flags.writeable = False
    return joined


def windows(split: Split, count: int, length: int) -> Bytes:
    """``count`` evenly spaced windows of a split: uint8 [count, length + 1], so that ``length`` bytes are predicted."""
    import numpy as np

    data = text(split)
    starts = np.linspace(0, len(data) - length - 1, count).astype(np.int64)
    chosen: Bytes = data[starts[:, None] + np.arange(length + 1)]
    return chosen


def sample(seed: int, *, batch: int, time: int) -> dict[str, Array]:
    """Held-out text from random places: ``{"text": int64 [batch, time]}``, the same for the same seed.

    Raises:
        UsageError: ``time`` is longer than the held-out text.
    """
    import numpy as np

    data = text("held-out")
    if time > len(data):
        raise UsageError(f"cannot sample {time} time steps: the held-out text has {len(data)} bytes.")
    starts = np.random.default_rng(seed).integers(0, len(data) - time + 1, batch)
    return {"text": data[starts[:, None] + np.arange(time)].astype(np.int64)}


def bits_per_character(infer: Infer, chosen: Bytes) -> float:
    """Mean of -log2 p(next byte) over every predicted byte of ``chosen``, uint8 [windows, length + 1].

    ``infer`` takes ``text`` int64 [batch, time] and returns ``logits`` [batch, time, 256]. Lower is better; 8 is what a
    uniform guess has. A NaN anywhere in the logits makes the result NaN.
    """
    import numpy as np

    bits = 0.0
    for part in _batches(chosen):
        logits = infer({"text": part[:, :-1]})["logits"].astype(np.float64)
        bits -= float(_log2_probability(logits, part[:, 1:]).sum())
    return bits / chosen[:, 1:].size


def evaluate(infer: Infer) -> float:
    """Bits per character on the metric's own windows of the held-out modules."""
    return bits_per_character(infer, windows("held-out", WINDOWS, WINDOW))


METRIC = Metric("bits_per_character", higher_is_better=False, evaluate=evaluate)


def charlm_spec(name: str, build: Callable[[], nn.Module], longest: int = 4096) -> ModelSpec:
    """The spec of a character language model ``[batch, time] -> [batch, time, 256]`` with fresh weights."""
    return ModelSpec(
        module=build().eval(),
        inputs=(TensorSpec("text", "int64", ("batch", "time")),),
        outputs=(TensorSpec("logits", "float32", ("batch", "time", VOCABULARY)),),
        sample=sample,
        name=name,
        dims={"time": DimRange(1, longest)},
        metric=METRIC,
    )


def _modules(folder: Path) -> Iterator[str]:
    for path in sorted(folder.rglob("*.py")):
        name = path.relative_to(folder)
        if not EXCLUDED_FOLDERS.intersection(name.parts) and not any(map(name.match, EXCLUDED_FILES)):
            yield name.as_posix()


def _batches(chosen: Bytes) -> Iterator[Array]:
    import numpy as np

    for start in range(0, len(chosen), EVALUATION_BATCH):
        yield chosen[start : start + EVALUATION_BATCH].astype(np.int64)


def _log2_probability(logits: Array, target: Array) -> Array:
    import numpy as np

    with np.errstate(invalid="ignore"):  # NaN and Inf go through to the result, which is how the caller learns of them
        shifted = logits - logits.max(axis=-1, keepdims=True)
        chosen = np.take_along_axis(shifted, target[..., None], axis=-1)[..., 0]
        result: Array = (chosen - np.log(np.exp(shifted).sum(axis=-1))) / np.log(2)
    return result
