"""From a zoo file and the command line's words to what the training loop takes: a module, a task and its metric.

A task that brings no data of its own is a class with ``DATA`` (what it reads, in words), ``OPTIONS`` (what ``open``
takes besides), ``BATCHING`` (the ways to make batches, its default first), ``OUTPUTS``, and
``open(data, *, batch, time, seed, batching, **options)``; its zoo file has ``build(layout)``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from deploykit import registry
from deploykit.errors import UnknownNameError, UsageError

if TYPE_CHECKING:
    from torch import nn

    from deploykit.types import Metric, ModelSpec

    from ._training import Recipe, Task

OWN_BATCHING = ("stream", "bucketed")  # of the tasks that bring their own text


@dataclass(frozen=True)
class Job:
    """A fresh module, the task to train it for, and what judges it.

    ``fingerprint`` tells the data, and ``judge`` what is worth knowing of the finished module besides the metric.
    """

    module: nn.Module
    task: Task[Any]
    metric: Metric
    outputs: tuple[str, ...] = ("logits",)
    fingerprint: str = ""
    judge: Callable[[nn.Module], Mapping[str, float]] = lambda _: {}


def zoo_module(name: str) -> ModuleType:
    """The zoo file of that name, which must have a recipe.

    Raises:
        UnknownNameError: there is no such file.
        UsageError: it has no recipe.
    """
    known = registry.zoo_names()
    if name not in known:
        raise UnknownNameError("model", name, known)
    module = import_module(f".{name.replace('-', '_')}", __package__)
    if not (hasattr(module, "TRAINING") and hasattr(module, "TASK")):
        raise UsageError(f"{name} has no recipe: give its file a TRAINING and a TASK, as models/charlm_gru.py has.")
    return module


def open_task(
    zoo: ModuleType,
    name: str,
    recipe: Recipe,
    seed: int,
    *,
    data: Path | None,
    batching: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Any:
    """The task of a model that needs data, on that data.

    Raises:
        UsageError: it needs none, none is given, an option is not for it, or the data cannot be read.
    """
    kind = zoo.TASK
    if not hasattr(kind, "DATA"):
        raise UsageError(f"{name} brings its own text and takes no data of yours: leave out --data.")
    if data is None:
        raise UsageError(f"{name} is trained on data that are not in the zoo: give --data, {kind.DATA}.")
    _require(name, options or {}, kind.OPTIONS)
    way = _batching(name, batching, kind.BATCHING)
    return kind.open(data, batch=recipe.batch, time=recipe.time, seed=seed, batching=way, **(options or {}))


def job(
    zoo: ModuleType,
    name: str,
    recipe: Recipe,
    seed: int,
    *,
    data: Path | None = None,
    batching: str | None = None,
    chunks: int = 1,
    options: Mapping[str, Any] | None = None,
) -> Job:
    """What to train. Seed torch before: the module's first weights are drawn here.

    Raises:
        UsageError: as ``open_task``, or the model's time cannot be cut into chunks, or it has no metric.
    """
    if chunks > 1 and not recipe.chunkable:
        raise UsageError(f"{name} looks back over all steps, so time cannot be cut: leave out --checkpoint-chunks.")
    if hasattr(zoo.TASK, "DATA") or data is not None:
        task = open_task(zoo, name, recipe, seed, data=data, batching=batching, options=options)
        return Job(zoo.build(task.layout), task, task.metric, zoo.TASK.OUTPUTS, task.fingerprint, task.judge)
    _require(name, options or {}, frozenset())
    spec: ModelSpec = zoo.spec()
    if spec.metric is None:
        raise UsageError(f"{name} has no metric to train for: give its spec one, as models/charlm_gru.py has.")
    way = _batching(name, batching, OWN_BATCHING)
    task = zoo.TASK(recipe.batch, recipe.time, seed, bucketed=way == "bucketed", chunks=chunks)
    return Job(spec.module, task, spec.metric)


def _require(name: str, options: Mapping[str, Any], known: frozenset[str]) -> None:
    for option in options:
        if option not in known:
            raise UsageError(
                f"{name} does not know --{option.replace('_', '-')}: it is for another task, leave it out."
            )


def _batching(name: str, wanted: str | None, ways: tuple[str, ...]) -> str:
    if wanted is not None and wanted not in ways:
        raise UsageError(f"{name} cannot make {wanted} batches: --batching may be {' or '.join(ways)} for it.")
    return wanted or ways[0]
