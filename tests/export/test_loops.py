"""Loops over time that the exporter unrolled, folded back: the same answers as PyTorch at lengths never traced."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np
import onnx
import onnxruntime
import onnxscript
import pytest
import torch
from torch import Tensor, nn

from deploykit.export._loops import NotALoop, roll

STEPS = 4
INPUT, HIDDEN = 4, 5


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    silence = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(silence), contextlib.redirect_stderr(silence):
        warnings.simplefilter("ignore")
        yield


def unrolled(module: nn.Module, args: tuple[Tensor, ...], batch: tuple[int | None, ...], opset: int) -> Any:
    size = torch.export.Dim("batch")
    shapes = tuple({axis: size} if axis is not None else None for axis in batch)
    with quiet(), torch.no_grad():
        program = torch.export.export(module, args, dynamic_shapes=(shapes,) if _starred(module) else shapes)
        exported = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=opset,
            custom_translation_table=translations(opset),
            verbose=False,
        )
    assert exported is not None
    return exported.model_proto


def _starred(module: nn.Module) -> bool:
    return module.forward.__code__.co_flags & 4 != 0


@cache
def register() -> None:
    """PyTorch operators that stand for ONNX's over a single step: x, W, R, B, and the initial states."""
    for kind, states in {"rnn": 1, "gru": 1, "lstm": 2}.items():
        given, out = ", ".join(f"Tensor? s{at}" for at in range(states)), ", ".join(["Tensor"] * (1 + states))
        torch.library.define(f"looptest::{kind}", f"(Tensor x, Tensor w, Tensor r, Tensor b, {given}) -> ({out})")

        def fake(x: Tensor, w: Tensor, r: Tensor, b: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
            state = [x.new_empty(1, x.shape[1], r.shape[2]) for _ in states]
            return (x.new_empty(1, 1, x.shape[1], r.shape[2]), *state)

        torch.library.register_fake(f"looptest::{kind}", fake)


def translations(opset: int) -> dict[Any, Any]:
    op: Any = getattr(onnxscript, f"opset{opset}")

    def rnn(x, w, r, b, h=None):  # type: ignore[no-untyped-def]
        return op.RNN(x, w, r, b, None, h, hidden_size=HIDDEN, activations=["Tanh"])

    def gru(x, w, r, b, h=None):  # type: ignore[no-untyped-def]
        return op.GRU(x, w, r, b, None, h, hidden_size=HIDDEN, linear_before_reset=1)

    def lstm(x, w, r, b, h=None, c=None):  # type: ignore[no-untyped-def]
        return op.LSTM(x, w, r, b, None, h, c, hidden_size=HIDDEN)

    ops = torch.ops.looptest
    return {ops.rnn.default: rnn, ops.gru.default: gru, ops.lstm.default: lstm}


Shapes = tuple[tuple[str | int, ...], ...]
SEQUENCE: Shapes = (("B", "T", INPUT),)
TIME_MAJOR: Shapes = (("T", "B", INPUT),)


def example(shapes: Shapes, time: int, batch: int, seed: int = 0) -> tuple[Tensor, ...]:
    torch.manual_seed(seed)
    sizes: dict[str | int, int] = {"T": time, "B": batch}
    return tuple(torch.randn(*(sizes.get(dim, dim) for dim in shape)) for shape in shapes)  # type: ignore[arg-type]


def rolled(module: nn.Module, shapes: Shapes = SEQUENCE, opset: int = 18, batch: int | None = None) -> onnx.ModelProto:
    register()
    module.eval()
    where = tuple(shape.index("B") if "B" in shape and batch is None else None for shape in shapes)
    short, long = (unrolled(module, example(shapes, time, batch or 2), where, opset) for time in (STEPS, STEPS + 1))
    names = [value.name for value in short.graph.input]
    axes = {name: shape.index("T") for name, shape in zip(names, shapes, strict=True) if "T" in shape}
    return roll(short, long, "time", axes)


def assert_rolls(
    module: nn.Module, shapes: Shapes = SEQUENCE, opset: int = 18, batch: int | None = None, shortest: int = 1
) -> Counter[str]:
    """Roll, check and compare at several sizes; returns the operators of the graph."""
    model = rolled(module, shapes, opset, batch)
    onnx.checker.check_model(model, full_check=True)
    onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    for time in (1, 2, STEPS, 25):
        for rows in (batch,) if batch else (1, 3):
            if time < shortest:
                continue
            args = example(shapes, time, rows, seed=time)
            with torch.inference_mode():
                expected = reference(module)(*(arg.clone() for arg in args))
            expected = expected if isinstance(expected, tuple) else (expected,)
            feeds = {value.name: arg.numpy() for value, arg in zip(model.graph.input, args, strict=True)}
            found = session.run(None, feeds)
            assert len(found) == len(expected)
            for mine, its in zip(found, expected, strict=True):
                np.testing.assert_allclose(mine, its.numpy(), atol=1e-5, rtol=1e-5, err_msg=f"T={time} B={rows}")
    for value in (*model.graph.input, *model.graph.output):
        assert value.type.tensor_type.HasField("shape")
    return Counter(node.op_type for node in model.graph.node)


def reference(module: nn.Module) -> nn.Module:
    """Operator cells have no arithmetic of their own in PyTorch: they run the cell that they stand for."""
    for part in module.modules():
        if isinstance(part, OpCell):
            part.traced = False
    return module


class OpCell(nn.Module):
    """A cell that is traced as one ONNX recurrent operator over a single step."""

    def __init__(self, kind: str, inputs: int = INPUT, hidden: int = HIDDEN) -> None:
        super().__init__()
        self.kind, self.hidden, self.traced = kind, hidden, True
        self.cell = {"GRU": nn.GRUCell, "LSTM": nn.LSTMCell, "RNN": nn.RNNCell}[kind](inputs, hidden)
        order = {"RNN": [0], "GRU": [1, 0, 2], "LSTM": [0, 3, 1, 2]}[kind]

        def stacked(weight: Tensor) -> Tensor:
            chunks = weight.detach().chunk(len(order))
            return torch.cat([chunks[at] for at in order])[None]

        self.register_buffer("w", stacked(self.cell.weight_ih))
        self.register_buffer("r", stacked(self.cell.weight_hh))
        self.register_buffer("b", torch.cat([stacked(self.cell.bias_ih), stacked(self.cell.bias_hh)], dim=1))

    def forward(self, x: Tensor, state: Any = None) -> Any:
        if not self.traced:
            return self.cell(x, state)
        operator = getattr(torch.ops.looptest, self.kind.lower())
        given = [None] if state is None else list(state) if self.kind == "LSTM" else [state]
        given = given * 2 if self.kind == "LSTM" and state is None else given
        states = [None if one is None else one.unsqueeze(0) for one in given]
        _, *last = operator(x.unsqueeze(0), self.w, self.r, self.b, *states)
        finals = tuple(one.squeeze(0) for one in last)
        return finals if self.kind == "LSTM" else finals[0]


def raw(kind: str, inputs: int = INPUT, hidden: int = HIDDEN) -> nn.Module:
    cells: dict[str, Callable[..., nn.Module]] = {"GRU": nn.GRUCell, "LSTM": nn.LSTMCell, "RNN": nn.RNNCell}
    return cells[kind](inputs, hidden)


CELLS: dict[str, Callable[..., nn.Module]] = {"raw": raw, "operator": OpCell}


class Plain(nn.Module):
    """One cell, its outputs stacked, and its final state."""

    def __init__(self, make: Callable[..., nn.Module], kind: str, time: int = 1) -> None:
        super().__init__()
        self.cell, self.kind, self.time = make(kind), kind, time

    def forward(self, x: Tensor) -> Any:
        state: Any = x.new_zeros(x.shape[1 - self.time], HIDDEN)
        state = (state, state) if self.kind == "LSTM" else state
        outs = []
        for t in range(x.shape[self.time]):
            state = self.cell(x.select(self.time, t), state)
            outs.append(state[0] if self.kind == "LSTM" else state)
        return torch.stack(outs, self.time), *(state if self.kind == "LSTM" else (state,))


@pytest.mark.parametrize(
    ("form", "kind"), [("operator", "GRU"), ("operator", "LSTM"), ("operator", "RNN"), ("raw", "GRU"), ("raw", "RNN")]
)
def test_a_loop_of_one_cell(kind: str, form: str) -> None:
    found = assert_rolls(Plain(CELLS[form], kind))
    assert found[kind if form == "operator" else "Scan"] == 1
    assert form == "raw" or not found["Scan"]


def test_time_major_and_another_opset() -> None:
    assert assert_rolls(Plain(OpCell, "GRU", time=0), TIME_MAJOR, opset=20)["GRU"] == 1


class Gates(nn.Module):
    """Hand-written gates over ``x.unbind``, without a state to begin with."""

    def __init__(self) -> None:
        super().__init__()
        self.gates, self.new = nn.Linear(INPUT + HIDDEN, HIDDEN), nn.Linear(INPUT + HIDDEN, HIDDEN)

    def forward(self, x: Tensor) -> Tensor:
        h = None
        outs = []
        for x_t in x.unbind(1):
            if h is None:
                h = torch.tanh(self.new(torch.cat([x_t, x_t, x_t[:, :1]], 1)))
            else:
                z = torch.sigmoid(self.gates(torch.cat([x_t, h], 1)))
                h = z * h + (1 - z) * torch.tanh(self.new(torch.cat([x_t, h], 1)))
            outs.append(h.unsqueeze(1))
        return torch.cat(outs, 1)


def test_gates_by_hand_whose_first_step_is_special() -> None:
    assert assert_rolls(Gates())["Scan"] == 1


class Final(nn.Module):
    """No initial state, and only the final one is returned."""

    def __init__(self, make: Callable[..., nn.Module], kind: str = "GRU") -> None:
        super().__init__()
        self.cell, self.head, self.kind = make(kind), nn.Linear(HIDDEN, 2), kind

    def forward(self, x: Tensor) -> Tensor:
        state: Any = None
        for x_t in x.transpose(0, 1):
            state = self.cell(x_t, state)
        result: Tensor = self.head(state[0] if self.kind == "LSTM" else state)
        return result


@pytest.mark.parametrize(("form", "kind"), [("operator", "GRU"), ("operator", "LSTM"), ("raw", "LSTM")])
def test_only_the_final_state_and_none_to_begin_with(form: str, kind: str) -> None:
    found = assert_rolls(Final(CELLS[form], kind))
    assert found[kind if form == "operator" else "Scan"] == 1
    assert form == "raw" or not found["Scan"]


class Pair(nn.Module):
    """A bidirectional pair by hand."""

    def __init__(self, make: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.there, self.back = make("GRU"), make("GRU")

    def forward(self, x: Tensor) -> Tensor:
        h = g = x.new_zeros(x.shape[0], HIDDEN)
        there: list[Tensor] = []
        back: list[Tensor] = []
        for t in range(x.shape[1]):
            h = self.there(x[:, t], h)
            there.append(h)
        for t in reversed(range(x.shape[1])):
            g = self.back(x[:, t], g)
            back.insert(0, g)
        return torch.cat([torch.stack(there, 1), torch.stack(back, 1)], 2)


@pytest.mark.parametrize("form", ["operator"])
def test_a_bidirectional_pair(form: str) -> None:
    found = assert_rolls(Pair(CELLS[form]))
    assert found["GRU" if form == "operator" else "Scan"] == 2
    assert form == "raw" or not found["Scan"]


class Reversed(nn.Module):
    """Backwards through time, the outputs in the order in which they were made or in that of the input."""

    def __init__(self, make: Callable[..., nn.Module], turned: bool) -> None:
        super().__init__()
        self.cell, self.turned = make("LSTM"), turned

    def forward(self, x: Tensor) -> Any:
        h = c = x.new_zeros(x.shape[0], HIDDEN)
        outs = []
        for t in range(x.shape[1] - 1, -1, -1):
            h, c = self.cell(x[:, t], (h, c))
            outs.append(h)
        return torch.stack(outs[::-1] if self.turned else outs, 1), c


@pytest.mark.parametrize(("form", "turned"), [("operator", True), ("operator", False)])
def test_a_reversed_loop(form: str, turned: bool) -> None:
    found = assert_rolls(Reversed(CELLS[form], turned))
    assert found["LSTM" if form == "operator" else "Scan"] == 1


class Layers(nn.Module):
    """Two loops, one over what the other made: stacked, or left as a list; the second may go backwards."""

    def __init__(self, make: Callable[..., nn.Module], stack: bool, backwards: bool) -> None:
        super().__init__()
        self.first, self.second, self.head = make("RNN"), make("RNN", HIDDEN), nn.Linear(HIDDEN, 3)
        self.stack, self.backwards = stack, backwards

    def forward(self, x: Tensor) -> Tensor:
        h = g = x.new_zeros(x.shape[0], HIDDEN)
        inner: Any = []
        for t in range(x.shape[1]):
            h = self.first(x[:, t], h)
            inner.append(h)
        inner = list(torch.relu(torch.stack(inner)).unbind(0)) if self.stack else inner
        outs = []
        for y in reversed(inner) if self.backwards else inner:
            g = self.second(y, g)
            outs.append(self.head(g))
        return torch.stack(outs, 1)


@pytest.mark.parametrize(
    ("form", "stack", "backwards"), [("operator", True, False), ("operator", False, True), ("raw", False, True)]
)
def test_a_loop_over_what_a_loop_made(form: str, stack: bool, backwards: bool) -> None:
    found = assert_rolls(Layers(CELLS[form], stack, backwards))
    assert form == "raw" or (found["RNN"] == 2 and not found["Scan"])


class Deep(nn.Module):
    """Two cells in one loop, the second on the first's output, with something between and around them."""

    def __init__(self, make: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.embed, self.between = nn.Linear(INPUT, HIDDEN), nn.Linear(HIDDEN, HIDDEN)
        self.first, self.second, self.head = make("GRU", HIDDEN), make("LSTM", HIDDEN), nn.Linear(HIDDEN, 2)

    def forward(self, x: Tensor) -> Any:
        h = g = c = x.new_zeros(x.shape[0], HIDDEN)
        outs = []
        for t in range(x.shape[1]):
            h = self.first(torch.relu(self.embed(x[:, t])), h)
            g, c = self.second(torch.tanh(self.between(h)) + h, (g, c))
            outs.append(self.head(g))
        return torch.stack(outs, 1), h, g, c


@pytest.mark.parametrize("form", ["operator"])
def test_two_cells_in_one_loop(form: str) -> None:
    found = assert_rolls(Deep(CELLS[form]))
    assert form == "raw" or (found["GRU"] == found["LSTM"] == 1 and not found["Scan"])


class Attention(nn.Module):
    """In each step the state looks at a memory of fixed size."""

    def __init__(self, make: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.cell, self.project = make("RNN", INPUT + HIDDEN), nn.Linear(HIDDEN, HIDDEN)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        h = x.new_zeros(x.shape[0], HIDDEN)
        outs = []
        for t in range(x.shape[1]):
            scores = torch.softmax((self.project(memory) @ h.unsqueeze(2)).squeeze(2), 1)
            context = (scores.unsqueeze(1) @ memory).squeeze(1)
            h = self.cell(torch.cat([x[:, t], context], 1), h)
            outs.append(h)
        return torch.stack(outs, 1)


@pytest.mark.parametrize("form", ["operator"])
def test_attention_in_the_loop(form: str) -> None:
    assert assert_rolls(Attention(CELLS[form]), (*SEQUENCE, ("B", 9, HIDDEN)))["Scan"] == 1


def test_attention_over_the_sequence_itself() -> None:
    assert assert_rolls(Attention(raw), (*SEQUENCE, ("B", "T", HIDDEN)))["Scan"] == 1


class Feedback(nn.Module):
    """A decoder: the output of a step is part of the next one's input; with a sequence to read, or only its length."""

    def __init__(self, make: Callable[..., nn.Module], reads: bool, every: bool = True) -> None:
        super().__init__()
        self.encoder, self.cell = make("GRU"), make("GRU", INPUT + 3 if reads else 3)
        self.head, self.reads, self.every = nn.Linear(HIDDEN, 3), reads, every

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(x.shape[0], HIDDEN)
        y = x.new_zeros(x.shape[0], 3)
        for t in range(x.shape[1]):
            h = self.encoder(x[:, t], h)
        outs = []
        for t in range(x.shape[1]):
            h = self.cell(torch.cat([x[:, t], y], 1) if self.reads else y, h)
            y = self.head(h)
            outs.append(y if self.every else h)
        return torch.stack(outs, 1)


@pytest.mark.parametrize(("form", "reads", "every"), [("operator", True, True), ("operator", False, False)])
def test_output_feedback(form: str, reads: bool, every: bool) -> None:
    found = assert_rolls(Feedback(CELLS[form], reads, every))
    assert found["Scan"] == (2 if form == "raw" else 1)


class Masked(nn.Module):
    """Padding: a mask decides whether a row's state moves on."""

    def __init__(self, make: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.cell = make("GRU")

    def forward(self, x: Tensor, mask: Tensor) -> Any:
        h = x.new_zeros(x.shape[0], HIDDEN)
        outs = []
        for t in range(x.shape[1]):
            m = torch.sigmoid(mask[:, t]).unsqueeze(1)
            h = m * self.cell(x[:, t], h) + (1 - m) * h
            outs.append(h)
        return torch.stack(outs, 1), h


@pytest.mark.parametrize("form", ["operator"])
def test_a_mask(form: str) -> None:
    assert assert_rolls(Masked(CELLS[form]), (*SEQUENCE, ("B", "T")))["Scan"] == 1


class Numbered(nn.Module):
    """Steps that know their number: as a factor, in a table that is an input, and what is left."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.RNNCell(INPUT, HIDDEN)

    def forward(self, x: Tensor, table: Tensor) -> Tensor:
        h = x.new_zeros(x.shape[0], HIDDEN)
        outs = []
        for t in range(x.shape[1]):
            h = self.cell(x[:, t] + table[t], h) * (float(t) / 8 - 0.5) + (x.shape[1] - t)
            h = torch.tanh(h)
            outs.append(h)
        return torch.stack(outs, 1)


def test_steps_that_know_their_number() -> None:
    assert assert_rolls(Numbered(), (*SEQUENCE, (40, INPUT)))["Scan"] == 1


class Epilogue(nn.Module):
    """What follows the loop names the length: in views, as a divisor, in the size of a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = OpCell("RNN"), nn.Linear(HIDDEN, 3)

    def forward(self, x: Tensor) -> Any:
        rows, time, _ = x.shape
        h = x.new_zeros(rows, HIDDEN)
        outs = []
        for t in range(time):
            h = self.cell(x[:, t], h)
            outs.append(h)
        y = torch.stack(outs, 1)
        flat = self.head(y.reshape(rows * time, HIDDEN)).view(rows, time, 3)
        return flat, y.sum(1) / time, y.mean(1), torch.cat(outs, 0).view(time, rows, HIDDEN), y[:, -1], y.flatten(1)


def test_an_epilogue_that_names_the_length() -> None:
    found = assert_rolls(Epilogue())
    assert found["RNN"] == 1
    assert not found["Scan"]


class Written(nn.Module):
    """Outputs written into a tensor."""

    def __init__(self, make: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.cell = make("RNN")

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(x.shape[0], HIDDEN)
        out = x.new_zeros(x.shape[0], x.shape[1], HIDDEN)
        for t in range(x.shape[1]):
            h = self.cell(x[:, t], h)
            out[:, t] = h
        return out


@pytest.mark.parametrize("form", ["operator"])
def test_outputs_written_into_a_tensor(form: str) -> None:
    assert assert_rolls(Written(CELLS[form]))["RNN" if form == "operator" else "Scan"] == 1


class FromFirst(nn.Module):
    """The first element makes the state, the loop runs over the others; all states, or those of the loop."""

    def __init__(self, make: Callable[..., nn.Module], keep: bool) -> None:
        super().__init__()
        self.cell, self.start, self.keep = make("GRU"), nn.Linear(INPUT, HIDDEN), keep

    def forward(self, x: Tensor) -> Any:
        h = self.start(x[:, 0])
        outs = [h] if self.keep else []
        for t in range(1, x.shape[1]):
            h = self.cell(x[:, t], h)
            outs.append(h)
        return torch.stack(outs, 1), h


@pytest.mark.parametrize(("form", "keep"), [("operator", True), ("operator", False)])
def test_a_loop_from_the_second_element(form: str, keep: bool) -> None:
    assert assert_rolls(FromFirst(CELLS[form], keep), shortest=1 if keep else 2)["Scan"] == 1


class Shifted(nn.Module):
    """Two sequences, the second one step ahead; the last step's element of the first is not read."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.RNNCell(2 * INPUT, HIDDEN), nn.Linear(HIDDEN, 2)

    def forward(self, x: Tensor, y: Tensor) -> Any:
        h = x.new_zeros(x.shape[0], HIDDEN)
        outs = [self.head(h)]
        for t in range(x.shape[1] - 1):
            h = self.cell(torch.cat([x[:, t], y[:, t + 1]], 1), h)
            outs.append(self.head(h))
        return torch.stack(outs, 1), h


def test_a_loop_over_two_sequences_that_are_shifted() -> None:
    assert assert_rolls(Shifted(), (*SEQUENCE, *SEQUENCE))["Scan"] == 1


class Ahead(nn.Module):
    """Each step looks at the next element, the last one at its own."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = OpCell("RNN", 2 * INPUT)

    def forward(self, x: Tensor) -> Any:
        h = x.new_zeros(x.shape[0], HIDDEN)
        outs = []
        for t in range(x.shape[1]):
            h = self.cell(torch.cat([x[:, t], x[:, min(t + 1, x.shape[1] - 1)]], 1), h)
            outs.append(h)
        return torch.stack(outs, 1), h


def test_a_step_that_looks_ahead() -> None:
    assert assert_rolls(Ahead())["Scan"] == 1


class Differences(nn.Module):
    """Each step needs the element before its own; the initial state is among the outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.RNNCell(INPUT, HIDDEN)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_ones(x.shape[0], HIDDEN)
        outs = [h]
        before = x.new_zeros(x.shape[0], INPUT)
        for t in range(x.shape[1]):
            h = self.cell(x[:, t] - before, h)
            before = x[:, t]
            outs.append(h)
        return torch.stack(outs, 0)


def test_a_state_that_is_the_last_element() -> None:
    assert assert_rolls(Differences())["Scan"] == 1


def test_a_fixed_batch() -> None:
    assert_rolls(Plain(raw, "RNN"), batch=1)
    assert assert_rolls(Final(OpCell), batch=1)["GRU"] == 1


class Layer(nn.Module):
    """A whole recurrent layer, called for one step at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = OpCell("GRU")

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        outs = []
        for t in range(x.shape[1]):
            step = x[:, t : t + 1]
            h = self.cell(step.transpose(0, 1)[0], h)
            outs.append(h.unsqueeze(0).transpose(0, 1))
        return torch.cat(outs, 1)


def test_slices_of_one_step() -> None:
    assert assert_rolls(Layer(), (*SEQUENCE, ("B", HIDDEN)))["GRU"] == 1


class TwoBack(nn.Module):
    """A step that looks two elements back, which the first two cannot."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.RNNCell(INPUT, HIDDEN)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(x.shape[0], HIDDEN)
        outs = []
        for t in range(x.shape[1]):
            h = self.cell(x[:, t] - x[:, t - 2] if t >= 2 else x[:, t], h)
            outs.append(h)
        return torch.stack(outs, 1)


class OwnWeights(nn.Module):
    """Every step has weights of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.ModuleList(nn.RNNCell(INPUT, HIDDEN) for _ in range(25))

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(x.shape[0], HIDDEN)
        for t in range(x.shape[1]):
            h = self.cells[t](x[:, t], h)
        return h


class NoLoop(nn.Module):
    """The length is only in a view."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(INPUT, 3)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(x).view(x.shape[0], x.shape[1] * 3)
        return result


class Alternating(nn.Module):
    """Even steps do something else."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.RNNCell(INPUT, HIDDEN)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(x.shape[0], HIDDEN)
        for t in range(x.shape[1]):
            h = self.cell(x[:, t], torch.relu(h) if t % 2 else h)
        return h


class Squares(nn.Module):
    """A step's number enters by a function that is not linear, as does the length."""

    def __init__(self, after: bool) -> None:
        super().__init__()
        self.cell, self.after = nn.RNNCell(INPUT, HIDDEN), after

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(x.shape[0], HIDDEN)
        for t in range(x.shape[1]):
            h = self.cell(x[:, t], h) if self.after else self.cell(x[:, t] * (t * t + 1.5), h)
        return h * x.shape[1] ** 2


class Previous(nn.Module):
    """The state before the last step is returned, which at length 1 is the initial one."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.RNNCell(INPUT, HIDDEN)

    def forward(self, x: Tensor) -> Tensor:
        h = before = x.new_zeros(x.shape[0], HIDDEN)
        for t in range(x.shape[1]):
            before, h = h, self.cell(x[:, t], h)
        return before * 2 + h


@pytest.mark.parametrize(
    "module",
    [TwoBack(), OwnWeights(), NoLoop(), Alternating(), Squares(True), Squares(False), Previous()],
    ids=lambda module: type(module).__name__,
)
def test_what_is_no_loop_is_refused(module: nn.Module) -> None:
    with pytest.raises(NotALoop) as caught:
        rolled(module)
    assert str(caught.value)


def test_sizes_that_do_not_follow_each_other_are_refused() -> None:
    register()
    model = unrolled(Plain(raw, "RNN").eval(), example(SEQUENCE, 6, 2), (0,), 20)
    with pytest.raises(NotALoop, match="sizes 6 and 6"):
        roll(model, model, "time", {"x": 1})
