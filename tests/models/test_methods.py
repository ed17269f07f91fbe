"""Methods of training and sizing: each does what it says."""

from __future__ import annotations

import copy
import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deploykit.errors import ModelError
from models import family
from models._heads import Classifier, Forecaster, StepTagger
from models._initialization import gate_blocks, initialize_recurrent, recurrent_parameters
from models._methods import (
    buckets_by_length,
    checkpointed,
    hidden_size_for,
    masked_mean,
    padded,
    padding_share,
    parameter_groups,
    parameters,
)
from tests.models.test_family import HIDDEN, INPUT, NAMES, STREAMING, encoder


class Saved:
    """What is kept for the way back, each storage once; parameters and the input are there anyway."""

    def __init__(self, *besides: Tensor) -> None:
        self.besides = {tensor.untyped_storage().data_ptr() for tensor in besides}
        self.storages: dict[int, Tensor] = {}

    def keep(self, tensor: Tensor) -> Tensor:
        place = tensor.untyped_storage().data_ptr()
        if place not in self.besides:
            self.storages[place] = tensor  # held, so that no other gets its place
        return tensor

    @property
    def bytes(self) -> int:
        return sum(tensor.untyped_storage().nbytes() for tensor in self.storages.values())


def forward(net: Any, x: Tensor, chunks: int, monkeypatch: pytest.MonkeyPatch) -> tuple[int, Tensor]:
    """Bytes that wait for the way back, and the features.

    Autograd's hooks see what operators save; a checkpoint holds the arguments of its calls, which they do not see.
    """
    saved = Saved(x, *net.parameters())
    stream = net.stream

    def recorded(piece: Tensor, state: Any) -> Any:
        for tensor in [piece, *(state if isinstance(state, tuple) else () if state is None else (state,))]:
            saved.keep(tensor)
        return stream(piece, state)

    with monkeypatch.context() as patch, torch.autograd.graph.saved_tensors_hooks(saved.keep, lambda tensor: tensor):
        if chunks > 1:
            patch.setattr(net, "stream", recorded)
        features = checkpointed(net, x, chunks)
    return saved.bytes, features


def gradients(net: nn.Module, x: Tensor, features: Tensor) -> list[Tensor]:
    loss = (features * torch.linspace(-1, 1, features.numel()).view_as(features)).sum()
    return list(torch.autograd.grad(loss, [x, *net.parameters()]))


