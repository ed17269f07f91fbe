"""Recurrent layers as the fused operators of ai.deploykit: the portable form's numbers, and what the files say of them.

What both forms have in common is tested on both, where it is tested of ``dynamic``.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from deploykit import artifact as artifacts
from deploykit import kernels as library
from deploykit import registry, runtime
from deploykit.artifact import Artifact
from deploykit.backends import RunOptions
from deploykit.bench.locate import locate
from deploykit.errors import BackendFailedError, KernelsError, QuantizationError, UsageError
from deploykit.graphs import inferred
from deploykit.opsets import imported
from deploykit.quantize import Kernels, QuantizeOptions
from deploykit.quantize import quantize as quantize_file
from deploykit.quantize._source import check_source
from tests.quantize.graphs import (
    DIRECTIONS,
    VARIANTS,
    Form,
    Net,
    all_initializers,
    all_ops,
    both_forms,
    build,
    floats,
    needs_library,
    quantize,
    run,
    session,
    snr,
    tensor,
    worst_snr,
)

LOST = "the fused int8 kernels were not built, for want of a C++ compiler: install one."


def lose(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine where the library was not built."""
    monkeypatch.setattr(library, "why_missing", lambda: LOST)


def saved(folder: Path, model: onnx.ModelProto) -> Artifact:
    onnx.save(model, folder / "net.onnx")
    return artifacts.read(folder / "net.onnx")


def test_the_library_is_there_wherever_a_compiler_is() -> None:
    """The tests of the fused form are skipped without the library: not where it could have been built."""
    compiler = shlex.split(os.environ.get("CXX", "c++"))[0]
    if sys.platform != "linux":
        pytest.skip("THE FUSED KERNELS ARE NOT TESTED: they are built on Linux alone")
    if shutil.which(compiler) is None:
        pytest.skip(f"THE FUSED KERNELS ARE NOT TESTED: there is no {compiler}")
    assert library.why_missing() is None


@needs_library
@pytest.mark.parametrize("method", ["dynamic", "dynamic-8bit"])
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(("kind", "variant"), VARIANTS)
def test_it_is_the_portable_form_within_rounding(kind: str, variant: str, direction: str, method: str) -> None:
    net = Net(kind, variant, inputs=33, hidden=70, direction=direction, layers=2, lengths=True, initial=True)
    model, scheme = net.model(), registry.scheme(method)
    portable, fused = (quantize(model, scheme=scheme, kernels=one)[0] for one in ("portable", "fused"))
    for time, batch in ((1, 1), (7, 3), (30, 5)):
        feeds = net.feeds(time, batch)
        # float32 sums in another order round a state to the neighbouring level now and then: int8 itself costs 43 dB
        assert worst_snr(portable, fused, feeds) > 55


@needs_library
@pytest.mark.parametrize(("kind", "variant"), VARIANTS)
def test_one_node_a_layer_with_the_portable_weights(kind: str, variant: str) -> None:
    net = Net(kind, variant, direction="bidirectional", layers=2)
    result, coverage = quantize(net.model(), kernels="fused")
    nodes = [node for node in result.graph.node if node.domain == library.DOMAIN]
    assert [node.op_type for node in nodes] == [f"DynamicQuantize{kind}"] * 2
    assert [node.name for node in nodes] == [f"{kind.lower()}_0", f"{kind.lower()}_1"]
    assert not {"Scan", "MatMulIntegerToFloat", kind} & set(all_ops(result.graph))
    assert [row.form for row in coverage.rows] == [f"DynamicQuantize{kind} of ai.deploykit (fused)"] * 2
    assert {(row.kind, row.became, row.coupled) for row in coverage.rows} == {(kind, "int8", False)}
    portable = {numpy_helper.to_array(one).tobytes() for one in int8(quantize(net.model())[0])}
    for matrix in (matrix for one in int8(result) for matrix in numpy_helper.to_array(one)):
        # the portable form has a GRU's in two pieces where they have inputs of their own
        parts = np.split(matrix, [2 * net.hidden], axis=1) if matrix.tobytes() not in portable else [matrix]
        assert {np.ascontiguousarray(part).tobytes() for part in parts} <= portable


