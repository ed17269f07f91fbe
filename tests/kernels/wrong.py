"""Models and inputs that the operators have to refuse, each with words of the sentence that says why.

``python -m tests.kernels.wrong`` tries them all and the sound ones besides, for a run under AddressSanitizer: without
pytest, and without torch.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from typing import Any

import numpy as np
from onnx import TensorProto

from tests.kernels.graphs import Arrays, Layer, answer, same


def _with(name: str, at: tuple[int, ...], value: float) -> dict[str, Any]:
    array = Layer().constants[name].copy()
    array[at] = value
    return {name: array}


def _cut(name: str, axis: int) -> dict[str, Any]:
    return {name: np.delete(Layer().constants[name], 0, axis)}


#: What a layer of the graph has otherwise, and what onnxruntime says when the session is made.
WRONG_MODELS: dict[str, tuple[Layer, str]] = {
    "W is an input of the model": (Layer(changed={"W": None}), "W is no constant"),
    "R is an input of the model": (Layer(changed={"R": None}), "R is no constant"),
    "scales are an input of the model": (Layer(changed={"R_scale": None}), "R_scale is no constant"),
    "B is an input of the model": (Layer(changed={"B": None}), "B is no constant"),
    "a weight of -128": (Layer(changed=_with("W", (0, 16, 50), -128)), "a weight is -128"),
    "the first weight of -128": (Layer(changed=_with("R", (0, 0, 0), -128)), "a weight is -128"),
    "a scale of Inf": (Layer(changed=_with("W_scale", (0, 50), np.inf)), "W_scale holds NaN or Inf"),
    "a scale of NaN": (Layer(changed=_with("R_scale", (0, 0), np.nan)), "R_scale holds NaN or Inf"),
    "a bias of NaN": (Layer(changed=_with("B", (0, 101), np.nan)), "B holds NaN or Inf"),
    "too few rows of R": (Layer(changed=_cut("R", 1)), "R has the shape"),
    "too few columns of W": (Layer(changed=_cut("W", 2)), "W has the shape"),
    "too few columns of R": (Layer(changed=_cut("R", 2)), "R has the shape"),
    "too few scales": (Layer(changed=_cut("W_scale", 1)), "W_scale has the shape"),
    "too few biases": (Layer(changed=_cut("B", 1)), "B has the shape"),
    "a rank too few": (Layer(changed={"W": Layer().constants["W"][0]}), "W has the shape"),
    "no rows of W": (Layer(changed={"W": np.zeros((1, 0, 51), np.int8)}), "W has 0 rows"),
    "one direction's weights for two": (Layer(direction="bidirectional", changed=Layer().constants), "W has the shape"),
    "no hidden_size": (Layer(changed={"hidden_size": None}), "hidden_size is 0"),
    "a negative hidden_size": (Layer(changed={"hidden_size": -17}), "hidden_size is -17"),
    "a huge hidden_size": (Layer(changed={"hidden_size": 1 << 60}), "hidden_size is"),
    "an unknown direction": (Layer(changed={"direction": "sideways"}), "direction is sideways"),
    "a long direction": (Layer(changed={"direction": "x" * 500}), "direction is xxx"),
    "a hidden_size that is text": (Layer(changed={"hidden_size": "17"}), "hidden_size"),
    "an unknown activation": (Layer(kind="RNN", activation="Elu"), "activation is Elu"),
    "Relu in a GRU": (Layer(changed={"activation": "Relu"}), "activation is Relu"),
    "a float W": (Layer(changed={"W": np.zeros((1, 17, 51), np.float32)}), "W"),
    "a double scale": (Layer(changed={"W_scale": np.zeros((1, 51))}), "W_scale"),
    "lengths of int64": (Layer(changed={"types": {"sequence_lens": TensorProto.INT64}}), "sequence_lens"),
}

LSTM = Layer(kind="LSTM", input=5, hidden=9)
GIVEN = ("sequence_lens", "initial_h", "initial_c")

#: What a sound LSTM is fed instead, and what onnxruntime says.
WRONG_FEEDS: dict[str, tuple[Arrays, str]] = {
    "X of another width": ({"X": np.zeros((4, 3, 6), np.float32)}, "X has the shape"),
    "X without width": ({"X": np.zeros((4, 3, 0), np.float32)}, "X has the shape"),
    "X of double": ({"X": np.zeros((4, 3, 5))}, "X"),
    "a length too long": ({"sequence_lens": np.array([4, 5, 1], np.int32)}, "sequence_lens holds 5"),
    "a negative length": ({"sequence_lens": np.array([4, -1, 1], np.int32)}, "sequence_lens holds -1"),
    "the least length": ({"sequence_lens": np.array([-(2**31), 1, 1], np.int32)}, "sequence_lens holds -2147483648"),
    "too few lengths": ({"sequence_lens": np.array([4, 1], np.int32)}, "sequence_lens has the shape"),
    "no lengths": ({"sequence_lens": np.zeros(0, np.int32)}, "sequence_lens has the shape"),
    "a state of another width": ({"initial_h": np.zeros((1, 3, 8), np.float32)}, "initial_h has the shape"),
    "a state of another batch": ({"initial_h": np.zeros((1, 1, 9), np.float32)}, "initial_h has the shape"),
    "a state of two directions": ({"initial_c": np.zeros((2, 3, 9), np.float32)}, "initial_c has the shape"),
    "an empty state": ({"initial_c": np.zeros((1, 0, 9), np.float32)}, "initial_c has the shape"),
}


def refusal(work: Callable[[], object]) -> str:
    """What onnxruntime said to it."""
    try:
        work()
    except Exception as error:  # onnxruntime has a class of its own for each of its codes
        return f"{type(error).__module__}: {error}"
    return "nothing: it was accepted"


def said_of_model(layer: Layer) -> str:
    return refusal(lambda: layer.session("sequence_lens"))


def said_of_feeds(changed: Arrays) -> str:
    session = LSTM.session(*GIVEN)
    feeds = LSTM.feeds(4, 3, *GIVEN)
    said = refusal(lambda: session.run(None, {**feeds, **changed}))
    answer(session, feeds)  # a refusal leaves the session as it was
    return said


def _sound() -> None:
    kinds = [("GRU", {"linear_before_reset": 0}), ("GRU", {"linear_before_reset": 1}), ("LSTM", {}), ("RNN", {})]
    for (kind, options), direction in product(kinds, ("forward", "reverse", "bidirectional")):
        for size in (1, 3, 17, 130):
            layer = Layer(kind=kind, direction=direction, hidden=size, input=131 - size, **options)  # type: ignore[arg-type]
            given = tuple(name for name in GIVEN if name in layer.inputs)
            session = layer.session(*given, threads=2)
            for steps, batch in ((0, 2), (1, 1), (7, 5), (2, 0), (33, 9)):
                feeds = layer.feeds(steps, batch, *given)
                alone = answer(session, feeds)
                with ThreadPoolExecutor(4) as pool:
                    assert all(same(found, alone) for found in pool.map(lambda _: answer(session, feeds), range(4)))  # noqa: B023


def main() -> None:
    for name, (layer, words) in WRONG_MODELS.items():
        assert words in said_of_model(layer), name
    for name, (changed, words) in WRONG_FEEDS.items():
        assert words in said_of_feeds(changed), name
    _sound()
    assert "torch" not in sys.modules
    sys.stdout.write("all sound\n")


if __name__ == "__main__":
    main()
