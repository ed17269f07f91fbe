"""What the engine inspector tells, in the words of each version, and what is made of it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from deploykit.trt.inspector import count, fallbacks, layers, type_of


def tensor(name: str, kind: str, field: str = "Format/Datatype") -> dict[str, Any]:
    return {"Name": name, "Dimensions": [1, 4], field: kind}


def layer(
    name: str, inputs: dict[str, str], outputs: dict[str, str], kind: str = "gemm", **more: Any
) -> dict[str, Any]:
    return {
        "Name": name,
        "LayerType": kind,
        "Inputs": [tensor(*one) for one in inputs.items()],
        "Outputs": [tensor(*one) for one in outputs.items()],
        **more,
    }


def told(*found: dict[str, Any]) -> str:
    return json.dumps({"Layers": list(found), "Bindings": ["x", "y"]})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Row major linear FP32", "float32"),
        ("Row major linear FP16 format", "float16"),
        ("Thirty-two wide channel vectorized row major Int8 format.", "int8"),
        ("Row major linear BF16 format (kLINEAR)", "bfloat16"),
        ("Float", "float32"),
        ("Half", "float16"),
        ("BFloat16", "bfloat16"),
        ("Int8", "int8"),
        ("Int32", "int32"),
        ("Int64", "int64"),
        ("Bool", "bool"),
        ("UInt8", "uint8"),
        ("FP8", "float8"),
        ("N/A due to dynamic shapes", None),
        ("", None),
    ],
)
def test_a_type_in_any_version_s_words(text: str, expected: str | None) -> None:
    assert type_of(text) == expected


def test_layers_of_the_old_and_the_new_form() -> None:
    old, new = layers(
        told(
            layer("a + b", {"x": "Row major linear FP16 format"}, {"y": "Row major linear FP32"}, "CaskGemm"),
            layer("m", {"y": "Float"}, {"z": "Half"}, Metadata="[ONNX Layer: /rnn/GRU]\x1e[ONNX Layer: /head/MatMul]"),
        )
    )
    assert (old.inputs, old.outputs, old.nodes) == ({"x": "float16"}, {"y": "float32"}, frozenset())
    assert old.made_of("a")
    assert old.made_of("b")
    assert not old.made_of("c")
    assert new.nodes == {"/rnn/GRU", "/head/MatMul"}
    assert new.made_of("/head/MatMul")
    assert not new.made_of("/head")


def test_a_tensor_whose_type_stands_in_a_field_of_its_own() -> None:
    data = {"Name": "l", "LayerType": "gemm", "Inputs": [tensor("x", "Half", "DataType")], "Outputs": []}
    assert layers(json.dumps({"Layers": [data]}))[0].inputs == {"x": "float16"}


@pytest.mark.parametrize("text", ['{"Layers": ["only", "names"]}', "no JSON", '{"Layers": 3}', "[]", "3", "{}"])
def test_where_it_tells_no_types_nothing_is_said(text: str) -> None:
    assert layers(text) == []


def test_counting_takes_only_what_computes() -> None:
    found = layers(
        told(
            layer("a", {"x": "Half"}, {"y": "Half"}),
            layer("b", {"y": "Int8"}, {"z": "Half"}),
            layer("c", {"z": "Half"}, {"o": "Float"}, "Reformat"),
            layer("d", {}, {"w": "Float"}, "Constant"),
            layer("e", {"x": "odd"}, {"y": "odd"}),
        )
    )
    assert count(found) == {"float16": 1, "int8": 1, "unknown": 1}


def test_a_layer_in_another_type_than_the_network_s_is_named() -> None:
    found = layers(told(layer("ok", {"x": "Half"}, {"a": "Half"}), layer("slow", {"a": "Half"}, {"b": "Float"})))
    told_ = fallbacks(found, "float16", {"a": "float16", "b": "float16"})
    assert told_ == ("slow makes b in float32, and float16 was asked for.",)
    # What the graph itself keeps in float32, and tensors that it does not know, are no fallbacks.
    assert fallbacks(found, "float16", {"a": "float16", "b": "float32"}) == ()
    assert fallbacks(found, "float16", {}) == ()


def test_a_cast_is_none() -> None:
    found = layers(told(layer("io", {"a": "Half"}, {"b": "Float"}, "Reformat")))
    assert fallbacks(found, "float16", {"b": "float16"}) == ()


def test_float32_that_became_less_is_one_too() -> None:
    found = layers(told(layer("l", {"x": "Float"}, {"y": "Half"})))
    assert fallbacks(found, "float32", {"y": "float32"}) == ("l makes y in float16, and float32 was asked for.",)


def test_a_product_between_q_and_dq_that_runs_in_float_is_named() -> None:
    found = layers(
        told(
            layer("q", {"x": "Int8"}, {"y": "Float"}, Metadata="[ONNX Layer: /head/MatMul]"),
            layer("f", {"x": "Float"}, {"z": "Float"}, Metadata="[ONNX Layer: /tail/MatMul]"),
        )
    )
    nodes = ["/head/MatMul", "/tail/MatMul", "/gone/MatMul"]
    assert fallbacks(found, "int8", {}, nodes) == ("/tail/MatMul runs in float32, and int8 was asked for.",)


def test_what_is_not_told_for_dynamic_shapes_is_no_fallback() -> None:
    untold = {"Name": "x", "Format/Datatype": "N/A due to dynamic shapes"}

    def product(**more: object) -> str:
        return json.dumps({"Layers": [{"Name": "/head/MatMul", "LayerType": "CaskGemm", "Inputs": [untold], **more}]})

    silent = layers(product(Outputs=[untold]))
    assert count(silent) == {"unknown": 1}
    assert fallbacks(silent, "int8", {"x": "float32"}, ["/head/MatMul"]) == ()
    # The type of the weights is told all the same.
    for kind, told in (("Int8", ()), ("Half", ("/head/MatMul runs in float16, and int8 was asked for.",))):
        found = layers(product(Outputs=[untold], Weights={"Type": kind, "Count": 12}))
        assert fallbacks(found, "int8", {}, ["/head/MatMul"]) == told
