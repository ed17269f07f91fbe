"""Products of two activations in attention: queries by keys (scores), and weights by values (context).

Each scale spans only numbers that the result depends on in float as well, other than by a factor of exactly 0: so a
row's answer depends on no batch neighbour, and under a causal mask no step's on what follows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import onnx
from onnx import TensorProto, helper

from deploykit.graphs import inferred
from deploykit.quantize._activations import quantize_rows, zero_point
from deploykit.quantize._constants import Constants
from deploykit.quantize._graph import MICROSOFT, Builder, is_standard

#: What a reader of the coverage table should know: 8 bits with one scale per row, and a Softmax over many steps.
CONTEXT_REMARK = "many small attention weights beside a large one round to 0: judge it on long inputs"

#: With fewer rows, columns or inner steps, to quantize the operands costs more than the product.
SMALLEST = 8

#: What may stand between a product and its Softmax, and the inputs that hold data: not shapes, indices or conditions.
_FLOW: dict[str, slice] = {
    **dict.fromkeys(("Add", "Div", "Max", "Min", "Mul", "Sub"), slice(None)),
    **dict.fromkeys(("Cast", "Clip", "Dropout", "Identity", "LeakyRelu", "Neg", "Tanh"), slice(1)),
    **dict.fromkeys(("Expand", "Flatten", "Gather", "Pad", "Reshape", "Slice", "Squeeze"), slice(1)),
    **dict.fromkeys(("Split", "Transpose", "Unsqueeze"), slice(1)),
    "Where": slice(1, None),
}

Form = Literal["scores", "context"]
_Shape = tuple[int | None, ...]


@dataclass(frozen=True)
class Product:
    """``y = left @ right``, neither of them constant; the result (scores) or ``left`` (context) meets a Softmax."""

    left: str
    right: str
    y: str
    form: Form


class Products:
    """Reads the products of two activations of one graph, which does not change meanwhile."""

    def __init__(self, graph: onnx.GraphProto, constants: Constants, opset: int) -> None:
        self._graph = graph
        self._constants = constants
        self._opset = opset

    def read(self, node: onnx.NodeProto) -> Product | str:
        """The product that a MatMul of two activations is, or the reason why it has to stay in float."""
        left, right = node.input
        if any(map(self._constants.is_known, node.input)):
            return "one of its operands is constant"
        if self._meets_softmax([left], self._before):
            form: Form = "context"
        elif self._meets_softmax([right], self._before):
            return "a product whose attention weights are the right operand"
        elif self._meets_softmax(node.output, self._after):
            form = "scores"
        else:
            return "a product of two activations outside attention"
        return self._obstacle(left, right, form) or Product(left, right, node.output[0], form)

    def _obstacle(self, left: str, right: str, form: Form) -> str:
        if not {self._kinds.get(name, 0) for name in (left, right)} <= {TensorProto.UNDEFINED, TensorProto.FLOAT}:
            return "a product of two activations that are not float32"
        a, b = (self._shapes.get(name) for name in (left, right))
        if a is None or b is None:
            return "a product of two activations of unknown rank"
        if min(len(a), len(b)) < 2:
            return "a product with a vector"
        inner = a[-1] if a[-1] is not None else b[-2]
        # Time steps and batch rows are the axes of unknown size. Features never are.
        if (inner if form == "scores" else b[-1]) is None:
            return "a scale might span time steps in a product of two activations"
        sizes = [size for size in (a[-2], inner, b[-1]) if size is not None]
        return f"a product with fewer than {SMALLEST} rows, columns or inner steps" if min(sizes) < SMALLEST else ""

    def _meets_softmax(self, names: Iterable[str], step: Mapping[str, Sequence[onnx.NodeProto]]) -> bool:
        """Whether a walk from those values through ``_FLOW``, back or ahead, finds a Softmax."""
        waiting, seen = list(names), set(names)
        while waiting:
            name = waiting.pop()
            for node in step.get(name, []):
                if node.op_type == "Softmax":
                    return True
                if node.op_type in _FLOW:
                    found = _data(node) if step is self._before else node.output
                    waiting += [one for one in found if one not in seen]
                    seen.update(found)
        return False

    @cached_property
    def _before(self) -> dict[str, list[onnx.NodeProto]]:
        return {name: [node] for node in self._graph.node if is_standard(node) for name in node.output}

    @cached_property
    def _after(self) -> dict[str, list[onnx.NodeProto]]:
        readers: dict[str, list[onnx.NodeProto]] = {}
        for node in self._graph.node:
            for name in _data(node) if is_standard(node) else ():
                readers.setdefault(name, []).append(node)
        return readers

    @cached_property
    def _inferred(self) -> tuple[onnx.ValueInfoProto, ...]:
        opsets = [helper.make_opsetid("", self._opset), helper.make_opsetid(MICROSOFT, 1)]
        try:
            graph = inferred(helper.make_model(self._graph, opset_imports=opsets))
        except onnx.shape_inference.InferenceError:
            # onnxruntime may still run it, by the shapes that it states itself or by none.
            graph = self._graph
        return (*graph.value_info, *graph.input, *graph.output)

    @cached_property
    def _kinds(self) -> dict[str, int]:
        return {info.name: info.type.tensor_type.elem_type for info in self._inferred}

    @cached_property
    def _shapes(self) -> dict[str, _Shape]:
        """Shapes with None for sizes that only a run tells."""
        found: dict[str, _Shape] = {}
        for info in self._inferred:
            if info.type.tensor_type.HasField("shape"):
                dims = info.type.tensor_type.shape.dim
                found[info.name] = tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in dims)
        return found


def _data(node: onnx.NodeProto) -> Sequence[str]:
    """The inputs whose numbers a node of ``_FLOW``, or a Softmax, passes on."""
    return [name for name in node.input[_FLOW.get(node.op_type, slice(1))] if name]


def replace_product(build: Builder, product: Product) -> None:
    """Add what computes the product in int8.

    uint8 x uint8, as onnxruntime's uint8 x int8 saturates on some CPUs, and no operand is known before the run.
    """
    scaled = _scores(build, product) if product.form == "scores" else _context(build, product)
    build.rename(scaled, product.y)


def _scores(build: Builder, product: Product) -> str:
    """With a scale per row of the left operand and per column of the right one, which is a key step."""
    rows, columns, zero = quantize_rows(build, product.left), quantize_rows(build, product.right, -2), zero_point(build)
    inputs = [rows.values, columns.values, build.scalar(1.0), columns.scale, zero, zero]
    return build.op("Mul", [build.op("MatMulIntegerToFloat", inputs, "product", MICROSOFT), rows.scale], "scaled")


def _context(build: Builder, product: Product) -> str:
    """With a scale per row of the right operand, which is a key step.

    As that is the axis to sum over, the scale is multiplied into the weights, which then get a scale per row. A masked
    step has weight 0, and so has no influence.
    """
    steps, zero = quantize_rows(build, product.right), zero_point(build)
    along = build.op("Squeeze", [steps.scale, build.ints(-1)], "along")
    factors = build.op("Unsqueeze", [along, build.ints(-2)], "factors")
    rows = quantize_rows(build, build.op("Mul", [product.left, factors], "folded"))
    # Without steps to sum over onnxruntime returns memory as it finds it. As int32 that is finite, and the floor of the
    # scale makes nothing of it; MatMulIntegerToFloat, no faster here, could return NaN.
    sums = build.op("MatMulInteger", [rows.values, steps.values, zero, zero], "product")
    return build.op("Mul", [build.op("Cast", [sums], "floats", to=TensorProto.FLOAT), rows.scale], "scaled")