def int8(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    return [one for one in all_initializers(model.graph) if one.data_type == TensorProto.INT8 and len(one.dims) > 1]


@needs_library
def test_all_8_bits_are_signed_for_the_operators_and_closer() -> None:
    net = Net("GRU", inputs=32, hidden=64)
    model, feeds = net.model(), net.feeds(30, 2)
    found = []
    for method in ("dynamic", "dynamic-8bit"):
        result, _ = quantize(model, scheme=registry.scheme(method), kernels="fused")
        weights = [numpy_helper.to_array(one) for one in int8(result)]
        assert len(weights) == 2
        assert min(one.min() for one in weights) >= -127
        found.append(worst_snr(model, result, feeds))
    assert 34 < found[0] < found[1]


@needs_library
@pytest.mark.parametrize(("kind", "variant"), VARIANTS)
def test_neighbours_and_later_steps_change_no_bit(kind: str, variant: str) -> None:
    net = Net(kind, variant, inputs=50, hidden=130, layers=2, initial=True)
    opened = session(quantize(net.model(), kernels="fused")[0])
    feeds = net.feeds(24, 21)
    whole = run(opened, feeds)
    loud = {name: value.copy() for name, value in feeds.items()}
    loud["x"][:, 1:] *= 100
    loud["x"][13:] = np.nan
    for name in set(loud) - {"x"}:
        loud[name][:, 1:] *= 100
    np.testing.assert_array_equal(run(opened, loud)["y"][:13, :, 0], whole["y"][:13, :, 0])
    for steps in (1, 5, 23):
        cut = run(opened, {**feeds, "x": feeds["x"][:steps]})
        np.testing.assert_array_equal(cut["y"], whole["y"][:steps])


@needs_library
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(("kind", "variant"), VARIANTS)
def test_no_steps_and_no_rows(kind: str, variant: str, direction: str) -> None:
    """Final states are zeros then, as onnxruntime has them for a row without steps; a Scan takes no such sequence."""
    net = Net(kind, variant, direction=direction, initial=True)
    opened = session(quantize(net.model(), kernels="fused")[0])
    feeds = net.feeds(4, 3)
    made = run(opened, {**feeds, "x": feeds["x"][:0]})
    assert made["y"].shape == (0, net.directions, 3, net.hidden)
    for state in net.states:
        assert made[f"{state}_0"].shape == (net.directions, 3, net.hidden)
        assert not made[f"{state}_0"].any()
    nobody = run(opened, {name: value[:, :0] for name, value in feeds.items()})
    assert nobody["y"].shape == (4, net.directions, 0, net.hidden)


def two_activations() -> onnx.ModelProto:
    model = Net("RNN", "Tanh", direction="bidirectional").model()
    (given,) = [one for one in model.graph.node[0].attribute if one.name == "activations"]
    given.strings[:] = [b"Tanh", b"Relu"]
    return model


@needs_library
def test_an_rnn_with_an_activation_for_each_direction_takes_the_portable_form() -> None:
    model = two_activations()
    result, coverage = quantize(model, kernels="fused")
    assert "Scan" in all_ops(result.graph)
    assert "Scan" in coverage.rows[0].form
    assert "ai.deploykit" not in imported(result.SerializeToString())
    assert worst_snr(model, result, Net("RNN", direction="bidirectional").feeds(9, 2)) > 30


@needs_library
def test_shapes_behind_the_operators_are_known() -> None:
    model = Net("LSTM", direction="bidirectional", layers=2).model()
    (state,) = [one for one in model.graph.output if one.name == "c_0"]
    state.name = "copy"
    model.graph.node.append(helper.make_node("Identity", ["c_0"], ["copy"]))
    result, _ = quantize(model, kernels="fused")
    found = {
        info.name: [dim.dim_value for dim in info.type.tensor_type.shape.dim] for info in inferred(result).value_info
    }
    assert found["y_0"] == [0, 2, 0, 21]
    assert found["c_0"] == [2, 0, 21]
    assert found["x_1"][2] == 42


@needs_library
def test_small_layers_are_int8_for_speed_and_their_products_are_not() -> None:
    net = Net("GRU", inputs=40, hidden=30)
    head = helper.make_node("MatMul", ["y", "H"], ["z"], name="head")
    model = net.model()
    model.graph.node.append(head)
    model.graph.initializer.append(tensor("H", 30, 40))
    model.graph.output.append(floats("z", "time", 1, "batch", 40))
    result, coverage = quantize(model, prefer="speed", kernels="fused")
    assert [row.became for row in coverage.rows] == ["int8", "int8-storage"]
    assert worst_snr(model, result, net.feeds(9, 2)) > 34


@needs_library
def test_it_is_quantized_already() -> None:
    result, _ = quantize(Net().model(), kernels="fused")
    with pytest.raises(QuantizationError, match=r"quantized already \(node 'gru_0' is a DynamicQuantizeGRU\)"):
        check_source(result)


@needs_library
@pytest.mark.parametrize("asked", ["fused", "auto"])
def test_the_manifest_names_the_operators(folder: Path, asked: Kernels) -> None:
    source = saved(folder, Net().model())
    made = quantize_file(source, folder / "int8.onnx", kernels=asked)
    assert (made.format, made.precision, made.operators) == ("onnx-int8", "int8", {"ai.deploykit": 1})
    assert artifacts.read(folder / "int8.onnx").operators == {"ai.deploykit": 1}
    assert made.coverage is not None
    assert "fused" in made.coverage.rows[0].form
    assert quantize_file(source, folder / "portable.onnx").operators == {}
    artifacts.manifest_path(folder / "int8.onnx").unlink()  # the file alone tells too
    assert artifacts.read(folder / "int8.onnx").operators == {"ai.deploykit": 1}


def test_an_older_manifest_names_none(folder: Path) -> None:
    quantize_file(saved(folder, Net().model()), folder / "int8.onnx")
    path = artifacts.manifest_path(folder / "int8.onnx")
    text = path.read_text()
    assert '"operators"' in text
    import msgspec

    data = msgspec.json.decode(text)
    del data["operators"]
    path.write_bytes(msgspec.json.encode(data))
    assert artifacts.read(folder / "int8.onnx").operators == {}


def test_without_the_library_auto_is_portable_and_fused_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = saved(folder, Net(hidden=300).model())
    lose(monkeypatch)
    made = quantize_file(source, folder / "int8.onnx", kernels="auto")
    assert made.coverage is not None
    assert "Scan" in made.coverage.rows[0].form
    assert made.operators == {}
    with pytest.raises(KernelsError, match=r"--kernels fused is not possible here: the fused .* install one"):
        quantize_file(source, folder / "fused.onnx", kernels="fused")
    assert not (folder / "fused.onnx").exists()


@pytest.mark.parametrize("asked", ["fused", "auto"])
def test_coupled_and_fused_are_two_answers_to_one_question(folder: Path, asked: Kernels) -> None:
    with pytest.raises(UsageError, match="couples nothing: leave --allow-coupled out"):
        quantize_file(saved(folder, Net("LSTM").model()), folder / "int8.onnx", kernels=asked, allow_coupled=True)


@needs_library
def test_sessions_and_backends_load_the_library_for_it_and_say_what_lacks(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = Net()
    source = saved(folder, net.model())
    made = quantize_file(source, folder / "int8.onnx", kernels="fused")
    feeds = net.feeds(6, 2)
    expected = run(source_model(source), feeds)["y"]
    with registry.backend("ort").open(made, RunOptions(threads=1)) as runner:
        assert snr(expected, runner.infer(feeds)["y"]) > 34
        assert runner.notes == ("runs operators of ai.deploykit, version 1.",)
    for given in (made.path, made.path.read_bytes()):
        assert snr(expected, run(runtime.session(given), feeds)["y"]) > 34
    assert {one.kind for one in locate(made, source, feeds).values} == {"GRU"}
    lose(monkeypatch)
    with pytest.raises(KernelsError, match=r"^the model needs version 1 of the operators of ai\.deploykit: the fused"):
        runtime.session(made.path.read_bytes())
    with pytest.raises(KernelsError, match=r"^int8\.onnx needs version 1 of the operators of ai\.deploykit: the fused"):
        registry.backend("ort").open(made, RunOptions(threads=1))


@needs_library
def test_a_path_that_does_not_run_here_is_told_before_onnxruntime_tells_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = saved(folder, Net().model())
    made = quantize_file(source, folder / "int8.onnx", kernels="fused")
    monkeypatch.setenv(library.PATH_VARIABLE, "abacus")
    told = r"^DEPLOYKIT_KERNELS_PATH is 'abacus', and there is no such path .* or unset it\.$"
    with pytest.raises(KernelsError, match=told):
        runtime.session(made.path)
    asked: tuple[Kernels, ...] = ("fused", "auto")
    for kernels in asked:
        with pytest.raises(KernelsError, match=told):
            quantize_file(source, folder / "again.onnx", kernels=kernels)
    assert not (folder / "again.onnx").exists()


def source_model(artifact: Artifact) -> onnx.ModelProto:
    return artifacts.load_onnx(artifact.path)


@pytest.mark.parametrize(("version", "step"), [(99, "upgrade deploykit"), (0, "quantize its float file again")])
def test_another_version_of_the_operators_is_refused(version: int, step: str) -> None:
    model = QuantizedNet.of(version)
    with pytest.raises(KernelsError, match=f"needs version {version} of .* has version {library.VERSION}: {step}"):
        runtime.session(model.SerializeToString())


class QuantizedNet:
    """A fused net that says it needs another version; made without the library, which making needs not."""

    @staticmethod
    def of(version: int) -> onnx.ModelProto:
        model, _ = registry.scheme("dynamic").apply(Net().model(), QuantizeOptions(prefer="int8", fused=True))
        (entry,) = [one for one in model.opset_import if one.domain == library.DOMAIN]
        entry.version = version
        return model


def test_other_models_are_opened_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    lose(monkeypatch)
    node = helper.make_node("Neg", ["x"], ["y"], name="ai.deploykit")
    model = build([node], [floats("x", 2)], [floats("y", 2)], [])
    model.producer_name = "ai.deploykit"
    runtime.session(model.SerializeToString())


@both_forms
def test_a_file_that_is_no_model_has_onnxruntimes_own_sentence(folder: Path, kernels: Form) -> None:
    made, _ = quantize(Net().model(), kernels=kernels)
    (folder / "cut.onnx").write_bytes(made.SerializeToString()[:-40])
    artifact = Artifact(folder / "cut.onnx", "onnx-int8", "int8", "", (), ())
    with pytest.raises(BackendFailedError, match=r"onnxruntime cannot load cut\.onnx"):
        registry.backend("ort").open(artifact, RunOptions(threads=1))
