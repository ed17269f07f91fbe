"""The recurrent family: what each architecture promises, and each one's way through export, int8 and validation."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from deploykit import weights
from deploykit.artifact import Artifact, ModelRef
from deploykit.bench import accuracy
from deploykit.bench.tolerance import tolerance
from deploykit.coverage import RECURRENT
from deploykit.errors import ModelError, UnknownNameError
from deploykit.export import export
from deploykit.quantize import quantize
from deploykit.runtime import session
from models import family
from models._heads import Classifier, StepTagger
from tests.export.agree import operators
from tests.models import forms

NAMES = family.names()
CAUSAL = [name for name in NAMES if family.encoder(name).causal]
STREAMING = [name for name in NAMES if issubclass(family.encoder(name), family.Streaming)]
INPUT, HIDDEN = 4, 6
#: Whose loop over steps is a Scan, which is slow to export.
LOOPED = {"layernorm-gru"}


def encoder(name: str, input_size: int = INPUT, hidden_size: int = HIDDEN, **options: Any) -> family.Recurrent:
    torch.manual_seed(0)
    return family.encoder(name)(input_size, hidden_size, **options).eval()


def test_the_family_is_whole() -> None:
    assert set(NAMES) >= {"rnn-tanh", "rnn-relu", "lstm", "gru", "bigru", "bilstm", "stacked-gru", "layernorm-gru"}
    assert set(NAMES) >= {"weightnorm-gru", "gru-attention", "gru-selfattention", "tied-rnn", "tied-gru"}
    assert set(NAMES) - set(CAUSAL) == {"bigru", "bilstm"}
    assert set(CAUSAL) - set(STREAMING) == {"gru-attention", "gru-selfattention"}
    with pytest.raises(UnknownNameError, match="'lstm'"):
        family.encoder("lstn")


@pytest.mark.parametrize("name", NAMES)
def test_one_line_says_what_it_is(name: str) -> None:
    assert family.summary(name).endswith(".")
    assert ":" in family.summary(name)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "dropout": 0.5}], ids=["one", "two"])
def test_shapes_gradients_and_dropout(name: str, options: dict[str, Any]) -> None:
    net = encoder(name, **options)
    x = torch.randn(3, 5, INPUT)
    features = net(x)
    assert features.shape == (3, 5, net.output_size)
    assert net.summary(features).shape == (3, net.output_size)
    assert torch.equal(net(x), features)
    features.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters() if p.numel() > 1)
    dropped = options or name == "stacked-gru"
    assert torch.equal(net.train()(x), features) is not bool(dropped)


def test_what_attention_adds_drops_out_with_one_layer_too() -> None:
    net = encoder("gru-selfattention", dropout=0.5).train()
    x = torch.randn(2, 5, INPUT)
    assert not torch.equal(net(x), net(x))


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_saved_and_fit_again(name: str, tmp_path: Path) -> None:
    net = StepTagger(encoder(name, num_layers=2), 11, 11, tied=True)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1)
    path = tmp_path / "net.safetensors"
    save_file(net.state_dict(), path)
    other = StepTagger(encoder(name, num_layers=2), 11, 11, tied=True).eval()
    weights.fit(other, weights.read_state(path), path)
    text = torch.randint(0, 11, (2, 5))
    torch.testing.assert_close(other(text), net.eval()(text))


@pytest.mark.parametrize("name", NAMES)
def test_later_steps_change_nothing_before_where_it_is_causal(name: str) -> None:
    net = encoder(name)
    x = torch.randn(2, 9, INPUT)
    changed = x.clone()
    changed[:, 5:] += 1
    with torch.no_grad():
        one, other = net(x), net(changed)
    assert not torch.allclose(one[:, 5], other[:, 5])
    assert torch.allclose(one[:, :5], other[:, :5], atol=1e-6) is net.causal


@pytest.mark.parametrize("name", NAMES)
def test_padding_does_not_matter(name: str) -> None:
    net = encoder(name)
    lengths = torch.tensor([3, 7, 1])
    x = torch.randn(3, 7, INPUT)
    other = x.clone()
    for row, length in zip(other, lengths, strict=True):
        row[length:] = 9.0
    with torch.no_grad():
        one, two = net(x, lengths), net(other, lengths)
        torch.testing.assert_close(net.summary(one, lengths), net.summary(two, lengths))
        for index, length in enumerate(lengths.tolist()):
            alone = net(x[index : index + 1, :length])
            torch.testing.assert_close(one[index, :length], alone[0])
            torch.testing.assert_close(two[index, :length], alone[0])
            torch.testing.assert_close(net.summary(one, lengths)[index], net.summary(alone)[0])


@pytest.mark.parametrize("name", STREAMING)
def test_a_stream_in_pieces_is_the_whole(name: str) -> None:
    net: Any = encoder(name, num_layers=2)
    x = torch.randn(2, 9, INPUT)
    with torch.no_grad():
        state, pieces = None, []
        for piece in torch.split(x, [4, 1, 4], dim=1):
            features, state = net.stream(piece, state)
            pieces.append(features)
        torch.testing.assert_close(torch.cat(pieces, dim=1), net(x))


@pytest.mark.parametrize("name", ["bigru", "bilstm"])
def test_both_ways_are_summed_up_where_each_has_seen_the_row(name: str) -> None:
    net: Any = encoder(name)
    x, lengths = torch.randn(2, 6, INPUT), torch.tensor([4, 6])
    with torch.no_grad():
        found = net.summary(net(x, lengths), lengths)
        for index, length in enumerate(lengths.tolist()):
            last = net.rnn(x[index : index + 1, :length])[1]
            last = last[0] if isinstance(last, tuple) else last
            torch.testing.assert_close(found[index], last[:, 0].flatten())


def test_a_stack_has_two_layers() -> None:
    with pytest.raises(ModelError, match="take gru for one"):
        family.encoder("stacked-gru")(INPUT, HIDDEN, num_layers=1)


def test_layer_norm_is_ba_and_others_by_hand() -> None:
    net: Any = encoder("layernorm-gru")
    for parameter in net.parameters():
        nn.init.normal_(parameter)
    layer = net.layers[0]
    x, h = torch.randn(2, INPUT), torch.randn(2, HIDDEN)

    def normalized(value: Tensor, norm: nn.LayerNorm) -> Tensor:
        centred = value - value.mean(1, keepdim=True)
        return centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt() * norm.weight + norm.bias

    of_x, of_h = x @ layer.weight_ih_l0.T, h @ layer.weight_hh_l0.T
    gates = normalized(of_x[:, : 2 * HIDDEN], layer.gates_x) + normalized(of_h[:, : 2 * HIDDEN], layer.gates_h)
    z, r = gates.sigmoid()[:, :HIDDEN], gates.sigmoid()[:, HIDDEN:]
    n = torch.tanh(normalized(of_x[:, 2 * HIDDEN :], layer.new_x) + r * normalized(of_h[:, 2 * HIDDEN :], layer.new_h))
    found, _ = net.stream(x.unsqueeze(1), h.unsqueeze(0))
    torch.testing.assert_close(found[:, 0], (1 - z) * h + z * n)


def test_weight_norm_trains_lengths_and_directions() -> None:
    net: Any = encoder("weightnorm-gru")
    plain: Any = encoder("gru")
    x = torch.randn(2, 5, INPUT)
    plain.rnn.load_state_dict({name: getattr(net.rnn, name) for name in plain.rnn.state_dict()})
    torch.testing.assert_close(net(x), plain(x))
    kept = net.rnn.parametrizations.weight_hh_l0
    torch.testing.assert_close(kept.original0, net.rnn.weight_hh_l0.norm(dim=1, keepdim=True))
    with torch.no_grad():
        before = net(x)
        kept.original1.mul_(3)  # a direction has no length
        torch.testing.assert_close(net(x), before)
        kept.original0.mul_(3)
        assert not torch.allclose(net(x), before)


@pytest.mark.parametrize(("name", "kind"), [("tied-rnn", nn.RNN), ("tied-gru", nn.GRU)])
def test_tied_weights_are_one_matrix(name: str, kind: type[nn.RNN | nn.GRU]) -> None:
    net: Any = encoder(name, HIDDEN, HIDDEN)
    own = net.layers[0]
    nn.init.normal_(own.bias_ih_l0)
    plain = kind(HIDDEN, HIDDEN, batch_first=True)
    plain.load_state_dict({**own.state_dict(), "weight_ih_l0": own.weight_hh_l0})
    x = torch.randn(2, 5, HIDDEN)
    torch.testing.assert_close(net(x), plain(x)[0])
    recurrent = sum(weight.numel() for key, weight in plain.named_parameters() if key.startswith("weight_hh"))
    assert sum(p.numel() for p in plain.parameters()) - sum(p.numel() for p in net.parameters()) == recurrent
    assert encoder(name, INPUT, HIDDEN)(torch.randn(2, 5, INPUT)).shape == (2, 5, HIDDEN)


def test_self_attention_is_pytorchs() -> None:
    net: Any = encoder("gru-selfattention", INPUT, 8)
    x = torch.randn(2, 7, INPUT)
    h, _ = net.rnn(x)
    reference = nn.MultiheadAttention(8, 4, batch_first=True)
    own = net.attention
    reference.load_state_dict(
        {
            "in_proj_weight": own.query_key_value.weight,
            "in_proj_bias": own.query_key_value.bias,
            "out_proj.weight": own.out.weight,
            "out_proj.bias": own.out.bias,
        }
    )
    mask = torch.ones(7, 7, dtype=torch.bool).triu(1)
    expected = F.layer_norm(h + reference(h, h, h, attn_mask=mask)[0], (8,), net.norm.weight, net.norm.bias)
    torch.testing.assert_close(net(x), expected)


def test_a_tied_head_has_the_embeddings_weights() -> None:
    net = StepTagger(encoder("gru", HIDDEN, HIDDEN), 11, 11, tied=True)
    text = torch.randint(0, 11, (2, 5))
    features = net.encoder(net.embedding(text))
    torch.testing.assert_close(net(text), features @ net.embedding.weight.T + net.head.bias)
    assert sorted(name for name in net.state_dict() if "encoder" not in name) == ["embedding.weight", "head.bias"]
    with pytest.raises(ModelError, match=r"11, not of 3 classes: leave out tied\."):
        StepTagger(encoder("gru"), 11, 3, tied=True)


@pytest.mark.parametrize("name", CAUSAL)
def test_a_tagger_streams_or_begins_anew(name: str) -> None:
    net = StepTagger(encoder(name), 11, 3).eval()
    text = torch.randint(0, 11, (2, 8))
    with torch.no_grad():
        first, state = net.stream(text[:, :5])
        second, _ = net.stream(text[:, 5:], state)
        torch.testing.assert_close(first, net(text[:, :5]))
        torch.testing.assert_close(second, net(text)[:, 5:] if name in STREAMING else net(text[:, 5:]))


@pytest.mark.parametrize("name", NAMES)
def test_a_row_is_classified_whatever_its_batch(name: str) -> None:
    net = Classifier(encoder(name), 11, 3).eval()
    text, lengths = torch.randint(0, 11, (3, 7)), torch.tensor([2, 7, 4])
    with torch.no_grad():
        together = net(text, lengths)
        for index, length in enumerate(lengths.tolist()):
            alone = net(text[index : index + 1, :length], lengths[index : index + 1])
            torch.testing.assert_close(together[index], alone[0])


def _ways() -> list[Any]:
    """Every architecture in every task's form; of those that are slow, all but one are marked so."""
    able = [(name, form) for name in NAMES for form in ("tagger", "classifier", "forecaster")]
    return [
        pytest.param(name, form, marks=[pytest.mark.slow] if name in LOOPED and form != "classifier" else [])
        for name, form in [*able, ("gru", "tied"), ("tied-gru", "tied"), ("gru-selfattention", "tied")]
        if name in CAUSAL or form != "tagger"
    ]


