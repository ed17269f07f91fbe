"""A training loop that knows nothing of its task: optimizer, schedule, clipping, carried state, log, resume.

A task (see ``Task``) brings the batches, the loss and the validation; a zoo file brings a ``Recipe``.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

import msgspec
import torch
from torch import Tensor, nn

from deploykit.errors import ModelError

from ._averaging import Average
from ._initialization import initialize_recurrent
from ._methods import parameter_groups
from ._run import Result, Run, State

if TYPE_CHECKING:
    from deploykit.types import Array, Feeds, Infer, Metric

BatchT = TypeVar("BatchT")


@dataclass(frozen=True)
class Recipe:
    """How a model is trained. ``lr`` is the peak rate, ``lr_scale`` factors on it by the beginning of parameter names.

    ``chunkable`` says that the model's ``stream`` computes the same when time is cut into chunks. Of so many
    ``validations``, evenly spaced, ``patience`` in a row without a better one end the training early; without it all
    steps are made. With ``average``, it is a moving average of the weights that is validated and kept, which forgets
    all but that share of itself in a step: 0.99 averages over some hundred steps.
    """

    steps: int
    batch: int
    time: int
    lr: float
    clip: float = 1.0
    warmup: float = 0.05
    weight_decay: float = 0.01
    # The recurrent layer's weights act once per time step, so that its gradient is the steepest: half the rate.
    lr_scale: Mapping[str, float] = field(default_factory=lambda: {"rnn": 0.5})
    chunkable: bool = True
    validations: int = 12
    patience: int | None = None
    average: float = 0.0


@dataclass(frozen=True)
class Step(Generic[BatchT]):
    """One batch. ``fresh`` says that the state of the batch before is of no use to it."""

    batch: BatchT
    fresh: bool


class Task(Protocol[BatchT]):
    """What the loop is told about a task."""

    def steps(self) -> Iterator[Step[BatchT]]:
        """Endless batches, the same each time they are asked for."""

    def loss(self, module: nn.Module, batch: BatchT, state: State) -> tuple[Tensor, int, State]:
        """Mean loss over the batch's targets, their number, and the state to carry on with."""

    def validate(self, module: nn.Module) -> float:
        """The number that chooses among checkpoints, lower is better."""

    def facts(self, metric: Metric) -> dict[str, str]:
        """What the weights file should tell besides: the baseline's number, the size of the data."""


