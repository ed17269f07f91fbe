"""The limits of TensorRT's parser: every rule has a graph that breaks it, and is named."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from deploykit import kernels
from deploykit.trt.check import Problem, problems
from deploykit.trt.library import parse_version
from deploykit.trt.limits import NAMES, limits
from tests.quantize.graphs import Net

OLD, EARLY, LATE, NEWEST = (8, 6, 1), (10, 0, 1), (10, 16, 1), (11, 4, 0)
VERSIONS = (OLD, EARLY, LATE, NEWEST)
DATA = json.loads((files("deploykit.trt") / "limits.json").read_text(encoding="utf-8"))


def parse(text: str, opset: int = 17) -> onnx.ModelProto:
    """A model; not checked, since much of it is wrong on purpose."""
    domains = '"com.microsoft" : 1, "com.example" : 1, "ai.deploykit" : 1'
    model: onnx.ModelProto = parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}, {domains}]> {text}')
    return model


def sentences(model: onnx.ModelProto, version: Any = LATE, precision: str = "fp32", severity: str = "refuse") -> str:
    return "\n".join(one.sentence for one in problems(model, version, precision) if one.severity == severity)


def recurrent(kind: str = "GRU", half: int = TensorProto.FLOAT, **changes: Any) -> onnx.ModelProto:
    """A layer that every rule allows, but for what is changed: attributes, inputs or outputs of the node."""
    net = Net(kind, inputs=3, hidden=4, initial=True)
    model = net.model()
    node = model.graph.node[0]
    for name, value in changes.items():
        if name in ("input", "output"):
            index, wanted = value
            getattr(node, name)[index] = wanted
        else:
            kept = [attribute for attribute in node.attribute if attribute.name != name]
            del node.attribute[:]
            node.attribute.extend([*kept, helper.make_attribute(name, value)])
    for value in (*model.graph.input, *model.graph.output):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            value.type.tensor_type.elem_type = half
    for tensor in model.graph.initializer:
        content = numpy_helper.to_array(tensor).astype(np.float16).tobytes()
        if half != TensorProto.FLOAT:
            tensor.data_type, tensor.raw_data = half, content
    return model


FLOAT16, BFLOAT16 = TensorProto.FLOAT16, TensorProto.BFLOAT16
BOTH: dict[str, Any] = {"direction": "bidirectional"}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("kind", ["RNN", "GRU", "LSTM"])
def test_a_plain_layer_is_taken_by_every_version(kind: str, version: Any) -> None:
    assert problems(recurrent(kind), version, "fp32") == []


@pytest.mark.parametrize(
    ("model", "version", "precision", "told"),
    [
        *((recurrent(kind, layout=1), LATE, "fp32", "has layout=1") for kind in ("RNN", "GRU", "LSTM")),
        (recurrent("LSTM", input_forget=1), LATE, "fp32", "has input_forget=1"),
        (recurrent(activations=["Sigmoid", "Affine"]), LATE, "fp32", "has the activation Affine"),
        (recurrent("RNN", **BOTH, activations=["Tanh", "Relu"]), LATE, "fp32", "other activations in its two"),
        (recurrent("RNN", **BOTH, activation_alpha=[0.1, 0.2]), LATE, "fp32", "other activation_alpha in its two"),
        (recurrent(output=(0, "")), LATE, "fp32", "leaves its output Y without a name"),
        (recurrent("LSTM", output=(1, "")), LATE, "fp32", "leaves its output Y_h without a name"),
        (recurrent(input=(4, "lengths64")), LATE, "fp32", "has lengths64, which is not int32"),
        (recurrent("GRU", FLOAT16, input=(5, "")), LATE, "fp16", "is float16 and has no initial state"),
        (recurrent("RNN", FLOAT16, input=(5, "")), LATE, "fp16", "is float16 and has no initial state"),
        (recurrent("GRU", FLOAT16, input=(4, "lengths")), LATE, "fp16", "has lengths per row, which TensorRT masks"),
        (recurrent("LSTM", FLOAT16, input=(4, "lengths")), LATE, "fp16", "has lengths per row, which TensorRT masks"),
        (recurrent("LSTM", FLOAT16), (10, 13, 3), "fp16", "TensorRT 10.13 has no LSTM in 16 bits"),
        (recurrent("LSTM", FLOAT16), OLD, "fp16", "TensorRT 8.6 has no LSTM in 16 bits"),
        (recurrent("GRU", FLOAT16), EARLY, "fp16", "computes a part of such a GRU in float32"),
        (recurrent("GRU", BFLOAT16), LATE, "bf16", "computes a part of such a GRU in float32"),
    ],
)
def test_every_rule_of_a_recurrent_layer(model: onnx.ModelProto, version: Any, precision: str, told: str) -> None:
    node = model.graph.node[0]
    for name, kind in (("lengths", TensorProto.INT32), ("lengths64", TensorProto.INT64)):
        if name in node.input:
            model.graph.input.append(helper.make_tensor_value_info(name, kind, ["batch"]))
    found = [one for one in problems(model, version, precision) if told in one.sentence]
    assert [(one.node, one.op_type, one.severity) for one in found] == [(node.name, node.op_type, "refuse")]
    assert found[0].sentence.startswith(f"{node.op_type} {node.name} ")


@pytest.mark.parametrize(
    ("kind", "half", "version", "precision"),
    [
        ("GRU", FLOAT16, (10, 2), "fp16"),
        ("RNN", FLOAT16, OLD, "fp16"),
        ("RNN", BFLOAT16, EARLY, "bf16"),
        ("LSTM", FLOAT16, (10, 14), "fp16"),
        ("LSTM", BFLOAT16, LATE, "bf16"),
    ],
)
def test_what_there_is_in_16_bits_is_taken(kind: str, half: int, version: Any, precision: str) -> None:
    assert sentences(recurrent(kind, half), version, precision) == ""


def scan(inputs: str = "s, x", body: str = "s1, x1", **attributes: Any) -> str:
    more = "".join(f", {name}={value}" for name, value in attributes.items())
    made = "t, y" if inputs == "s, x" else "y"
    outputs = "float[2] t1, float[2] y1" if inputs == "s, x" else "float[2] y1"
    typed = ", ".join(f"float[2] {name}" for name in body.split(", "))
    inner = "t1 = Add(s1, x1) y1 = Identity(x1)" if inputs == "s, x" else "y1 = Identity(x1)"
    return f"""g (float[n, 2] x, float[2] s) => (float[n, 2] y)
      {{ {made} = Scan <num_scan_inputs=1{more}, body = b ({typed}) => ({outputs}) {{ {inner} }}> ({inputs}) }}"""


LOOP = """g (int64 n, bool c, float[2] s) => (float[2] t, float[m, 2] y)
  {{ t, y = Loop <body = b (int64 i, bool d, float[2] s1) => (bool d1, float[2] t1, float[2] y1)
     {{ d1 = Identity(d) t1 = Add(s1, s1) y1 = Identity(s1) }}> ({inputs}) }}"""
IF = """g (bool c, float[2] x) => (float[2] y)
  {{ y = If <then_branch = a () => (float[2] {a}) {{ {a} = Identity(x) }},
             else_branch = b () => (float[2] {b}) {{ {b} = Neg(x) }}> (c) }}"""


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (scan("x", "x1"), "carries no state"),
        (scan(scan_input_axes="[-2]"), "counts an axis from the end"),
        (scan(scan_output_axes="[-2]"), "counts an axis from the end"),
        (LOOP.format(inputs=", c, s"), "without a number of turns"),
        (IF.format(a="z", b="z"), "under one name in both branches"),
        ("g (float[2] x) => (float[2] y) { y = Bernoulli(x) }", "is an operator that TensorRT 10.16 does not take"),
        ("g (float[2] x) => (float[2] y) { y = NoSuchThing(x) }", "is an operator that TensorRT 10.16 does not take"),
        ("g (float[2] x) => (float[2] y) { y = com.example.Thing(x) }", "is an operator of com.example"),
        ("g (float[2] x) => (int8[2] y) { y, s, z = DynamicQuantizeLinear(x) }", "deploykit quantize --int8 --target"),
        ("g (int8[2,2] x) => (int32[2,2] y) { y = MatMulInteger(x, x) }", "deploykit quantize --int8 --target trt"),
        ("g (float[2] x) => (float[2] y) { y = com.microsoft.DynamicQuantizeMatMul(x) }", "--int8 --target trt"),
        ("g (float[2] x) => (float[2] y) { y = com.microsoft.DynamicQuantizeLSTM(x) }", "--int8 --target trt"),
        ("g (float[2] x) => (float[2] y) { y = com.microsoft.MatMulIntegerToFloat(x) }", "--int8 --target trt"),
        ("g (float[2] x) => (float[2] y) { y = ai.deploykit.QuantizedGRU(x) }", "--int8 --target trt"),
        ("g (int64[n] x) => (int64[n] y) <int64 k = {0}> { y = CumSum(x, k) }", "reads or makes x as int64"),
        ("g (uint8[2] x) => (uint8[2] y) { y = Identity(x) }", "uint8 in inputs and outputs of the model alone"),
        ("g (int16[2] x) => (int16[2] y) { y = Identity(x) }", "x is int16, and TensorRT has no such inputs"),
        ("g (float[2,2] x, int64[1] k) => (float[2] y) { y = Squeeze(x, k) }", "computes k at run time"),
        ("g (float[2,2] x, int64 k) => (float[2,2] y) { y = CumSum(x, k) }", "computes k at run time"),
        ("g (float[n,2] x) => (float[n,2] y) { y = EyeLike(x) }", "needs a fixed shape of x"),
        (
            "g (float[9] x) => (float[9] v, int64[9] i) <int64[1] k = {9}> { v, i = TopK <sorted=0> (x, k) }",
            "has sorted=0",
        ),
        (
            "g (float[n] x) => (float[m] v, int64[m] i) <int64[1] k = {3840}> { v, i = TopK(x, k) }",
            "has k = 3840, and TensorRT ends before 3840",
        ),
        (
            """g (float[2,3,9] x) => (float[2,3,4] y, int64[2,3,4] i)
            { y, i = MaxPool <kernel_shape=[2], strides=[2]> (x) }""",
            "makes i, which TensorRT does not",
        ),
        (
            "g (float[2,3,9] x) => (float[2,3,7] y) { y = MaxPool <kernel_shape=[2], dilations=[2]> (x) }",
            "has dilations other than 1",
        ),
        (f"g (float[{','.join('1' * 9)}] x) => (float[{','.join('1' * 9)}] y) {{ y = Neg(x) }}", "with 9 dims"),
    ],
)
def test_every_rule_of_other_operators(text: str, told: str) -> None:
    found = [one for one in problems(parse(text), LATE, "fp32") if told in one.sentence]
    assert found, sentences(parse(text))
    assert {one.severity for one in found} == {"refuse"}


@pytest.mark.parametrize("text", [scan(), LOOP.format(inputs="n, , s"), IF.format(a="z", b="w")])
@pytest.mark.parametrize("version", VERSIONS)
def test_loops_and_branches_that_are_taken(text: str, version: Any) -> None:
    assert sentences(parse(text), version) == ""


def test_the_domain_of_our_own_operators_is_told_as_ours() -> None:
    assert kernels.DOMAIN == "ai.deploykit"
    text = "g (float[2] x) => (float[2] y) { y = ai.deploykit.QuantizedGRU(x) }"
    assert "an operator of deploykit's own for onnxruntime" in sentences(parse(text))


def test_gemm_scaled_in_16_bits() -> None:
    text = "g ({0}[2,2] x) => ({0}[2,2] y) {{ y = Gemm <alpha=0.5> (x, x) }}"
    assert "has alpha=0.5" in sentences(parse(text.format("float16")), precision="fp16")
    assert sentences(parse(text.format("float"))) == ""


QDQ = """g (float[2,4] x) => (float[2,4] y) <float{d} s = {scale}, {kind}{d} z = {zero}>
    {{ q = QuantizeLinear{axis} (x, s{z}) y = DequantizeLinear{axis} (q, s{z}) }}"""


def qdq(
    scale: str = "{0.1}", kind: str = "int8", zero: str = "{0}", axis: str = "", d: str = "", z: str = ", z"
) -> str:
    return QDQ.format(scale=scale, kind=kind, zero=zero, axis=axis, d=d, z=z)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (qdq(zero="{3}"), "has a zero point other than 0 (z)"),
        (qdq(kind="uint8"), "is uint8, which TensorRT reads as int8"),
        (qdq(z=""), "has no zero point, which means uint8"),
        (qdq(scale="{0}"), "has a scale that is not above 0 (s)"),
        (qdq("{1, 1, 1, 1}", zero="{0, 0, 0, 0}", axis=" <axis=1>", d="[4]"), "has a scale per channel for x"),
        (qdq("{1, 1, 1}", zero="{0, 0, 0}", axis=" <axis=1>", d="[3]"), "has 3 scales that do not fit axis 1 of x"),
        (qdq("{1, 1, 1, 1}", zero="{0, 0, 0, 0}", axis=" <axis=5>", d="[4]"), "do not fit axis 5 of x"),
        (
            "g (float[2] x, float s) => (int8[2] y) <int8 z = {0}> { y = QuantizeLinear(x, s, z) }",
            "computes its scale s",
        ),
        ("g (float[2] x, int8 z) => (int8[2] y) <float s = {1}> { y = QuantizeLinear(x, s, z) }", "its zero point z"),
        (
            """g (float[2] x) => (float[2] y) <int32[2] b = {3, 4}, float s = {0.1}>
            { c = DequantizeLinear(b, s) y = Add(x, c) }""",
            "makes a bias from int32",
        ),
    ],
)
def test_every_rule_of_quantization(text: str, told: str) -> None:
    assert told in sentences(parse(text), precision="int8")


@pytest.mark.parametrize("version", VERSIONS)
def test_int8_around_zero_is_taken(version: Any) -> None:
    assert problems(parse(qdq()), version, "int8") == []


@pytest.mark.parametrize(
    ("text", "precision", "told"),
    [
        (qdq(), "fp32", "the file is quantized to int8, not float32: say --precision int8"),
        (qdq(), "fp16", "the file is quantized to int8, not float16: say --precision int8"),
        (
            """g (float[2] x) => (float[2] y) <int8[2] w = {1, 2}, float s = {1}>
            { f = DequantizeLinear(w, s) y = Add(x, f) }""",
            "int8",
            "the file only stores its weights in int8",
        ),
        ("g (float[2] x) => (float[2] y) { y = Neg(x) }", "int8", "the file is not quantized"),
        (
            "g (float16[2] x) => (float16[2] y) { y = Neg(x) }",
            "fp32",
            "is float16 already, not float32: say --precision fp16",
        ),
        ("g (float16[2] x) => (float16[2] y) { y = Neg(x) }", "bf16", "is float16 already, not bfloat16"),
        (
            "g (bfloat16[2] x) => (bfloat16[2] y) { y = Neg(x) }",
            "fp16",
            "is bfloat16 already, not float16: say --precision bf16",
        ),
        ("g (float[2] x) => (float[2] y) { h = Cast <to=10> (x) y = Cast <to=1> (h) }", "fp32", "is float16 already"),
        ("g (double[2] x) => (double[2] y) { y = Neg(x) }", "fp16", "the file is float64, which TensorRT computes in"),
        ("g (double[2] x) => (double[2] y) { y = Neg(x) }", "bf16", "the file is float64, which TensorRT computes in"),
    ],
)
def test_never_another_precision_than_asked_for(text: str, precision: str, told: str) -> None:
    assert told in sentences(parse(text), precision=precision)


def test_an_input_without_dims_is_no_scalar() -> None:
    model = parse("g (float[2] x) => (float[2] y) { y = Neg(x) }")
    model.graph.input[0].type.tensor_type.ClearField("shape")
    assert "x has no dims in the file" in sentences(model)
    scalar = parse("g (float x) => (float y) { y = Neg(x) }")
    scalar.graph.input[0].type.tensor_type.shape.SetInParent()
    assert sentences(scalar) == ""


def test_bfloat16_is_not_there_before_10() -> None:
    text = "g (bfloat16[2] x) => (bfloat16[2] y) { y = Neg(x) }"
    assert "TensorRT 8.6 has no bfloat16" in sentences(parse(text), OLD, "bf16")
    assert sentences(parse(text), EARLY, "bf16") == ""


@pytest.mark.parametrize(
    ("version", "newest"),
    [(OLD, 17), (EARLY, 20), ((10, 6), 22), ((10, 11), 23), (LATE, 24), (NEWEST, 24), ((11, 5), 25)],
)
def test_opsets(version: Any, newest: int) -> None:
    text = "g (float[2] x) => (float[2] y) { y = Neg(x) }"
    assert sentences(parse(text, newest), version) == ""
    assert f"the file is of opset {newest + 1}" in sentences(parse(text, newest + 1), version)
    assert f"with --opset {min(newest, 20)}." in sentences(parse(text, newest + 1), version)
    assert "the file is of opset 8" in sentences(parse(text, 8), version)


def test_an_operator_that_came_later_names_the_version() -> None:
    text = "g (float[2] x) => (float[2] y) { y = Gelu(x) }"
    assert "is there from TensorRT 10.6 on, not in TensorRT 10.0" in sentences(parse(text, 20), EARLY)
    assert sentences(parse(text, 20), LATE) == ""


@pytest.mark.parametrize(
    ("text", "version", "told"),
    [
        ("g (int64[2] x) => (int64[2] y) { y = Identity(x) }", OLD, "x is int64, which TensorRT 8.6 reads as int32"),
        ("g (double[2] x) => (double[2] y) { y = Neg(x) }", LATE, "x is float64, which TensorRT computes in float32"),
        ("g (float[n] x) => (int64[1, m] y) { y = NonZero(x) }", LATE, "whose size depends on the numbers"),
        (LOOP.format(inputs="n, c, s"), LATE, "may end before its trip count"),
    ],
)
def test_what_is_taken_with_a_warning(text: str, version: Any, told: str) -> None:
    assert sentences(parse(text), version) == ""
    assert told in sentences(parse(text), version, severity="warn")


def test_int64_is_int32_before_10_and_itself_from_then_on() -> None:
    text = "g (int64[2] x) => (int64[2] y) { y = Abs(x) }"
    assert sentences(parse(text), OLD) == sentences(parse(text), EARLY) == ""
    assert sentences(parse(text), EARLY, severity="warn") == ""


def test_functions_and_inner_graphs_are_walked() -> None:
    body = scan().replace("Add(s1, x1)", "Bernoulli(s1)")
    assert "Bernoulli t1 is an operator" in sentences(parse(body))
    function = (
        '<domain: "local", opset_import: ["" : 17]> Twice (x) => (y) { y = Bernoulli(x) }'
        # a function of the file's own, called once
    )
    text = "g (float[2] x) => (float[2] y) { y = local.Twice(x) }"
    header = '<ir_version: 8, opset_import: ["" : 17, "local" : 1]>'
    assert "Bernoulli" in sentences(parser.parse_model(f"{header} {text} {function}"))


def test_a_problem_says_one_sentence_with_the_node() -> None:
    (found,) = problems(parse("g (float[2] x) => (float[2] y) { y = Bernoulli(x) }"), LATE, "fp32")
    told = "Bernoulli y is an operator that TensorRT 10.16 does not take: change the model so that it needs none."
    assert found == Problem("y", "Bernoulli", told, "refuse")


def test_the_table_is_sound() -> None:
    assert set(DATA["rules"]) <= set(DATA["operators"])
    known = set(NAMES.values())
    for name, entries in DATA["operators"].items():
        firsts = [parse_version(entry["since"]) for entry in entries]
        assert firsts == sorted(firsts), name
        assert all(entry["types"] and set(entry["types"]) <= known for entry in entries), name
    tops = [high for _, _, high in DATA["opsets"]]
    assert tops == sorted(tops)


def test_every_operator_of_onnx_is_decided() -> None:
    """What the table lacks is refused: nothing that ONNX had up to opset 20 may be missing by oversight."""
    schemas = [schema for schema in onnx.defs.get_all_schemas() if schema.domain == "" and schema.since_version <= 20]
    assert {schema.name for schema in schemas} - set(DATA["operators"]) == set()


def test_the_limits_of_a_version() -> None:
    assert "INT64" not in limits(OLD).types("Add")
    assert "BF16" in limits(EARLY).types("GRU")
    assert limits(LATE).types("MatMulInteger") == frozenset()
    assert limits((8, 5)).types("GRU") == frozenset()
    assert limits((10, 2)).rule("Slice") == {"constant": [3], "until": "10.3"}
    assert limits((10, 3)).rule("Slice") == {}
