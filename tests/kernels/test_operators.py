"""The fused operators in onnxruntime: what they compute, bit for bit on every path and number of threads."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from deploykit.kernels import cpu_paths, why_missing
from tests.kernels.graphs import Layer, answer, same

pytestmark = pytest.mark.skipif(why_missing() is not None, reason=str(why_missing()))
PATHS = [path.name for path in cpu_paths() if path.runs_here] if why_missing() is None else []
VARIANTS = [
    {"kind": "GRU", "linear_before_reset": 1},
    {"kind": "GRU", "linear_before_reset": 0},
    {"kind": "LSTM"},
    {"kind": "RNN"},
    {"kind": "RNN", "activation": "Relu"},
]
variants = pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: "-".join(map(str, variant.values())))
OPTIONAL = ("sequence_lens", "initial_h", "initial_c")


def optional(layer: Layer) -> tuple[str, ...]:
    return tuple(name for name in OPTIONAL if name in layer.inputs)


def combinations(of: tuple[str, ...], least: int = 0) -> list[tuple[str, ...]]:
    return [some for count in range(least, len(of) + 1) for some in itertools.combinations(of, count)]


@variants
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("size", [1, 3, 17, 130])
def test_close_to_the_float_operator(variant: dict[str, object], direction: str, size: int) -> None:
    layer = Layer(**variant, direction=direction, hidden=size, input=131 - size)  # type: ignore[arg-type]
    feeds = layer.feeds(7, 5, *optional(layer))
    ours = answer(layer.session(*optional(layer)), feeds)
    theirs = answer(layer.float_session(*optional(layer)), feeds)
    for one, other in zip(ours, theirs, strict=True):
        assert one.shape == other.shape
        noise = float(np.sum((one - other) ** 2.0)) / float(np.sum(other**2.0))
        # Of one unit alone a ReLU leaves little but the noise.
        assert noise < 10 ** -(3.5 if size > 1 else 1.2), f"{-10 * np.log10(noise):.1f} dB"


@variants
def test_paths_agree(variant: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    layer = Layer(**variant, input=40, hidden=33)  # type: ignore[arg-type]
    feeds = layer.feeds(5, 3, *optional(layer))
    found = {}
    for path in PATHS:
        monkeypatch.setenv("DEPLOYKIT_KERNELS_PATH", path)
        found[path] = answer(layer.session(*optional(layer)), feeds)
    for path, values in found.items():
        for one, other in zip(values, found["plain"], strict=True):
            # A last bit may turn one rounding of a state over, which is worth 1/127 of a weight.
            np.testing.assert_allclose(one, other, atol=2e-3, rtol=1e-3, err_msg=path)


@pytest.mark.parametrize("path", PATHS)
@variants
def test_rows_steps_and_threads_change_nothing(
    variant: dict[str, object], path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEPLOYKIT_KERNELS_PATH", path)
    # Of so many multiply-accumulates that the groups of rows are shared out among threads.
    layer = Layer(**variant, input=17, hidden=130)  # type: ignore[arg-type]
    feeds = layer.feeds(33, 19, *optional(layer))
    sessions = {threads: layer.session(*optional(layer), threads=threads) for threads in (1, 2, 4)}
    whole = answer(sessions[1], feeds)
    for threads in (2, 4):
        assert all(same(answer(sessions[threads], feeds), whole) for _ in range(3))
    for row in (0, 8, 18):
        alone = {
            name: value[row : row + 1] if value.ndim == 1 else value[:, row : row + 1] for name, value in feeds.items()
        }
        expected = [value[..., row : row + 1, :] for value in whole]
        assert same(answer(sessions[4], alone), expected)
    first = {**feeds, "X": feeds["X"][:5], "sequence_lens": np.minimum(feeds["sequence_lens"], 5)}
    assert same(answer(sessions[1], first)[:1], [whole[0][:5]])


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "variant", [{"kind": "GRU", "hidden": 840}, {"kind": "LSTM", "hidden": 730}], ids=["GRU", "LSTM"]
)
def test_columns_shared_among_threads(variant: dict[str, object], path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEPLOYKIT_KERNELS_PATH", path)
    layer = Layer(**variant, direction="bidirectional")  # type: ignore[arg-type]
    one_way = Layer(**variant)  # type: ignore[arg-type]
    for each in (layer, one_way):
        feeds = each.feeds(3, 1)
        assert same(answer(each.session(threads=4), feeds), answer(each.session(), feeds))


@variants
def test_each_direction_is_the_layer_alone(variant: dict[str, object]) -> None:
    both = Layer(**variant, direction="bidirectional")  # type: ignore[arg-type]
    feeds = both.feeds(9, 11, *optional(both))
    whole = answer(both.session(*optional(both)), feeds)
    for at, direction in enumerate(("forward", "reverse")):
        part = {name: value[at : at + 1] for name, value in both.constants.items()}
        alone = Layer(**variant, direction=direction, changed=part)  # type: ignore[arg-type]
        states = {name: value[at : at + 1] for name, value in feeds.items() if name.startswith("initial")}
        found = answer(alone.session(*optional(alone)), {**feeds, **states})
        assert same(found, [whole[0][:, at : at + 1], *(value[at : at + 1] for value in whole[1:])])


@variants
def test_every_combination_of_optional_inputs_and_outputs(variant: dict[str, object]) -> None:
    for bias in (True, False):
        layer = Layer(**variant, bias=bias)  # type: ignore[arg-type]
        feeds = layer.feeds(4, 3, *optional(layer))
        zeros = {name: np.zeros_like(value) for name, value in feeds.items()} | {
            "sequence_lens": np.full(3, 4, np.int32)
        }
        full = layer.session(*optional(layer))
        for given in combinations(optional(layer)):
            some = {name: value for name, value in feeds.items() if name in ("X", *given)}
            expected = dict(zip(layer.outputs, answer(full, {**zeros, **some}), strict=True))
            for outputs in combinations(layer.outputs, 1):
                found = answer(layer.session(*given, outputs=outputs), some)
                assert same(found, [expected[name] for name in outputs]), (given, outputs)


@variants
@pytest.mark.parametrize(("steps", "batch"), [(0, 3), (3, 0), (0, 0)])
def test_no_steps_or_no_rows(variant: dict[str, object], steps: int, batch: int) -> None:
    layer = Layer(**variant, direction="bidirectional")  # type: ignore[arg-type]
    y, *states = answer(layer.session(*optional(layer)), layer.feeds(steps, batch, *optional(layer)))
    assert y.shape == (steps, 2, batch, 17)
    for state in states:
        assert state.shape == (2, batch, 17)
        assert not state.any()


@pytest.mark.parametrize("path", PATHS)
@variants
def test_eight_threads_on_one_session(variant: dict[str, object], path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEPLOYKIT_KERNELS_PATH", path)
    layer = Layer(**variant, direction="bidirectional", hidden=64)  # type: ignore[arg-type]
    session = layer.session(*optional(layer), threads=2)
    # From small runs to some that are shared out among the session's own threads.
    feeds = [layer.feeds(1 + 7 * (at % 4), 1 + 5 * (at % 5), *optional(layer), seed=at) for at in range(40)]
    alone = [answer(session, feed) for feed in feeds]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda feed: answer(session, feed), feeds * 3))
    assert all(same(found, alone[at % 40]) for at, found in enumerate(together))