@pytest.mark.parametrize("name", STREAMING)
def test_checkpointing_lowers_peak_memory_and_changes_no_gradient(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    net = encoder(name, INPUT, 16, num_layers=2)
    x = torch.randn(3, 40, INPUT, requires_grad=True)
    plain, features = forward(net, x, 1, monkeypatch)
    kept, again = forward(net, x, 8, monkeypatch)
    # On the way back one piece at a time is there whole.
    piece, _ = forward(net, x[:, :5], 1, monkeypatch)
    assert 0 < kept < plain / 4
    assert kept + piece < plain / 2
    torch.testing.assert_close(again, features)
    for one, other in zip(gradients(net, x, features), gradients(net, x, again), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_checkpointing_drops_the_same_again_on_the_way_back() -> None:
    """Its gradient is that of the features it gave: found by asking for the same draws without checkpoints."""
    net: Any = encoder("stacked-gru", dropout=0.5).train()
    x = torch.randn(2, 12, INPUT, requires_grad=True)
    torch.manual_seed(7)
    first, state = net.stream(x[:, :6])
    plain = torch.cat((first, net.stream(x[:, 6:], state)[0]), dim=1)
    torch.manual_seed(7)
    features = checkpointed(net, x, 2)
    torch.testing.assert_close(features, plain)
    for one, other in zip(gradients(net, x, plain), gradients(net, x, features), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("name", sorted(set(NAMES) - set(STREAMING)))
def test_what_carries_no_state_cannot_be_cut(name: str) -> None:
    with pytest.raises(ModelError, match=f"^{name.replace('-', '_')} carries no state"):
        checkpointed(encoder(name), torch.zeros(1, 4, INPUT), 2)


@pytest.mark.parametrize("name", NAMES)
def test_recurrent_weights_of_every_architecture_begin_orthogonal(name: str) -> None:
    net = encoder(name, num_layers=2)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    initialize_recurrent(net)
    seen = 0
    for layer in net.modules():
        for key, value in recurrent_parameters(layer):
            if key.startswith("weight_hh"):
                for block in gate_blocks(layer, value):
                    torch.testing.assert_close(block @ block.T, torch.eye(HIDDEN), atol=1e-5, rtol=0)
                seen += 1
            if key.startswith("bias") and not isinstance(layer, nn.LSTM):
                assert not value.any()
    assert seen == (4 if name.startswith("bi") else 2)
    assert any(not torch.equal(value, before[key]) for key, value in net.state_dict().items())
    initialize_recurrent(net, orthogonal=False)
    for layer in net.modules():
        for key, value in recurrent_parameters(layer):
            if key.startswith("weight_hh"):
                assert not torch.allclose(value[:HIDDEN] @ value[:HIDDEN].T, torch.eye(HIDDEN), atol=0.1)
                assert value.abs().max() <= HIDDEN**-0.5 + 1e-6


@pytest.mark.parametrize("layer", [nn.LSTM(3, HIDDEN), nn.LSTMCell(3, HIDDEN), encoder("bilstm")])
@pytest.mark.parametrize("bias", [0.0, 1.0, 2.0])
def test_the_forget_gates_bias_is_what_is_asked_for(layer: nn.Module, bias: float) -> None:
    initialize_recurrent(layer, forget_bias=bias)
    layer = layer.rnn if isinstance(layer, family.Recurrent) else layer  # type: ignore[assignment]
    biases = dict(recurrent_parameters(layer))
    own = [key for key in biases if key.startswith("bias_ih")]
    for key in own:
        together = biases[key] + biases[key.replace("_ih", "_hh")]
        assert torch.equal(gate_blocks(layer, together)[1], torch.full((HIDDEN,), bias))
        assert together.sum() == bias * HIDDEN
    assert len(own) in (1, 2)


def groups_of(module: nn.Module, **options: Any) -> dict[str, dict[str, Any]]:
    groups = parameter_groups(module, 0.1, **options)
    of = {id(parameter): group for group in groups for parameter in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(of) == len(list(module.parameters()))
    return {name: of[id(parameter)] for name, parameter in module.named_parameters()}


def test_layers_have_their_own_rates_by_the_longest_name_that_fits() -> None:
    module = StepTagger(encoder("gru-attention"), 9, 4)
    rates = {"encoder": 0.5, "encoder.rnn": 0.25, "embedding": 2.0, "hea": 9.0}
    found = groups_of(module, lr_scale=rates)
    assert found["encoder.rnn.weight_hh_l0"]["lr"] == pytest.approx(0.025)
    assert found["encoder.combine.weight"]["lr"] == pytest.approx(0.05)
    assert found["embedding.weight"]["lr"] == pytest.approx(0.2)
    assert found["head.bias"]["lr"] == pytest.approx(0.1)
    assert {group["lr"] for group in groups_of(module).values()} == {0.1}


def test_a_layers_rate_is_how_far_it_goes() -> None:
    module = Forecaster(encoder("gru"), 1)
    before = copy.deepcopy(module.state_dict())
    optimizer = torch.optim.SGD(parameter_groups(module, 0.1, lr_scale={"encoder": 0.0}))
    module(torch.randn(4, 5, INPUT)).sum().backward()
    optimizer.step()
    same = {key: torch.equal(value, before[key]) for key, value in module.state_dict().items()}
    assert all(unmoved is key.startswith("encoder") for key, unmoved in same.items())


@pytest.mark.parametrize("name", NAMES)
def test_only_matrices_decay(name: str) -> None:
    module = StepTagger(encoder(name), 9, 9, tied=True)
    found = groups_of(module, weight_decay=0.01)
    decaying = {key for key, group in found.items() if group["weight_decay"]}
    for key, parameter in module.named_parameters():
        told = "bias" in key or "embedding" in key or "norm" in key or key.endswith("original0") or parameter.ndim == 1
        assert (key in decaying) is not told, key
    assert any("hh" in key for key in decaying)
    assert not any(group["weight_decay"] for group in groups_of(module).values())


def lengths_of(count: int) -> list[int]:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(2, 60, (count,), generator=generator).tolist()


def test_bucketing_lowers_padding_and_keeps_every_row_once() -> None:
    lengths = lengths_of(500)
    found = buckets_by_length(lengths, 16, seed=0)
    assert sorted(place for batch in found for place in batch) == list(range(500))
    assert sorted(map(len, found)) == [4, *[16] * 31]
    order = torch.randperm(500, generator=torch.Generator().manual_seed(0)).tolist()
    by_chance = [order[low : low + 16] for low in range(0, 500, 16)]
    assert padding_share(lengths, found) < padding_share(lengths, by_chance) / 3
    assert padding_share([2, 4], [[0, 1]]) == 0.25


def test_buckets_are_seeded_and_in_random_order() -> None:
    lengths = lengths_of(300)
    one, same, other = (buckets_by_length(lengths, 10, seed) for seed in (1, 1, 2))
    assert one == same
    assert sorted(map(sorted, one)) != sorted(map(sorted, other))  # not the same rows meet again
    longest = [max(lengths[place] for place in batch) for batch in one]
    falls = sum(after < before for before, after in pairwise(longest))
    assert len(longest) / 4 < falls < len(longest) * 3 / 4


def test_padding_has_no_part_in_the_loss() -> None:
    rows = [torch.randn(time, INPUT) for time in (3, 7, 1)]
    for value in (0.0, 5.0):
        x, lengths, mask = padded(rows, value)
        assert x.shape == (3, 7, INPUT)
        assert lengths.tolist() == mask.sum(1).tolist() == [3, 7, 1]
        assert torch.equal(x[0, 3:], torch.full((4, INPUT), value))
        net = encoder("bigru")
        loss = masked_mean(net(x, lengths).square().mean(2), mask)
        alone = [net(row.unsqueeze(0)).square().mean(2).sum() for row in rows]
        torch.testing.assert_close(loss, torch.stack(alone).sum() / 11)


def test_a_tensor_in_two_places_counts_once() -> None:
    net = StepTagger(encoder("gru", 8, 8), 20, 20, tied=True)
    rest = parameters(net.encoder) + 20
    assert parameters(net) == rest + 20 * 8
    assert parameters(StepTagger(encoder("gru", 8, 8), 20, 20)) == rest + 2 * 20 * 8


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("budget", [3_000, 100_000])
def test_the_hidden_size_is_the_largest_within_the_budget(name: str, budget: int) -> None:
    def build(hidden: int) -> nn.Module:
        return Classifier(family.encoder(name)(16, hidden), 30, 4)

    hidden = hidden_size_for(build, budget)
    assert parameters(build(hidden)) <= budget < parameters(build(hidden + 1))
    assert parameters(build(hidden)) > 0.85 * budget
    # What it was counted on had no memory, and the module that is made then has.
    assert all(parameter.device.type == "cpu" for parameter in build(hidden).parameters())


def test_a_budget_that_nothing_meets_is_refused() -> None:
    with pytest.raises(ModelError, match="even a hidden size of 1 has 483 parameters, above 100"):
        hidden_size_for(lambda hidden: nn.Sequential(nn.Linear(60, 8 * hidden - 1), nn.Linear(7 * hidden, 7)), 100)


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"lstm", "bilstm"}))
def test_autocast_computes_in_bfloat16_and_keeps_the_weights(name: str) -> None:
    """LSTMs are left out: PyTorch trains them in bfloat16 only where the CPU can."""
    net = Forecaster(encoder(name), 2)
    x = torch.randn(3, 6, INPUT)
    with torch.no_grad():
        expected = net(x)
    with torch.autocast("cpu", torch.bfloat16):
        y = net(x)
    y.float().square().sum().backward()
    assert y.dtype == torch.bfloat16
    assert all(parameter.dtype == torch.float32 for parameter in net.parameters())
    assert all(parameter.grad is not None and parameter.grad.dtype == torch.float32 for parameter in net.parameters())
    error = (y.detach().float() - expected).norm() / expected.norm()
    assert 0 < float(error) < 0.05
    assert math.isfinite(float(error))
