"""What TensorRT is given: every kind of recurrent file of ours, in every precision that its version has, unchanged in
its answers; or refused, and why."""

from __future__ import annotations

import subprocess
import sys
import warnings
from functools import cache
from typing import Any, Literal

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from deploykit import loading
from deploykit.artifact import ModelRef
from deploykit.errors import BuildError
from deploykit.export import to_onnx
from deploykit.quantize import QuantizeOptions
from deploykit.quantize.dynamic import SCHEME as DYNAMIC
from deploykit.quantize.static import SCHEME as STATIC
from deploykit.quantize.weight_only import SCHEME as WEIGHT_ONLY
from deploykit.trt.check import problems
from deploykit.trt.prepare import prepared
from tests.export.corpus import CORPUS
from tests.export.test_corpus import spec_of
from tests.quantize.graphs import DIRECTIONS, VARIANTS, Feeds, Net, all_ops, run, session
from tests.trt.test_check import EARLY, LATE, NEWEST, OLD, VERSIONS, parse

Precision = Literal["fp32", "fp16", "bf16", "int8"]
NO_LSTM, NO_BFLOAT16 = "has no LSTM in 16 bits", "TensorRT 8.6 has no bfloat16"


def plainly(model: onnx.ModelProto, feeds: Feeds) -> dict[str, Any]:
    """The answers of onnxruntime without its rewriting, some of which cannot load float16 (its issue 28392)."""
    return run(session(model, level="ORT_DISABLE_ALL"), feeds)


def make(model: onnx.ModelProto, precision: Precision, version: Any) -> onnx.ModelProto:
    """The prepared file: the source is left alone, the interface stays, and nothing is left to refuse."""
    before = model.SerializeToString(deterministic=True)
    result = prepared(model, precision, version)
    assert model.SerializeToString(deterministic=True) == before
    assert all(problem.severity == "warn" for problem in problems(result, version, precision))
    for old, new in zip(
        (*model.graph.input, *model.graph.output), (*result.graph.input, *result.graph.output), strict=True
    ):
        assert new == old
    kinds = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
    floats = {one.data_type for one in stored(result.graph)} & {TensorProto.FLOAT, *kinds.values()}
    if precision in kinds:
        assert kinds[precision] in floats
        assert all(one.data_type != TensorProto.FLOAT or not one.dims for one in stored(result.graph))
    else:
        assert floats == {TensorProto.FLOAT}
    return result


def stored(graph: onnx.GraphProto) -> list[onnx.TensorProto]:
    found = list(graph.initializer)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                found += stored(attribute.g)
    return found


def assert_close(expected: dict[str, Any], found: dict[str, Any], share: float) -> None:
    """Within a share of the largest answer."""
    for name, value in expected.items():
        scale = max(1.0, float(np.abs(value).max(initial=0)))
        assert np.abs(value.astype(np.float64) - found[name].astype(np.float64)).max(initial=0) <= share * scale, name


def missing(kind: str, precision: str, version: Any) -> str:
    """Why a layer of a kind is refused; empty where it is taken: the table in docs/tensorrt.md."""
    if precision == "bf16" and version == OLD:
        return NO_BFLOAT16
    return NO_LSTM if kind == "LSTM" and precision != "fp32" and version < (10, 14) else ""


@pytest.mark.parametrize("lengths", [False, True], ids=["whole", "lengths"])
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(("kind", "variant"), VARIANTS)
def test_every_layer_in_every_precision_and_version(kind: str, variant: str, direction: str, lengths: bool) -> None:
    for initial in (False, True):
        net = Net(kind, variant, direction=direction, lengths=lengths, initial=initial)
        model, feeds = net.model(), net.feeds(9, 3)
        expected = run(model, feeds)
        for version in VERSIONS:
            for precision in ("fp32", "fp16", "bf16"):
                why = missing(kind, precision, version)
                if why:
                    with pytest.raises(BuildError, match=why):
                        prepared(model, precision, version)
                    continue
                result = make(model, precision, version)
                if precision != "bf16":
                    assert_close(expected, plainly(result, feeds), 1e-6 if precision == "fp32" else 4e-3)


