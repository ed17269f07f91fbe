from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from deploykit.errors import ModelError, WeightsError
from deploykit.types import Metric
from models._averaging import Average
from models._methods import parameter_groups
from models._run import Result, State
from models._training import Recipe, Schedule, Step, detach, train, update

RECIPE = Recipe(steps=12, batch=2, time=5, lr=1e-2)


class Counter(nn.Module):
    """A recurrent model of no zoo."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(4, 3)
        self.rnn = nn.LSTM(3, 6, num_layers=2, dropout=0.3)
        self.head = nn.Linear(6, 1)


@dataclass(frozen=True)
class Sums:
    """Running sums, to learn by regression: another task than the zoo's."""

    validation: float | None = None
    scale: float = 1.0

    def steps(self) -> Iterator[Step[Tensor]]:
        generator = torch.Generator().manual_seed(0)
        for number in range(10**6):
            yield Step(torch.randint(0, 4, (5, 2), generator=generator), fresh=number % 4 == 0)

    def loss(self, module: nn.Module, batch: Tensor, state: State) -> tuple[Tensor, int, State]:
        assert isinstance(module, Counter)
        y, state = module.rnn(module.embedding(batch), state)
        errors = module.head(y)[..., 0] - batch.cumsum(0)
        return self.scale * errors.square().mean(), batch.numel(), state

    def validate(self, module: nn.Module) -> float:
        assert not module.training
        return (
            float(self.loss(module, torch.ones(5, 2, dtype=torch.int64), None)[0])
            if self.validation is None
            else self.validation
        )

    def facts(self, metric: Metric) -> dict[str, str]:
        return {}


def fit(folder: Path, task: Sums | None = None, recipe: Recipe = RECIPE, *, resume: bool = False) -> Result:
    torch.manual_seed(1)
    return train(Counter(), task or Sums(), recipe, folder=folder, resume=resume, validations=4)


def test_training_lowers_the_loss_and_logs_it(tmp_path: Path) -> None:
    result = fit(tmp_path, recipe=replace(RECIPE, steps=80))
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 20, 40, 60, 80]
    assert all(line.keys() >= {"loss", "lr", "grad_norm", "targets_per_second"} for line in lines)
    assert lines[-1]["validation"] < lines[1]["validation"] / 2
    assert result.validation == min(line.get("validation", math.inf) for line in lines)


def test_the_best_weights_win_not_the_last(tmp_path: Path) -> None:
    class Worsening(Sums):
        seen: list[dict[str, Tensor]] = []  # noqa: RUF012

        def validate(self, module: nn.Module) -> float:
            self.seen.append({name: value.clone() for name, value in module.state_dict().items()})
            return [3.0, 1.0, 2.0, 4.0][len(self.seen) - 1]

    result = fit(tmp_path, Worsening())
    assert (result.validation, result.step) == (1.0, 6)
    assert all(torch.equal(value, Worsening.seen[1][name]) for name, value in result.weights.items())


def test_a_resumed_run_ends_in_the_same_weights(tmp_path: Path) -> None:
    class Interrupted(Sums):
        def steps(self) -> Iterator[Step[Tensor]]:
            for number, step in enumerate(super().steps()):
                if number == 8:
                    raise KeyboardInterrupt
                yield step

    whole = fit(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "resumed", Interrupted())
    resumed = fit(tmp_path / "resumed", resume=True)
    assert all(torch.equal(value, resumed.weights[name]) for name, value in whole.weights.items())
    logs = [(tmp_path / name / "log.jsonl").read_text().splitlines() for name in ("whole", "resumed")]
    steps, losses = ([[json.loads(line)[key] for line in log] for log in logs] for key in ("step", "loss"))
    assert steps[0] == steps[1]
    assert losses[0] == losses[1]


def test_an_average_is_validated_and_resumed_and_training_goes_on_without_it(tmp_path: Path) -> None:
    class Interrupted(Sums):
        def steps(self) -> Iterator[Step[Tensor]]:
            yield from islice(super().steps(), 8)
            raise KeyboardInterrupt

    averaging = replace(RECIPE, average=0.9)
    whole = fit(tmp_path / "whole", recipe=averaging)
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "resumed", Interrupted(), averaging)
    resumed = fit(tmp_path / "resumed", recipe=averaging, resume=True)
    assert all(torch.equal(value, resumed.weights[name]) for name, value in whole.weights.items())
    plain = fit(tmp_path / "plain")
    logs = [(tmp_path / name / "log.jsonl").read_text().splitlines() for name in ("whole", "plain")]
    averaged, own = ([json.loads(line) for line in log] for log in logs)
    assert [line["loss"] for line in averaged] == [line["loss"] for line in own]
    assert whole.validation != plain.validation


