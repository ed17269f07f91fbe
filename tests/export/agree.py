"""Holds an export against PyTorch at sizes of the tests' own, by a way of their own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import onnx
import onnxruntime
import torch

from deploykit.backends._outputs import named_outputs
from deploykit.coverage import RECURRENT
from deploykit.export import Exported, to_onnx
from deploykit.types import ModelSpec

#: (batch, time): one of each, more steps than the traced example has, and something between.
SHAPES = ((1, 1), (3, 40), (4, 2))


def operators(graph: onnx.GraphProto) -> Iterator[str]:
    """Operators of the graph and of every graph inside it."""
    for node in graph.node:
        yield node.op_type
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from operators(attribute.g)


def recurrent(made: Exported) -> list[str]:
    """The recurrent operators, in order."""
    return [kind for kind in operators(made.model.graph) if kind in RECURRENT]


def assert_agrees(
    spec: ModelSpec, opset: int = 20, shapes: Sequence[tuple[int, int]] = SHAPES, within: float = 2e-5
) -> Exported:
    """Export ``spec``, check the file, and compare each output with PyTorch's at each shape."""
    made = to_onnx(spec, opset)
    onnx.checker.check_model(made.model, full_check=True)
    assert not {"Loop", "If", "SequenceAt"} & set(operators(made.model.graph))
    session = onnxruntime.InferenceSession(made.model.SerializeToString(), providers=["CPUExecutionProvider"])
    for seed, (batch, time) in enumerate(shapes):
        others = {name: 3 + index for index, name in enumerate(spec.dynamic) if name not in ("batch", "time")}
        feeds = spec.feeds(seed, batch=batch, time=time, **others)
        found = session.run(None, feeds)
        with torch.no_grad():
            value = spec.run([torch.tensor(feeds[tensor.name]) for tensor in spec.inputs])
        expected = named_outputs(spec, value)
        assert [output.name for output in session.get_outputs()] == list(expected)
        for ours, (name, theirs) in zip(found, expected.items(), strict=True):
            assert ours.shape == tuple(theirs.shape), name
            assert ours.dtype == theirs.numpy().dtype, name
            assert np.abs(ours.astype(np.float64) - theirs.numpy()).max(initial=0.0) <= within, (name, batch, time)
    return made
