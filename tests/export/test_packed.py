"""Packed sequences in the forms that models use them in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from deploykit.errors import ExportError, ModelError
from deploykit.export import Exported, to_onnx
from deploykit.probing import with_ranges
from deploykit.types import ModelSpec, TensorSpec, ValueRange
from tests.export.agree import assert_agrees, recurrent

X = TensorSpec("x", "float32", ("batch", "time", 4))
LENGTHS = TensorSpec("lengths", "int64", ("batch",))


class Packs(nn.Module):
    """``use(rnn, x, lengths)`` is what the model does."""

    def __init__(self, use: Callable[..., Any], **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rnn = nn.GRU(4, 5, batch_first=True, **options)
        self.use = use

    def forward(self, x: Tensor, lengths: Tensor) -> Any:
        return self.use(self.rnn, x, lengths)


def spec_of(use: Callable[..., Any], lengths: TensorSpec = LENGTHS, **options: Any) -> ModelSpec:
    return with_ranges(ModelSpec(Packs(use, **options).eval().requires_grad_(False), (X, lengths)))


def run(made: Exported, x: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(made.model.SerializeToString(), providers=["CPUExecutionProvider"])
    return list(session.run(None, {"x": x, "lengths": lengths}))


def packed(x: Tensor, lengths: Tensor) -> PackedSequence:
    return pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)


def padded(rnn: nn.GRU, x: Tensor, lengths: Tensor) -> Tensor:
    return pad_packed_sequence(rnn(packed(x, lengths))[0], batch_first=True)[0]


def filled(rnn: nn.GRU, x: Tensor, lengths: Tensor) -> Any:
    return pad_packed_sequence(rnn(packed(x, lengths))[0], batch_first=True, padding_value=-7.5)


def longer(rnn: nn.GRU, x: Tensor, lengths: Tensor) -> Tensor:
    total = x.shape[1] + 3
    return pad_packed_sequence(rnn(packed(x, lengths))[0], batch_first=True, padding_value=2.0, total_length=total)[0]


def time_first(rnn: nn.GRU, x: Tensor, lengths: Tensor) -> Tensor:
    return pad_packed_sequence(rnn(packed(x, lengths))[0], total_length=x.shape[1])[0]


def final(rnn: nn.GRU, x: Tensor, lengths: Tensor) -> Tensor:
    return rnn(packed(x, lengths))[1].transpose(0, 1).flatten(1)  # type: ignore[no-any-return]


def counted(rnn: nn.GRU, x: Tensor, lengths: Tensor) -> Tensor:
    """Lengths that the model works out from a mask, on the device and back."""
    mask = torch.arange(x.shape[1]).unsqueeze(0) < lengths.unsqueeze(1)
    return rnn(packed(x * mask.unsqueeze(-1), mask.sum(1).to("cpu")))[1]  # type: ignore[no-any-return]


def data_changed(rnn: nn.GRU, x: Tensor, lengths: Tensor) -> Any:
    given = packed(x, lengths)
    changed = given._replace(data=torch.softmax(given.data * 2 + 1, dim=1))
    y, _ = rnn(changed)
    again = PackedSequence(torch.tanh(y.data) + 1, y.batch_sizes, y.sorted_indices, y.unsorted_indices)
    return pad_packed_sequence(again, batch_first=True)


def twice(rnn: nn.GRU, x: Tensor, lengths: Tensor) -> Tensor:
    y, h = rnn(packed(x, lengths))
    y, h = rnn(y._replace(data=y.data[:, :4]), h)
    return pad_packed_sequence(y, batch_first=True)[0]


def of_ints(rnn: nn.GRU, x: Tensor, lengths: Tensor) -> Tensor:
    return padded(rnn, x, lengths.int())


@pytest.mark.parametrize("use", [padded, filled, longer, time_first, final, counted, data_changed, twice, of_ints])
@pytest.mark.parametrize("options", [{}, {"bidirectional": True, "num_layers": 2}], ids=["one", "two-both"])
def test_what_models_do_with_packed_sequences(use: Callable[..., Any], options: dict[str, Any]) -> None:
    spec = spec_of(use, **options)
    if use is counted:  # nothing tells that this input is made into lengths
        assert not spec.ranges
        with pytest.raises(ModelError, match=r"'lengths' that is <= 0; .*--example"):
            to_onnx(spec)
        spec = replace(spec, ranges={"lengths": ValueRange(1, "time")})
    made = assert_agrees(spec)
    layers = options.get("num_layers", 1) * (2 if use is twice else 1)
    assert recurrent(made) == ["GRU"] * layers
    assert all(node.input[4] for node in made.model.graph.node if node.op_type == "GRU")
    x = np.random.default_rng(0).standard_normal((4, 9, 4), dtype=np.float32)
    lengths = np.array([3, 7, 1, 5])  # unsorted, and none of full length
    found = run(made, x, lengths)
    expected = spec.run([torch.from_numpy(x), torch.from_numpy(lengths)])
    for ours, theirs in zip(found, expected if isinstance(expected, tuple) else (expected,), strict=True):
        assert ours.shape == tuple(theirs.shape)
        assert np.abs(ours - theirs.numpy()).max() < 2e-5


def test_a_layer_that_wants_sorted_lengths_takes_any_order_afterwards() -> None:
    def use(rnn: nn.GRU, x: Tensor, lengths: Tensor) -> Tensor:
        return rnn(pack_padded_sequence(x, lengths, batch_first=True))[1]  # type: ignore[no-any-return]

    spec = spec_of(use)
    made = assert_agrees(spec)
    x = np.random.default_rng(0).standard_normal((3, 9, 4), dtype=np.float32)
    lengths, order = np.array([2, 9, 4]), [1, 2, 0]
    expected = spec.run([torch.from_numpy(x[order]), torch.from_numpy(lengths[order])])
    assert np.abs(run(made, x, lengths)[0][:, order] - expected.numpy()).max() < 2e-5


def test_what_lies_beyond_a_rows_length_does_not_matter() -> None:
    made = to_onnx(spec_of(final, bidirectional=True))
    x = np.random.default_rng(0).standard_normal((2, 9, 4), dtype=np.float32)
    other = x.copy()
    other[0, 4:] = 1e3
    lengths = np.array([4, 9])
    assert np.array_equal(run(made, x, lengths)[0], run(made, other, lengths)[0])


def test_a_mask_of_the_whole_time_axis_is_noted() -> None:
    def use(rnn: nn.GRU, x: Tensor, lengths: Tensor) -> Tensor:
        y = padded(rnn, x, lengths)
        if y.shape[1] != x.shape[1]:
            raise ValueError("the longest row has to fill the time axis")
        return y + x.sum(-1, keepdim=True)

    made = assert_agrees(spec_of(use))
    assert made.notes == (
        "it takes for granted that the longest row of a batch fills its time axis, as this code needs in PyTorch too.",
    )


def test_a_packed_sequence_cannot_be_an_output_nor_come_from_elsewhere() -> None:
    with pytest.raises(ModelError, match="returns a PackedSequence"):
        to_onnx(spec_of(lambda rnn, x, lengths: rnn(packed(x, lengths))[0]))

    def own(rnn: nn.GRU, x: Tensor, lengths: Tensor) -> Tensor:
        sizes = torch.full((1,), 2)
        return rnn(PackedSequence(x[:2, 0], sizes))[1]  # type: ignore[no-any-return]

    spec = ModelSpec(
        Packs(own).eval(), (TensorSpec("x", "float32", (2, "time", 4)), TensorSpec("lengths", "int64", (2,)))
    )
    with pytest.raises(ExportError, match="was not made by pack_padded_sequence in the model itself"):
        to_onnx(spec)


def test_a_mean_over_the_packed_data_is_not_exported_as_if_it_were_right() -> None:
    def use(rnn: nn.GRU, x: Tensor, lengths: Tensor) -> Tensor:
        return rnn(packed(x, lengths))[0].data.mean(0)  # type: ignore[no-any-return]

    from deploykit.export import _clean, _verify

    spec = spec_of(use)
    made = to_onnx(spec)
    with pytest.raises(ExportError, match="differs from PyTorch"):
        _verify.compare(_clean.serialized(made.model, "a.onnx"), spec, made.outputs)