@pytest.mark.parametrize("lengths", [False, True], ids=["whole", "lengths"])
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(("kind", "variant"), VARIANTS)
def test_bfloat16_answers(kind: str, variant: str, direction: str, lengths: bool) -> None:
    net = Net(kind, variant, direction=direction, lengths=lengths, hidden=9, inputs=5)
    model, feeds = net.model(), net.feeds(5, 2)
    result = make(model, "bf16", LATE)
    if not lengths and (variant == "Relu" or (kind == "GRU" and direction != "forward")):
        pytest.skip("onnx's reference runs neither an RNN with Relu nor a Scan from the end; onnxruntime no bfloat16")
    names = [output.name for output in result.graph.output]
    found = dict(zip(names, ReferenceEvaluator(result).run(None, feeds), strict=True))
    assert_close(run(model, feeds), found, 2e-2)
    assert any(np.abs(found[name] - value).max() > 1e-4 for name, value in run(model, feeds).items())


@pytest.mark.parametrize("lengths", [False, True], ids=["whole", "lengths"])
@pytest.mark.parametrize(("kind", "variant"), VARIANTS)
def test_int8_of_every_layer(kind: str, variant: str, lengths: bool) -> None:
    net = Net(kind, variant, direction="bidirectional", lengths=lengths)
    feeds = net.feeds(9, 3)
    quantized, _ = STATIC.apply(net.model(), QuantizeOptions(frozenset(), feeds))
    for version in VERSIONS:
        result = make(quantized, "int8", version)
        assert_close(run(quantized, feeds), run(result, feeds), 1e-6)
        with pytest.raises(BuildError, match="the file is quantized to int8, not float16: say --precision int8"):
            prepared(quantized, "fp16", version)


@cache
def exported(name: str, opset: int = 17) -> tuple[onnx.ModelProto, Any]:
    spec = spec_of(name)
    return to_onnx(spec, opset).model, spec


#: What float16 cannot hold: a mask of -1e9.
MASKED = {"masked-attention", "self-attention"}
#: Nothing in them is int8: their products lie inside of a Scan.
ALL_INSIDE = {"gates", "cell-decoder"}
LSTMS = {"voice-activity", "deepar-step", "masked-attention", "cell-decoder", "plain-lstm-cells"}


def refused(name: str, precision: str, version: Any) -> str:
    if precision == "int8":
        return "the file is not quantized" if name in ALL_INSIDE else ""
    if precision == "bf16" and version == OLD:
        return NO_BFLOAT16
    if precision == "fp16" and name in MASKED:
        return "float16 ends at ±65504: build it with --precision fp32 or bf16"
    return missing("LSTM" if name in LSTMS else "GRU", precision, version)


@pytest.mark.parametrize("name", CORPUS)
def test_models_as_users_have_them(name: str) -> None:
    model, spec = exported(name)
    sizes = {dim: CORPUS[name].least_time + 6 if dim == "time" else 3 for dim in spec.dynamic}
    feeds = {one.name: np.asarray(spec.feeds(0, **sizes)[one.name]) for one in spec.inputs}
    quantized, _ = STATIC.apply(model, QuantizeOptions(frozenset(), feeds))
    for version in VERSIONS:
        for precision in ("fp32", "fp16", "bf16", "int8"):
            source = quantized if precision == "int8" else model
            why = refused(name, precision, version)
            if why:
                with pytest.raises(BuildError, match=why):
                    prepared(source, precision, version)
                continue
            result = make(source, precision, version)
            if version == LATE and precision != "bf16":
                assert_close(run(source, feeds), plainly(result, feeds), 4e-3 if precision == "fp16" else 1e-5)


@pytest.mark.parametrize("streaming", [False, True], ids=["whole", "streaming"])
@pytest.mark.parametrize("name", ["charlm-gru-attention", "charlm-lstm"])
def test_zoo_models(name: str, streaming: bool) -> None:
    spec = loading.load(ModelRef(name, streaming=streaming))
    model = to_onnx(spec, 20).model
    given = spec.feeds(0, batch=2, time=9)
    feeds = {one.name: np.asarray(given[one.name]) for one in spec.inputs}
    with pytest.raises(BuildError, match=r"the file is of opset 20, and TensorRT 8\.6 reads 9 to 17: export"):
        prepared(model, "fp32", OLD)
    for version in (EARLY, NEWEST):
        assert_close(run(model, feeds), plainly(make(model, "fp32", version), feeds), 1e-6)
    assert_close(run(model, feeds), plainly(make(model, "fp16", NEWEST), feeds), 4e-3)
    make(model, "bf16", NEWEST)


