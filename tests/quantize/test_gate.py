"""The accuracy gate: what is written has been held against its parent, and the fewest nodes stay in float."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from deploykit import artifact as artifacts
from deploykit.artifact import Artifact
from deploykit.coverage import Coverage
from deploykit.errors import GateError, ModelError, QuantizationError, UsageError
from deploykit.quantize import quantize
from deploykit.quantize._gate import Bounds, Cost, Gate
from deploykit.types import Metric, TensorSpec
from tests.quantize import graphs
from tests.quantize.graphs import Form, both_forms

if TYPE_CHECKING:
    from deploykit.types import Array, Infer


def linear_net(*scales: float, hostile: int | None = None) -> onnx.ModelProto:
    """A chain of MatMul nodes m0, m1, …; the hostile one gets one input channel a thousand times the others."""
    nodes, weights, value = [], [], "x"
    rng = np.random.default_rng(0)
    for number, scale in enumerate(scales):
        matrix = (rng.standard_normal((32, 32)) * scale).astype(np.float32)
        if hostile == number:
            # Its input is scaled up in one channel, and that channel's weights are scaled down: in float they cancel,
            # in int8 the channel takes the whole range of the row.
            factor = np.ones(32, np.float32)
            factor[3] = 1000
            weights.append(numpy_helper.from_array(factor, "factor"))
            nodes.append(helper.make_node("Mul", [value, "factor"], ["scaled"], name="scale"))
            value, matrix = "scaled", matrix / factor[:, None]
        weights.append(numpy_helper.from_array(matrix, f"w{number}"))
        name = "y" if number == len(scales) - 1 else f"v{number}"
        nodes.append(helper.make_node("MatMul", [value, f"w{number}"], [name], name=f"m{number}"))
        value = name
    ends = [graphs.floats("x", "batch", "time", 32)], [graphs.floats("y", "batch", "time", 32)]
    return graphs.build(nodes, *ends, weights)


def saved(folder: Path, model: onnx.ModelProto) -> Artifact:
    (folder / "net.onnx").write_bytes(model.SerializeToString())
    return artifacts.read(folder / "net.onnx")


@both_forms
def test_a_good_net_is_quantized_whole_and_the_manifest_says_how_good(folder: Path, kernels: Form) -> None:
    made = quantize(saved(folder, graphs.Net().model()), folder / "int8.onnx", kernels=kernels)
    proof = made.verification
    assert proof is not None
    assert proof["verified"] is True
    assert "seeded noise" in proof["inputs"]
    assert "names no PyTorch model" in proof["inputs"]
    assert 25 < proof["accuracy"]["snr_db"] < 80
    assert set(proof["accuracy"]["outputs"]) == {"y", "h_0"}
    assert proof["kept_float"] == proof["ranking"] == []
    assert artifacts.read(folder / "int8.onnx").verification == proof


def test_only_the_hostile_node_stays_in_float(folder: Path) -> None:
    source = saved(folder, linear_net(0.2, 0.2, 0.2, hostile=1))
    made = quantize(source, folder / "int8.onnx", bounds=Bounds(min_snr=25), prefer="int8")
    assert made.verification is not None
    assert made.verification["kept_float"] == ["m1"]
    assert next(cost["node"] for cost in made.verification["ranking"]) == "m1"
    assert made.coverage is not None
    became = {row.node: (row.became, row.reason) for row in made.coverage.rows}
    assert became["m0"][0] == became["m2"][0] == "int8"
    assert became["m1"] == ("float32", "quantized, it would cost more accuracy than the bounds allow")


def test_weights_are_stored_as_int8_where_only_the_arithmetic_is_hostile(folder: Path) -> None:
    model = linear_net(0.2, 0.2, hostile=1)
    matrix = numpy_helper.to_array(model.graph.initializer[-1]).copy()
    matrix[3] = 0  # the loud channel takes the range of the row, and does nothing
    model.graph.initializer[-1].CopyFrom(numpy_helper.from_array(matrix, "w1"))
    made = quantize(saved(folder, model), folder / "int8.onnx", prefer="int8")
    assert made.verification is not None
    assert (made.verification["kept_float"], made.verification["kept_storage"]) == ([], ["m1"])
    assert made.coverage is not None
    assert [row.became for row in made.coverage.rows] == ["int8", "int8-storage"]


def test_a_bound_that_cannot_be_held_ends_with_the_ranking_and_no_file(folder: Path) -> None:
    source = saved(folder, linear_net(0.2, 0.2))
    before = sorted(path.name for path in folder.iterdir())
    for bounds in (Bounds(min_snr=120), Bounds(max_error=1e-9)):
        with pytest.raises(GateError, match=r"no choice of nodes holds the bound .* m[01] \(.* dB\)"):
            quantize(source, folder / "int8.onnx", bounds=bounds)
    assert sorted(path.name for path in folder.iterdir()) == before


@both_forms
def test_a_recurrent_layer_that_would_have_to_stay_is_an_error_unless_partial_is_allowed(
    folder: Path, kernels: Form
) -> None:
    source = saved(folder, graphs.Net(layers=2).model())
    whole = quantize(source, folder / "whole.onnx", prefer="int8", kernels=kernels).verification
    assert whole is not None
    bounds = Bounds(min_snr=whole["accuracy"]["snr_db"] + 1)  # one layer less brings more than that
    with pytest.raises(GateError, match=r"gru_\d: quantized, it would cost more"):
        quantize(source, folder / "int8.onnx", bounds=bounds, prefer="int8", kernels=kernels)
    assert not (folder / "int8.onnx").exists()
    made = quantize(source, folder / "int8.onnx", bounds=bounds, prefer="int8", allow_partial=True, kernels=kernels)
    assert made.coverage is not None
    assert [row.became for row in made.coverage.rows].count("int8") == 1


def test_a_bound_that_storage_misses_too_keeps_floats(folder: Path) -> None:
    source = saved(folder, linear_net(0.2, 0.2))
    whole = quantize(source, folder / "stored.onnx", method="weight-only").verification
    one = quantize(source, folder / "one.onnx", prefer="int8", exclude=frozenset({"m0"})).verification
    assert whole is not None
    assert one is not None
    assert one["accuracy"]["snr_db"] > whole["accuracy"]["snr_db"] - 12
    made = quantize(source, folder / "int8.onnx", prefer="int8", bounds=Bounds(min_snr=one["accuracy"]["snr_db"] - 0.1))
    assert made.verification is not None
    assert len(made.verification["kept_float"]) == 1
    assert made.verification["kept_storage"] == []


def test_without_bounds_nothing_is_measured_and_the_manifest_says_so(folder: Path) -> None:
    made = quantize(saved(folder, linear_net(0.2)), folder / "int8.onnx", bounds=None)
    assert made.verification == {"verified": False}


def test_the_calibration_file_is_what_is_measured_on(folder: Path) -> None:
    source = saved(folder, linear_net(0.2, hostile=0))
    quiet = np.random.default_rng(0).standard_normal((6, 50, 32)).astype(np.float32)
    quiet[..., 3] = 0  # real data never uses the hostile channel
    np.savez(folder / "real.npz", x=quiet)
    bounds = Bounds(min_snr=30)
    with pytest.raises(GateError, match="seeded noise"):
        quantize(source, folder / "int8.onnx", bounds=bounds)
    made = quantize(source, folder / "int8.onnx", bounds=bounds, calibration=folder / "real.npz")
    assert made.verification is not None
    assert made.verification["inputs"].endswith("real.npz")
    np.savez(folder / "wrong.npz", x=quiet[..., :5])
    with pytest.raises(UsageError, match=r"wrong\.npz"):
        quantize(source, folder / "int8.onnx", calibration=folder / "wrong.npz")


def gate(model: onnx.ModelProto, bounds: Bounds, metric: Metric | None = None) -> Gate:
    feeds = [{"x": np.random.default_rng(seed).standard_normal((2, 5, 32)).astype(np.float32)} for seed in range(2)]
    return Gate(model, (TensorSpec("y", "float32", ("batch", "time", 32)),), feeds, "test inputs", bounds, metric)


def mean_square(infer: Infer) -> float:
    x: Array = np.ones((1, 3, 32), np.float32)
    return float(np.square(infer({"x": x})["y"]).mean())


@pytest.mark.parametrize("higher_is_better", [True, False])
def test_the_metric_is_a_bound_in_its_own_direction(higher_is_better: bool) -> None:
    model = linear_net(0.2)
    wrong = linear_net(0.2)
    matrix = numpy_helper.to_array(wrong.graph.initializer[0]) * np.float32(0.97)
    wrong.graph.initializer[0].CopyFrom(numpy_helper.from_array(matrix, "w0"))  # 6 % less mean square, and 30 dB
    metric = Metric("mean_square", higher_is_better, mean_square)
    chosen = gate(model, Bounds(max_metric_drop=0.01), metric)

    def choose() -> None:
        chosen.choose(lambda exclude, stored: (wrong, Coverage(())), frozenset(), lambda step: None)

    if higher_is_better:
        with pytest.raises(GateError, match=r"mean_square goes from .* to .* and 1.0% is allowed"):
            choose()
    else:
        choose()


def test_a_metric_that_fails_on_the_candidate_misses_its_bound_and_on_the_parent_is_an_error() -> None:
    model = linear_net(0.2)
    values = iter([1.0])

    def once(infer: Infer) -> float:
        for value in values:
            return value
        raise ModelError("the metric own.py:once returned nan.")

    chosen = gate(model, Bounds(), Metric("once", True, once))
    with pytest.raises(GateError, match=r"holds the bound \(the metric own\.py:once returned nan\)"):
        chosen.choose(lambda exclude, stored: (model, Coverage(())), frozenset(), lambda step: None)
    chosen = gate(model, Bounds(), Metric("once", True, once))
    with pytest.raises(ModelError, match="returned nan"):
        chosen.choose(lambda exclude, stored: (model, Coverage(())), frozenset(), lambda step: None)


def test_the_users_metric_is_a_bound_and_stands_in_the_manifest(folder: Path) -> None:
    source = saved(folder, linear_net(0.2))
    np.savez(folder / "real.npz", x=np.ones((4, 6, 32), np.float32), labels=np.arange(3))
    (folder / "own.py").write_text(
        "def score(infer, data):\n    return float(abs(infer({'x': data['x']})['y']).mean() + data['labels'].sum())\n"
    )
    named = f"{folder / 'own.py'}:score"
    made = quantize(source, folder / "int8.onnx", calibration=folder / "real.npz", metric=named, prefer="int8")
    assert made.verification is not None
    metric = made.verification["metric"]
    assert (metric["name"], metric["higher_is_better"]) == ("score", True)
    assert metric["parent"] > 3
    with pytest.raises(UsageError, match="there are none: give them with --calibration"):
        quantize(source, folder / "other.onnx", metric=named)
    assert not (folder / "other.onnx").exists()


def test_nan_fails_whichever_side_it_comes_from() -> None:
    model, broken = linear_net(0.2), linear_net(0.2)
    broken.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.full((32, 32), np.nan, np.float32), "w0"))
    with pytest.raises(GateError, match="NaN or Inf"):
        gate(model, Bounds()).choose(lambda exclude, stored: (broken, Coverage(())), frozenset(), lambda step: None)
    with pytest.raises(QuantizationError, match="itself answers NaN"):
        gate(broken, Bounds()).choose(lambda exclude, stored: (model, Coverage(())), frozenset(), lambda step: None)


def test_nodes_without_a_name_are_ranked_and_kept_too(folder: Path) -> None:
    model = linear_net(0.2, 0.2, hostile=1)
    for node in model.graph.node:
        node.name = ""
    made = quantize(saved(folder, model), folder / "int8.onnx", bounds=Bounds(min_snr=25))
    assert made.verification is not None
    assert made.verification["kept_float"] == ["y"]  # called after its output


def test_costs_are_ordered_from_unusable_to_free() -> None:
    costs = [Cost("free", None, 0.0), Cost("cheap", 60.0, 0.1), Cost("dear", 10.0, 3.0), Cost("nan", None, None)]
    assert [cost.node for cost in sorted(costs, key=lambda cost: cost.order)] == ["nan", "dear", "cheap", "free"]
    assert replace(costs[2]).told == "dear (10.0 dB)"


def test_an_output_of_integers_is_judged_by_how_many_are_equal(folder: Path) -> None:
    """Class numbers have no SNR: of those of a net with near ties many change."""
    rng = np.random.default_rng(0)
    base = rng.standard_normal((32, 1)) + rng.standard_normal((32, 40)) * 1e-4
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["v"], name="m"),
        helper.make_node("ArgMax", ["v"], ["y"], axis=-1, keepdims=0),
    ]
    y = helper.make_tensor_value_info("y", onnx.TensorProto.INT64, ["batch", "time"])
    weights = [numpy_helper.from_array(base.astype(np.float32), "w")]
    model = graphs.build(nodes, [graphs.floats("x", "batch", "time", 32)], [y], weights)
    with pytest.raises(GateError, match=r"output y is equal in \d+\.\d%, and 90% is asked for.*m \(off by \d+\)"):
        quantize(saved(folder, model), folder / "int8.onnx", prefer="int8")
    assert not (folder / "int8.onnx").exists()


def test_a_single_node_falls_back_to_storage(folder: Path) -> None:
    """One LSTM with a loud input that does nothing: hostile in int8, harmless when only stored."""
    net = graphs.Net("LSTM", inputs=16, hidden=32)
    model = net.model()
    matrix = numpy_helper.to_array(model.graph.initializer[0]).copy()
    matrix[..., 0] = 0
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(matrix, "W0"))
    x = np.random.default_rng(0).standard_normal((30, 4, 16)).astype(np.float32)
    x[..., 0] *= 1e4
    np.savez(folder / "loud.npz", x=x)
    source = saved(folder, model)
    with pytest.raises(GateError, match="would keep float arithmetic"):
        quantize(source, folder / "int8.onnx", prefer="int8", calibration=folder / "loud.npz")
    made = quantize(source, folder / "int8.onnx", prefer="int8", calibration=folder / "loud.npz", allow_partial=True)
    assert made.coverage is not None
    assert [row.became for row in made.coverage.rows] == ["int8-storage"]


def test_an_output_without_elements_is_no_trouble(folder: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["v"], name="m"),
        helper.make_node("Slice", ["v", "from", "to", "axis"], ["y"]),
    ]
    ints = [
        numpy_helper.from_array(np.array([number], np.int64), name)
        for name, number in (("from", 500), ("to", 900), ("axis", 1))
    ]
    ends = [graphs.floats("x", "batch", "time", 32)], [graphs.floats("y", "batch", "late", 16)]
    model = graphs.build(nodes, *ends, [graphs.tensor("w", 32, 16), *ints])
    assert quantize(saved(folder, model), folder / "int8.onnx", prefer="int8").verification is not None


def test_nothing_that_is_read_is_written_over(folder: Path) -> None:
    source = saved(folder, linear_net(0.2))
    np.savez(folder / "real.npz", x=np.zeros((2, 5, 32), np.float32))
    (folder / "voice.onnx.json").write_text('{"audio": {"sample_rate": 22050}}')
    onnx.save(
        linear_net(0.2), folder / "large.onnx", save_as_external_data=True, location="large.data", size_threshold=0
    )
    large = artifacts.read(folder / "large.onnx")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for one, path in ((source, "net.onnx"), (source, "real.npz"), (large, "large.data"), (source, "voice.onnx")):
        with pytest.raises(UsageError, match="name another file with -o"):
            quantize(one, folder / path, calibration=folder / "real.npz")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_somebody_elses_json_beside_a_model_is_no_manifest(folder: Path) -> None:
    saved(folder, linear_net(0.2))
    (folder / "net.onnx.json").write_text('{"audio": {"sample_rate": 22050}}')
    assert artifacts.read(folder / "net.onnx").model is None
