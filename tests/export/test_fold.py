"""What depends on constants alone is worked out; zero initial states go."""

from __future__ import annotations

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn.utils import parametrizations, spectral_norm

from deploykit.export import _fold
from deploykit.export._operators import DOMAIN
from deploykit.types import ModelSpec, TensorSpec
from tests.export.agree import assert_agrees, recurrent


def model_of(nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray], opsets: int = 20) -> onnx.ModelProto:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    imports = [helper.make_opsetid("", opsets), helper.make_opsetid(DOMAIN, 1)]
    return helper.make_model(helper.make_graph(nodes, "g", [x], [y], tensors), opset_imports=imports)


def values(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def test_a_chain_of_constants_becomes_one() -> None:
    w = np.arange(6, dtype=np.float32).reshape(2, 3)
    model = model_of(
        [
            helper.make_node("Constant", [], ["order"], value_ints=[1, 0]),
            helper.make_node("Gather", ["w", "order"], ["g"], axis=0),
            helper.make_node("Transpose", ["g"], ["t"], perm=[1, 0]),
            helper.make_node("MatMul", ["x", "t"], ["y"]),
        ],
        {"w": w},
    )
    _fold.fold(model)
    assert [node.op_type for node in model.graph.node] == ["MatMul"]
    assert set(values(model)) == {"t"}
    assert np.array_equal(values(model)["t"], w[[1, 0]].T)
    assert [entry.domain for entry in model.opset_import] == [""]


def test_what_would_grow_much_stays() -> None:
    model = model_of(
        [
            helper.make_node("Expand", ["small", "shape"], ["large"]),
            helper.make_node("MatMul", ["x", "large"], ["y"]),
        ],
        {"small": np.ones((1, 1), np.float32), "shape": np.array([3, 4000])},
    )
    _fold.fold(model)
    assert [node.op_type for node in model.graph.node] == ["Expand", "MatMul"]


def test_the_pseudo_inverse_is_one() -> None:
    p = np.random.default_rng(0).standard_normal((2, 3)).astype(np.float32)
    model = model_of(
        [
            helper.make_node("PseudoInverse", ["p"], ["q"], domain=DOMAIN),
            helper.make_node("MatMul", ["x", "q"], ["y"]),
        ],
        {"p": p},
    )
    _fold.fold(model)
    assert np.abs(p @ values(model)["q"] - np.eye(2)).max() < 1e-5
    assert not any(node.domain for node in model.graph.node)


def test_an_operator_with_one_constant_output_of_two_keeps_the_other() -> None:
    model = model_of(
        [
            helper.make_node("Split", ["w"], ["a", "b"], axis=0, num_outputs=2),
            helper.make_node("MatMul", ["x", "a"], ["y"]),
        ],
        {"w": np.ones((6, 2), np.float32)},
    )
    _fold.fold(model)
    assert [node.op_type for node in model.graph.node] == ["MatMul"]


class Normed(nn.Module):
    """Weights of a GRU, a linear layer and a convolution that are computed from others."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = spectral_norm(nn.Conv1d(4, 4, 3, padding=1))
        self.rnn = nn.GRU(4, 5, batch_first=True)
        for name in ("weight_ih_l0", "weight_hh_l0"):
            nn.utils.weight_norm(self.rnn, name)
        self.head = parametrizations.weight_norm(nn.Linear(5, 2))

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.rnn(self.conv(x.transpose(1, 2)).transpose(1, 2))
        return self.head(y)  # type: ignore[no-any-return]


def test_parametrized_weights_are_plain_initializers() -> None:
    module = Normed().eval().requires_grad_(False)
    made = assert_agrees(ModelSpec(module, (TensorSpec("x", "float32", ("batch", "time", 4)),)))
    assert recurrent(made) == ["GRU"]
    stored = {tensor.name for tensor in made.model.graph.initializer}
    for node in made.model.graph.node:
        if node.op_type in ("GRU", "MatMul", "Gemm", "Conv"):
            assert {name for name in node.input[1:4] if name} <= stored, node.name


def test_a_given_state_of_zeros_is_left_out_and_another_is_not() -> None:
    class Given(nn.Module):
        def __init__(self, fill: float) -> None:
            super().__init__()
            self.rnn = nn.LSTM(4, 5, 2, batch_first=True)
            self.fill = fill

        def forward(self, x: Tensor) -> Tensor:
            h = torch.full((2, x.shape[0], 5), self.fill)
            return self.rnn(x, (h, h.clone()))[0]  # type: ignore[no-any-return]

    for fill, kept in ((0.0, False), (0.5, True)):
        made = assert_agrees(
            ModelSpec(Given(fill).eval().requires_grad_(False), (TensorSpec("x", "float32", ("batch", "time", 4)),))
        )
        nodes = [node for node in made.model.graph.node if node.op_type == "LSTM"]
        assert all((len(node.input) > 5) == kept for node in nodes)
