"""Small layers keep their float arithmetic and say so; --prefer decides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import helper

from deploykit import artifact as artifacts
from deploykit import registry
from deploykit.coverage import Coverage, CoverageRow
from deploykit.errors import UsageError
from deploykit.quantize import PREFERENCES, Preference
from deploykit.quantize import quantize as quantize_file
from deploykit.quantize._constants import Constants
from deploykit.quantize._coupled import read_coupled
from deploykit.quantize._fused import FusedLayer
from deploykit.quantize._linear import Linear, read_matmul
from deploykit.quantize._preference import (
    HIDDEN,
    HIDDEN_COUPLED,
    HIDDEN_FUSED,
    HIDDEN_GIVEN_STATE,
    HIDDEN_IN_A_STEP,
    HIDDEN_RELU,
    why_storage_only,
)
from deploykit.quantize._recurrent import Layer, read
from tests.quantize.graphs import (
    DIRECTIONS,
    Form,
    Net,
    all_ops,
    both_forms,
    build,
    floats,
    quantize,
    run,
    snr,
    tensor,
    worst_snr,
)


def layer(kind: str, hidden: int, direction: str = "forward") -> Layer:
    model = Net(kind, inputs=4, hidden=hidden, direction=direction).model()
    found = read(model.graph.node[0], Constants(model.graph, 17), {"y"})
    assert isinstance(found, Layer)
    return found


def product(rows: int, columns: int) -> Linear:
    found = read_matmul(head(rows, columns).graph.node[0], Constants(head(rows, columns).graph, 17))
    assert isinstance(found, Linear)
    return found


def head(rows: int, columns: int) -> onnx.ModelProto:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], name="head")]
    return build(nodes, [floats("x", "time", rows)], [floats("y", "time", columns)], [tensor("w", rows, columns)])


@pytest.mark.parametrize("kind", ["GRU", "LSTM", "RNN"])
def test_the_measured_size_decides_between_float_and_int8(kind: str) -> None:
    for in_a_step, least in ((False, HIDDEN), (True, HIDDEN_IN_A_STEP[kind])):
        assert why_storage_only(layer(kind, least), "speed", in_a_step) is None
        assert f"below {least} units" in str(why_storage_only(layer(kind, least - 1), "speed", in_a_step))
        assert why_storage_only(layer(kind, 1), "int8", in_a_step) is None


@pytest.mark.parametrize(("kind", "variant"), [("GRU", "1"), ("LSTM", ""), ("RNN", "Tanh"), ("RNN", "Relu")])
def test_a_state_without_a_bound_needs_a_larger_layer(kind: str, variant: str) -> None:
    least = HIDDEN_RELU if variant == "Relu" else HIDDEN_GIVEN_STATE
    for hidden, pays in ((least, True), (least - 1, False)):
        model = Net(kind, variant, inputs=4, hidden=hidden, initial=True).model()
        found = read(model.graph.node[0], Constants(model.graph, 17), {"y"})
        assert isinstance(found, Layer)
        assert (why_storage_only(found, "speed", in_a_step=False) is None) == pays


@pytest.mark.parametrize("kind", ["GRU", "LSTM", "RNN"])
def test_fused_layers_have_a_size_of_their_own(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    small, nested = FusedLayer(layer(kind, 7)), (False, True)
    assert HIDDEN_FUSED[kind] <= 7
    assert [why_storage_only(small, "speed", in_a_step) for in_a_step in nested] == [None, None]
    assert "larger than what they save" in str(why_storage_only(small, "size", in_a_step=False))
    monkeypatch.setitem(HIDDEN_FUSED, kind, 8)
    assert why_storage_only(small, "speed", in_a_step=False) == "float is faster below 8 units"


def test_narrow_and_small_products_stay_in_float() -> None:
    assert why_storage_only(product(256, 256), "speed", in_a_step=False) is None
    assert "weights inside a step" in str(why_storage_only(product(256, 256), "speed", in_a_step=True))
    for sides in ((1024, 64), (64, 1024)):
        assert "inputs or outputs" in str(why_storage_only(product(*sides), "speed", in_a_step=False))
    assert "weights" in str(why_storage_only(product(64, 256), "speed", in_a_step=False))
    assert why_storage_only(product(8, 8), "int8", in_a_step=True) is None


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_size_wants_more_saved_than_the_graph_takes(direction: str) -> None:
    assert "larger than what they save" in str(why_storage_only(layer("GRU", 8, direction), "size", in_a_step=False))
    assert why_storage_only(layer("GRU", 64, direction), "size", in_a_step=False) is None


@pytest.mark.parametrize("kind", ["GRU", "LSTM", "RNN"])
def test_the_graph_takes_what_size_thinks_it_takes(kind: str) -> None:
    """A layer as small as size makes int8 is no larger in int8, float weights in memory counted, than stored only."""
    for hidden in (24, 48, 64, 100):
        model = Net(kind, inputs=hidden, hidden=hidden).model()
        weights = sum(len(one.raw_data) for one in model.graph.initializer if len(one.dims) == 3)
        int8, stored = (quantize(model, prefer=prefer)[0].ByteSize() for prefer in ("int8", "speed"))
        became = quantize(model, prefer="size")[1].rows[0].became
        assert (
            became == ("int8" if int8 < stored + weights * 3 // 4 else "int8-storage")
            or abs(int8 - stored - weights * 3 // 4) < 4000
        )


def test_the_coupled_operator_pays_earlier() -> None:
    for hidden, pays in ((HIDDEN_COUPLED, True), (HIDDEN_COUPLED - 1, False)):
        model = Net("LSTM", hidden=hidden).model()
        found = read_coupled(model.graph.node[0], Constants(model.graph, 17))
        assert not isinstance(found, str)
        assert (why_storage_only(found, "speed", in_a_step=False) is None) == pays


def test_a_small_layer_is_stored_and_computes_as_before() -> None:
    net = Net("GRU", inputs=40, hidden=60, layers=2)
    model = net.model()
    result, coverage = quantize(model, prefer="speed")
    assert [(row.became, row.by_preference) for row in coverage.rows] == [("int8-storage", True)] * 2
    assert coverage.rows[0].reason == f"float is faster below {HIDDEN} units"
    assert (coverage.weight_share, coverage.mac_share) == (1, 0)
    assert all_ops(result.graph).count("GRU") == 2
    assert worst_snr(model, result, net.feeds(20, 2)) > 40
    assert model.ByteSize() / result.ByteSize() > 3
    assert not [one for one in result.opset_import if one.domain]  # no operator of onnxruntime's own is needed


def test_layers_of_both_sizes_run_side_by_side() -> None:
    large = Net("GRU", inputs=8, hidden=HIDDEN).model()
    small = Net("GRU", inputs=8, hidden=16).model()
    for one in (large, small):
        assert quantize(one, prefer="speed")[1].rows[0].became == ("int8" if one is large else "int8-storage")


def test_tiny_products_stay_as_they_are() -> None:
    result, coverage = quantize(head(24, 10), prefer="speed")
    assert result.graph == head(24, 10).graph
    assert coverage.rows[0].became == "float32"
    result, coverage = quantize(head(64, 40), prefer="speed")
    assert coverage.rows[0].became == "int8-storage"
    feeds = Net(inputs=64).feeds(20, 1)
    x = {"x": feeds["x"][:, 0]}
    assert snr(run(head(64, 40), x)["y"], run(result, x)["y"]) > 40


def test_shares_add_up() -> None:
    rows = [CoverageRow(name, "GRU", "int8", "", size, macs) for name, size, macs in (("a", 300, 1), ("b", 100, 3))]
    assert Coverage(tuple(rows)).shares() == ((0.75, 0.25), (0.25, 0.75))
    assert Coverage((CoverageRow("a", "Gather", "int8-storage", "", 0, 0),)).shares() == ((0, 0),)


@pytest.mark.parametrize("method", ["static", "weight-only"])
def test_methods_without_a_choice_say_so(method: str, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    onnx.save(Net().model(), path)
    given: list[dict[str, Any]] = [
        {"prefer": "speed"},
        {"kernels": "portable"},
        {"kernels": "auto"},
        {"allow_coupled": True},
    ]
    for options in given:
        with pytest.raises(UsageError, match=f"not for {method}: leave it out"):
            quantize_file(artifacts.read(path), tmp_path / "out.onnx", method=method, **options)


@both_forms
@pytest.mark.parametrize("prefer", PREFERENCES)
def test_every_preference_gives_a_sound_file(prefer: Preference, kernels: Form) -> None:
    net = Net("LSTM", inputs=30, hidden=50, direction="bidirectional", lengths=True, initial=True)
    model = net.model()
    for method in ("dynamic", "dynamic-8bit"):
        result, coverage = quantize(model, scheme=registry.scheme(method), prefer=prefer, kernels=kernels)
        assert worst_snr(model, result, net.feeds(9, 3)) > 33
        assert not [row for row in coverage.rows if row.became == "float32"]