def train(
    module: nn.Module,
    task: Task[BatchT],
    recipe: Recipe,
    *,
    folder: Path,
    amp: bool = False,
    resume: bool = False,
    validations: int | None = None,
    fingerprint: str = "",
    initialize: Callable[[nn.Module], None] = initialize_recurrent,
    report: Callable[[Mapping[str, float]], None] = lambda _: None,
) -> Result:
    """Train ``module`` in place for ``recipe.steps`` steps and return the best weights.

    ``folder`` gets ``log.jsonl``, a line per report, and ``checkpoint.pt``, from which ``resume`` goes on to the same
    weights as an uninterrupted run; ``fingerprint`` says of which data, and they must be the same then. Seed torch
    before building ``module``, whose first weights ``initialize`` gives.

    Raises:
        ModelError: a loss or every validation is NaN or infinite, or the CPU cannot train in bfloat16 (``amp``).
        WeightsError: there is no checkpoint to resume, or it is another model's or of other data.
        OutputError: a file cannot be written.
    """
    groups = parameter_groups(module, recipe.lr, lr_scale=recipe.lr_scale, weight_decay=recipe.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, 0.98))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, Schedule(recipe))
    average = Average(module, recipe.average) if recipe.average else None
    run = Run(folder / "checkpoint.pt", module, optimizer, scheduler, fingerprint, average)
    log = folder / "log.jsonl"
    if resume:
        run.load()
        cut_log(log, run.progress.step)
    else:
        initialize(module)
        if average is not None:
            average.load({"values": dict(module.named_parameters()), "updates": 0})
        log.unlink(missing_ok=True)
    every = max(1, recipe.steps // (validations or recipe.validations))
    module.train()
    began = time.perf_counter() - run.progress.seconds
    for step in islice(task.steps(), run.progress.step, recipe.steps):
        if recipe.patience is not None and run.progress.stale >= recipe.patience:
            break
        state = None if step.fresh else run.state
        loss, targets, state = _loss(task, module, step.batch, state, amp)
        norm = update(module, optimizer, loss, recipe.clip)
        scheduler.step()
        if average is not None:
            average.update()
        done = run.advance(targets, detach(state), time.perf_counter() - began)
        if not (math.isfinite(loss.item()) and math.isfinite(norm)):
            raise ModelError(f"the loss is not finite at step {done}: train again with a lower --lr or --clip.")
        record: dict[str, float] = {
            "step": done,
            "loss": loss.item(),
            "lr": optimizer.param_groups[0]["lr"],
            "grad_norm": norm,
            "targets_per_second": run.progress.targets / run.progress.seconds,
        }
        if done % every == 0 or done == recipe.steps:
            with nullcontext() if average is None else average.applied():
                record["validation"] = run.consider(validate(module, task))
            run.save()
            began = time.perf_counter() - run.progress.seconds  # neither validation nor saving is training
        if "validation" in record or done % 20 == 0 or done == 1:
            append_line(log, record)
        report(record)
    return run.result()


def _loss(task: Task[BatchT], module: nn.Module, batch: BatchT, state: State, amp: bool) -> tuple[Tensor, int, State]:
    try:
        with torch.autocast("cpu", torch.bfloat16, enabled=amp):
            return task.loss(module, batch, state)
    except RuntimeError as error:
        if not amp:
            raise
        reason = str(error).split(". ", maxsplit=1)[0]
        raise ModelError(f"this model does not train in bfloat16 on this CPU ({reason}): leave out --amp.") from error


def update(module: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor, clip: float) -> float:
    """One optimizer step with the gradient's norm clipped to ``clip``; returns the norm from before clipping."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    norm = nn.utils.clip_grad_norm_(module.parameters(), clip)
    optimizer.step()
    return float(norm)


def validate(module: nn.Module, task: Task[BatchT]) -> float:
    """The task's validation in evaluation mode, without gradients."""
    module.eval()
    try:
        with torch.no_grad():
            return task.validate(module)
    finally:
        module.train()


def detach(state: State) -> State:
    """The state without its history: where truncated back-propagation through time is truncated."""
    if isinstance(state, tuple):
        return tuple(detach(part) for part in state)
    return state.detach() if isinstance(state, Tensor) else state


def infer_with(module: nn.Module, outputs: Sequence[str] = ("logits",)) -> Infer:
    """A module as metrics call it: NumPy arrays by name in, which must be in its arguments' order, and out."""

    def infer(feeds: Feeds) -> dict[str, Array]:
        with torch.inference_mode():
            made = module(*map(torch.from_numpy, feeds.values()))
        parts = (made,) if isinstance(made, Tensor) else made
        return {name: part.float().numpy() for name, part in zip(outputs, parts, strict=True)}

    return infer


def cut_log(path: Path, step: int) -> None:
    """Drop what was logged after ``step``: a resumed run does those steps again."""
    if path.is_file():
        lines = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(b"".join(line for line in lines if msgspec.json.decode(line)["step"] <= step))


def append_line(path: Path, record: Mapping[str, float]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        file.write(msgspec.json.encode(record) + b"\n")


class Schedule:
    """Linear warm-up, then a cosine down to a twentieth of the peak."""

    def __init__(self, recipe: Recipe) -> None:
        self.steps = recipe.steps
        self.warmup = max(1, round(recipe.steps * recipe.warmup))

    def __call__(self, step: int) -> float:
        if step < self.warmup:
            return (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return 0.05 + 0.95 * (1 + math.cos(math.pi * min(1.0, done))) / 2