def test_the_average_by_hand() -> None:
    module = nn.Linear(1, 1, bias=False)
    average = Average(module, 0.5)
    seen = []
    for value in (1.0, 2.0, 4.0):
        nn.init.constant_(module.weight, value)
        average.update()
        seen.append(average.values["weight"].item())
    first = Average(nn.Linear(1, 1, bias=False), 0.5)
    assert first.updates == 0
    assert seen[2] == pytest.approx(seen[1] + (4.0 - seen[1]) * (1 - 3 / 13))
    with average.applied():
        assert module.weight.item() == pytest.approx(seen[2])
    assert module.weight.item() == 4.0


def test_there_must_be_a_checkpoint_to_resume(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="without --resume"):
        fit(tmp_path, resume=True)


def test_another_models_checkpoint_is_refused(tmp_path: Path) -> None:
    fit(tmp_path)
    with pytest.raises(WeightsError, match="not a checkpoint of this model"):
        train(nn.LSTM(2, 2), Sums(), RECIPE, folder=tmp_path, resume=True)


def test_a_loss_that_is_not_finite_ends_the_training(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="not finite at step 1"):
        fit(tmp_path, Sums(scale=math.inf))


def test_a_cpu_without_bfloat16_is_one_sentence_and_other_errors_stay(tmp_path: Path) -> None:
    class Unable(Sums):
        def loss(self, module: nn.Module, batch: Tensor, state: State) -> tuple[Tensor, int, State]:
            raise RuntimeError("could not create a primitive. Run with VERBOSE=all.")

    with pytest.raises(ModelError, match=r"\(could not create a primitive\): leave out --amp"):
        train(Counter(), Unable(), RECIPE, folder=tmp_path, amp=True)
    with pytest.raises(RuntimeError, match="VERBOSE"):
        train(Counter(), Unable(), RECIPE, folder=tmp_path)


def test_a_validation_that_is_never_a_number_ends_the_training(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="never a number"):
        fit(tmp_path, Sums(validation=math.nan))


@pytest.mark.parametrize("clip", [1e-3, 0.5, 1e9])
def test_clipping_bounds_the_norm(clip: float) -> None:
    torch.manual_seed(0)
    module = nn.Linear(3, 3)
    optimizer = torch.optim.SGD(module.parameters(), lr=0)
    norm = update(module, optimizer, (100 * module(torch.ones(4, 3))).square().sum(), clip)
    after = torch.stack(
        [parameter.grad.norm() for parameter in module.parameters() if parameter.grad is not None]
    ).norm()
    assert norm > 10
    assert after.item() == pytest.approx(min(norm, clip), rel=1e-4)


def test_layers_have_their_own_rates_and_only_matrices_decay() -> None:
    module = Counter()
    groups = parameter_groups(module, RECIPE.lr, lr_scale=RECIPE.lr_scale, weight_decay=RECIPE.weight_decay)
    of = {id(parameter): group for group in groups for parameter in group["params"]}
    assert len(of) == len(list(module.parameters()))
    assert of[id(module.rnn.weight_hh_l0)]["lr"] == RECIPE.lr / 2
    assert of[id(module.head.weight)]["lr"] == RECIPE.lr
    assert of[id(module.head.weight)]["weight_decay"] > 0
    assert of[id(module.head.bias)]["weight_decay"] == of[id(module.embedding.weight)]["weight_decay"] == 0


def test_the_rate_rises_and_then_falls_to_a_twentieth() -> None:
    schedule = Schedule(replace(RECIPE, steps=100, warmup=0.1))
    rates = [schedule(step) for step in range(101)]
    assert rates[:10] == pytest.approx([number / 10 for number in range(1, 11)])
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert rates[100] == pytest.approx(0.05)


def test_states_of_any_form_lose_their_history() -> None:
    tensor = torch.ones(1, requires_grad=True) * 2
    hidden, (cell, nothing) = detach((tensor, (tensor, None)))
    assert not hidden.requires_grad
    assert not cell.requires_grad
    assert nothing is None
