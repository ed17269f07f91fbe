from __future__ import annotations

import platform
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import nn

from deploykit import registry, weights
from deploykit.types import ModelSpec
from models import _charlm
from models._training import infer_with
from models.family._attention import CausalAdditiveAttention

NAMES = ("charlm-gru", "charlm-gru-attention", "charlm-lstm", "charlm-rnn")


@pytest.fixture(params=NAMES)
def spec(request: pytest.FixtureRequest) -> ModelSpec:
    torch.manual_seed(0)
    return registry.zoo_model(request.param)


def test_the_zoo_has_the_four_and_the_default_is_one() -> None:
    assert set(NAMES) <= set(registry.zoo_names())
    assert registry.DEFAULT_MODEL in NAMES
    assert all(registry.zoo_summary(name).endswith(".") for name in NAMES)


@pytest.mark.parametrize(("batch", "time"), [(1, 1), (3, 2), (2, 37)])
def test_shapes_are_what_the_spec_says(spec: ModelSpec, batch: int, time: int) -> None:
    feeds = spec.feeds(0, batch=batch, time=time)
    logits = infer_with(spec.module)(feeds)["logits"]
    assert list(feeds) == [tensor.name for tensor in spec.inputs]
    assert logits.shape == spec.outputs[0].shape({"batch": batch, "time": time})
    assert logits.dtype == spec.outputs[0].dtype
    assert not spec.module.training


def test_what_comes_later_changes_nothing_before(spec: ModelSpec) -> None:
    text = torch.from_numpy(spec.feeds(0, batch=2, time=20)["text"])
    changed = text.clone()
    changed[:, 12:] = 255 - changed[:, 12:]
    with torch.no_grad():
        one, other = spec.module(text), spec.module(changed)
    torch.testing.assert_close(one[:, :12], other[:, :12])
    assert not torch.allclose(one[:, 12], other[:, 12])


def test_a_stream_in_two_parts_is_the_whole(spec: ModelSpec) -> None:
    if spec.name == "charlm-gru-attention":
        pytest.skip("its attention begins anew with each chunk")
    module: Any = spec.module
    text = torch.from_numpy(spec.feeds(0, batch=2, time=20)["text"])
    with torch.no_grad():
        first, state = module.stream(text[:, :7])
        second, _ = module.stream(text[:, 7:], state)
        torch.testing.assert_close(torch.cat((first, second), dim=1), module(text))


def test_attention_is_bahdanaus_by_hand() -> None:
    torch.manual_seed(0)
    attention = CausalAdditiveAttention(4, 3)
    h = torch.randn(1, 5, 4)
    expected = torch.zeros(5, 4)
    for t in range(5):
        scores = torch.stack(
            [attention.score(torch.tanh(attention.query(h[0, t]) + attention.key(h[0, s])))[0] for s in range(t + 1)]
        )
        expected[t] = torch.softmax(scores, 0) @ h[0, : t + 1]
    torch.testing.assert_close(attention(h)[0], expected)


def trained(name: str) -> tuple[ModelSpec, dict[str, str]]:
    path = registry.zoo_weights(name)
    if not path.is_file():
        pytest.skip(f"{path.name} is missing: train it with python -m models.train {name}")
    spec = registry.zoo_model(name)
    weights.fit(spec.module, weights.read_state(path), path)
    with safe_open(path, framework="pt") as file:
        return spec, file.metadata()


@pytest.mark.parametrize("name", NAMES)
def test_trained_weights_fit_and_tell_how_they_were_made(name: str) -> None:
    spec, facts = trained(name)
    assert registry.zoo_weights(name).stat().st_size < 5_000_000
    assert {"steps", "seed", "python", "torch", "train_bytes", "command", "validation_value"} <= facts.keys()
    assert (facts["model"], facts["metric"]) == (name, _charlm.METRIC.name)
    assert int(facts["parameters"]) == count(spec.module)
    assert facts["command"].startswith(f"python -m models.train {name}")


@pytest.mark.parametrize("name", NAMES)
def test_trained_weights_clearly_beat_three_bytes_of_context(name: str) -> None:
    _, facts = trained(name)
    assert float(facts["value"]) < float(facts["ngram_order3"]) - 0.25
    assert facts["baseline"] == facts["ngram_order3"]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_trained_weights_do_what_their_metadata_says(name: str) -> None:
    spec, facts = trained(name)
    assert spec.metric is not None
    value = spec.metric.evaluate(infer_with(spec.module))
    # Another Python has other held-out text, so there the number may differ, but not by much.
    same = facts["python"].rsplit(".", 1)[0] == platform.python_version().rsplit(".", 1)[0]
    assert value == pytest.approx(float(facts["value"]), abs=0.02 if same else 0.25)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