def test_a_projected_lstm() -> None:
    import torch

    from tests.export.test_grid import spec_of as layer_spec

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        spec = layer_spec(torch.nn.LSTM(5, 7, 2, bidirectional=True, proj_size=3), False, True)
        model = to_onnx(spec, 17).model
    feeds = {one.name: np.asarray(spec.feeds(0, batch=2, time=6)[one.name]) for one in spec.inputs}
    for version in VERSIONS:
        assert_close(run(model, feeds), plainly(make(model, "fp32", version), feeds), 1e-6)
    assert_close(run(model, feeds), plainly(make(model, "fp16", LATE), feeds), 4e-3)


def test_a_float16_gru_keeps_its_operator_and_gets_zeros_to_start_from() -> None:
    result = make(Net("GRU", direction="bidirectional", hidden=21).model(), "fp16", LATE)
    (gru,) = (node for node in result.graph.node if node.op_type == "GRU")
    (expand,) = (node for node in result.graph.node if gru.input[5] in node.output)
    assert expand.op_type == "Expand"
    zero = next(one for one in result.graph.initializer if one.name == expand.input[0])
    assert (zero.data_type, list(zero.dims), zero.raw_data) == (TensorProto.FLOAT16, [], b"\0\0")


@pytest.mark.parametrize(
    ("kind", "lengths", "precision", "version", "scanned"),
    [
        ("GRU", False, "fp16", LATE, False),
        ("GRU", False, "fp16", EARLY, True),
        ("GRU", True, "fp16", LATE, True),
        ("GRU", False, "bf16", LATE, True),
        ("LSTM", True, "fp16", LATE, True),
        ("LSTM", False, "bf16", LATE, False),
        ("RNN", False, "bf16", EARLY, False),
        ("RNN", True, "bf16", EARLY, True),
        ("GRU", True, "fp32", OLD, False),
    ],
)
def test_what_the_parser_has_no_form_for_is_written_out(
    kind: str, lengths: bool, precision: Precision, version: Any, scanned: bool
) -> None:
    operators = all_ops(make(Net(kind, lengths=lengths).model(), precision, version).graph)
    assert (kind in operators, "Scan" in operators) == (not scanned, scanned)


def test_a_layer_that_cannot_be_written_out_is_refused() -> None:
    model = Net("GRU", lengths=True).model()
    model.graph.node[0].attribute.append(helper.make_attribute("clip", 1.0))
    make(model, "fp32", LATE)
    with pytest.raises(BuildError, match=r"GRU gru_0 cannot be built in float16 \(clip is set\): build it with"):
        prepared(model, "fp16", LATE)


def test_outputs_before_a_named_one_get_names() -> None:
    net = Net("LSTM")
    model = net.model()
    model.graph.node[0].output[:] = ["", "", "c_0"]
    del model.graph.output[:2]
    result = make(model, "fp32", LATE)
    assert all(result.graph.node[0].output)
    assert_close(run(model, net.feeds(5, 2)), run(result, net.feeds(5, 2)), 1e-6)
    assert any("leaves its output Y" in one.sentence for one in problems(model, LATE, "fp32"))


def test_axes_that_the_file_computes_are_stored() -> None:
    text = """g (float[2,1] x) => (float[2] y) <int64[1] one = {1}, int64[1] none = {0}>
        { axes = Add(one, none) y = Squeeze(x, axes) }"""
    result = make(with_weight(parse(text)), "fp32", LATE)
    squeeze = next(node for node in result.graph.node if node.op_type == "Squeeze")
    assert squeeze.input[1] in {one.name for one in result.graph.initializer}


def with_weight(model: onnx.ModelProto) -> onnx.ModelProto:
    model.graph.initializer.append(helper.make_tensor("unread", TensorProto.FLOAT, [1], [0.0]))
    return model


def test_constants_of_a_shape_in_8_6() -> None:
    text = """g (float[n] x) => (int64[n] y)
        { s = Shape(x) y = ConstantOfShape <value = int64[1] v {3}> (s) }"""
    model, feeds = with_weight(parse(text)), {"x": np.ones(4, np.float32)}
    assert all_ops(make(model, "fp32", LATE).graph) == ["Shape", "ConstantOfShape"]
    result = make(model, "fp32", OLD)
    assert all_ops(result.graph) == ["Shape", "Expand"]
    assert_close(run(model, feeds), run(result, feeds), 0)