@pytest.mark.parametrize(("name", "form"), _ways())
def test_export_int8_and_validation(name: str, form: str, tmp_path: Path) -> None:
    ref = ModelRef(f"tests.models.forms:{name.replace('-', '_')}__{form}")
    made = export(ref, tmp_path / "float.onnx")
    assert made.verification is not None
    assert made.verification["verified"] is True
    assert made.inputs[0].dims[:2] == ("batch", "time")
    found = Counter(operators(onnx.load(made.path).graph))
    assert not {"Loop", "If"} & set(found)
    kinds = [kind for kind in (*RECURRENT, "Scan") if found[kind]]
    assert len(kinds) == 1
    assert (kinds == ["Scan"]) is (name in LOOPED)
    assert_agrees(made, name, form)

    quantized = quantize(made, tmp_path / "int8.onnx", prefer="int8")
    assert quantized.verification is not None
    assert quantized.verification["verified"] is True
    assert quantized.verification["kept_float"] == []
    assert quantized.coverage is not None
    assert not quantized.coverage.recurrent_left
    assert any(row.became == "int8" for row in quantized.coverage.rows)
    assert_agrees(quantized, name, form)


def assert_agrees(made: Artifact, name: str, form: str) -> None:
    """Within bench's tolerance of that precision, at shapes that neither export nor quantization looks at."""
    spec = forms.spec_of(name, form)
    opened = session(made.path)
    output = opened.get_outputs()[0].name
    allowed = tolerance(made.precision)
    for seed, (batch, time) in enumerate([(1, 1), (5, 33)]):
        feeds = spec.feeds(50 + seed, batch=batch, time=time)
        with torch.no_grad():
            expected = {output: spec.run([torch.from_numpy(feeds[tensor.name]) for tensor in spec.inputs]).numpy()}
        pair = (expected, {output: np.asarray(opened.run([output], feeds)[0])})
        assert accuracy.mismatch(*pair) is None
        measured = accuracy.measure([pair], allowed, batch_axes={output: 0}, time_axes={})
        assert accuracy.judge(measured, allowed) is None