def test_what_an_operator_lacks_in_16_bits_stays_float32() -> None:
    text = "g (float[4] x) => (float[4] y) <float[4] w = {1, 2, 3, 4}> { z = Mul(x, w) y = Mish(z) }"
    late, early = make(parse(text, 18), "fp16", LATE), make(parse(text, 18), "bf16", LATE)
    mish = {name: next(node for node in one.graph.node if node.op_type == "Mish") for name, one in
            (("fp16", late), ("bf16", early))}  # fmt: skip
    assert "float" not in mish["fp16"].input[0]
    assert "float" in mish["bf16"].input[0]


def test_a_float16_file_is_taken_as_it_is_and_is_nothing_else() -> None:
    half = prepared(Net("GRU", initial=True).model(), "fp16", LATE)
    assert make(half, "fp16", LATE) == half
    with pytest.raises(BuildError, match="is float16 already, not float32: say --precision fp16"):
        prepared(half, "fp32", LATE)
    with pytest.raises(BuildError, match="is float16 already, not bfloat16"):
        prepared(half, "bf16", LATE)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize(
    ("scheme", "fused"), [(DYNAMIC, False), (DYNAMIC, True), (WEIGHT_ONLY, False)], ids=["dynamic", "fused", "stored"]
)
def test_int8_files_for_onnxruntime_are_refused_with_the_way(scheme: Any, precision: Precision, fused: bool) -> None:
    model = Net("GRU", hidden=64, inputs=64).model()
    quantized, _ = scheme.apply(model, QuantizeOptions(prefer="int8", fused=fused))
    with pytest.raises(BuildError) as caught:
        prepared(quantized, precision, LATE)
    what = (
        "only stores its weights in int8" if scheme is WEIGHT_ONLY else "is int8 for onnxruntime, with operators that"
    )
    assert what in str(caught.value)
    assert "deploykit quantize --int8 --target trt" in str(caught.value)
    assert ("give the float32 file" in str(caught.value)) == (precision != "int8")


def test_a_float_file_is_not_built_in_int8() -> None:
    with pytest.raises(BuildError, match="the file is not quantized, and TensorRT's int8 is QuantizeLinear"):
        prepared(Net("GRU").model(), "int8", LATE)


def test_every_reason_is_told() -> None:
    with pytest.raises(BuildError) as caught:
        prepared(parse("g (float[2] x) => (float[2] y) { z = Bernoulli(x) y = Det(z) }"), "fp32", LATE)
    assert [line.split()[0] for line in str(caught.value).splitlines()] == ["Bernoulli", "Det"]


def test_functions_of_the_file_are_written_in() -> None:
    text = '<ir_version: 8, opset_import: ["" : 17, "local" : 1]> g (float[2] x) => (float[2] y) { y = local.Twice(x) }'
    function = '<domain: "local", opset_import: ["" : 17]> Twice (x) => (y) { y = Add(x, x) }'
    model = with_weight(onnx.parser.parse_model(f"{text} {function}"))
    result = make(model, "fp32", OLD)
    assert ([*result.functions], all_ops(result.graph)) == ([], ["Add"])


PREPARE = """
import hashlib, sys
from deploykit.trt.prepare import prepared
from tests.quantize.graphs import Net
model = Net("GRU", direction="bidirectional", lengths=True, layers=2).model()
for precision in ("fp32", "fp16", "bf16"):
    content = prepared(model, precision, (10, 16)).SerializeToString(deterministic=True)
    print(hashlib.sha256(content).hexdigest())
"""


def test_the_same_file_gives_the_same_bytes_in_another_process() -> None:
    runs = [
        subprocess.run(
            [sys.executable, "-c", PREPARE],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(filter(None, sys.path))},
        ).stdout
        for seed in ("1", "2")
    ]
    assert runs[0] == runs[1] != ""


def test_a_file_of_an_old_opset_is_told_without_a_word_of_int8() -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 11]> g (float[2] x) => (float[2] y) { y = Neg(x) }'
    )
    with pytest.raises(BuildError, match="of an opset before 14") as error:
        prepared(model, "fp32", (10, 16))
    assert "int8" not in str(error.value)
