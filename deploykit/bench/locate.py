"""Where an error comes from: the values inside an artifact, layer by layer, against those of what it was made from.

A quantized graph keeps the names of the values that its layers hand on, so it is held against the float graph it was
made from, value by value. An export is held against the PyTorch model: the output of each part of the model against
the value in the graph that the nodes named after that part make.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from deploykit.artifact import Artifact, load_onnx
from deploykit.bench.accuracy import snr_db
from deploykit.errors import ArtifactError, QuantizationError, UsageError
from deploykit.graphs import exposed
from deploykit.runtime import sentence, session

if TYPE_CHECKING:
    import onnx

    from deploykit.types import Array, ModelSpec

#: Below this many decibels a value is called wrong rather than rounded.
WRONG_DB = 20.0


@dataclass(frozen=True)
class Located:
    """One value: the node or part that makes it, and how far it lies from what it should be.

    ``snr_db`` is None where there is no error at all; ``drop_db`` is how much worse it is than the worst value that it
    is made from, None for the first.
    """

    where: str
    kind: str
    value: str
    max_abs: float
    snr_db: float | None
    drop_db: float | None = None


@dataclass(frozen=True)
class Location:
    """All compared values in the order in which they are made, held against ``against``."""

    against: str
    values: tuple[Located, ...]

    @property
    def first_wrong(self) -> Located | None:
        """The first value that is wrong rather than rounded."""
        return next((one for one in self.values if one.snr_db is not None and not one.snr_db >= WRONG_DB), None)

    @property
    def worst_step(self) -> Located | None:
        """The value that lost most against what it was made from."""
        lost = [one for one in self.values if one.drop_db is not None]
        return max(lost, key=lambda one: one.drop_db or 0.0, default=None)


def locate(artifact: Artifact, parent: Artifact | None, feeds: Mapping[str, Array]) -> Location:
    """Compare the values inside ``artifact`` with its float parent's, or with the PyTorch model's where it has none.

    Raises:
        ArtifactError: a file cannot be read, or an export does not say which model it came from.
        UsageError: the artifact is no ONNX file, or has no value in common with what it is held against.
        QuantizationError: onnxruntime cannot run one of them.
    """
    if not artifact.format.startswith("onnx"):
        raise UsageError(f"{artifact.path} is {artifact.format}: only values inside an ONNX file can be compared.")
    model = load_onnx(artifact.path)
    if parent is not None:
        return _against_graph(model, load_onnx(parent.path), parent, feeds)
    if artifact.model is None:
        raise ArtifactError(
            f"{artifact.path} names neither the float file that it was made from nor a PyTorch model: name an "
            "artifact of deploykit."
        )
    from deploykit import loading

    return _against_module(model, loading.load(artifact.model), feeds)


def _against_graph(
    model: onnx.ModelProto, parent: onnx.ModelProto, artifact: Artifact, feeds: Mapping[str, Array]
) -> Location:
    makers = {name: node for node in parent.graph.node for name in node.output if name}
    common = [name for node in model.graph.node for name in node.output if name in makers]
    # In the order of the parent, whose nodes are what people know.
    order = {name: place for place, name in enumerate(makers)}
    common.sort(key=order.__getitem__)
    expected, found = _values(parent, common, feeds), _values(model, common, feeds)
    rows: dict[str, Located] = {}
    for name in common:
        error = _error(expected.get(name), found.get(name))
        if error is not None:
            node = makers[name]
            before = _sources(node.input, makers, rows)
            rows[name] = _located(node.name or name, node.op_type, name, error, before)
    return _found(str(artifact.path), tuple(rows.values()))


def _against_module(model: onnx.ModelProto, spec: ModelSpec, feeds: Mapping[str, Array]) -> Location:
    expected = _module_outputs(spec, feeds)
    candidates: dict[str, list[str]] = {}
    for node in model.graph.node:
        for path in expected:
            if node.name.startswith(f"{path}/"):
                candidates.setdefault(path, []).extend(filter(None, node.output))
    found = _values(model, [name for names in candidates.values() for name in names], feeds)
    rows: list[Located] = []
    for path, (kind, value) in expected.items():
        fitting = [name for name in candidates.get(path, []) if name in found and found[name].shape == value.shape]
        if fitting:
            error = _error(value, found[fitting[-1]])
            if error is not None:
                rows.append(_located(path, kind, fitting[-1], error, rows[-1:]))
    return _found(f"the PyTorch model {spec.name}", tuple(rows))


def _found(against: str, values: tuple[Located, ...]) -> Location:
    if not values:
        raise UsageError(f"the artifact has no value in common with {against}: there is nothing to compare inside it.")
    return Location(against, values)


def _module_outputs(spec: ModelSpec, feeds: Mapping[str, Array]) -> dict[str, tuple[str, Array]]:
    """The first tensor that each part of the model returned, by path, in the order in which the parts end."""
    import torch
    from torch import nn

    found: dict[str, tuple[str, Array]] = {}
    names = {id(part): name for name, part in spec.module.named_modules()}

    def after(part: nn.Module, _: Any, output: Any) -> None:
        value = output[0] if isinstance(output, (tuple, list)) and output else output
        path = names.get(id(part), "")
        if path and isinstance(value, torch.Tensor) and value.is_floating_point():
            found[path] = (type(part).__name__, value.detach().cpu().numpy().copy())

    handle = nn.modules.module.register_module_forward_hook(after)
    try:
        with torch.inference_mode():
            spec.run([torch.tensor(feeds[tensor.name]) for tensor in spec.inputs])
    finally:
        handle.remove()
    return found


def _values(model: onnx.ModelProto, names: list[str], feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Float values by name, the graph run with all of them exposed."""
    wanted = list(dict.fromkeys(names))
    if not wanted:  # for no names onnxruntime answers with all outputs
        return {}
    try:
        opened = session(exposed(model, wanted).SerializeToString())
        found = dict(zip(wanted, opened.run(wanted, dict(feeds)), strict=True))
    except Exception as error:
        raise QuantizationError(f"onnxruntime cannot show the values inside: {sentence(error)}.") from error
    return {name: value for name, value in found.items() if isinstance(value, np.ndarray) and value.dtype.kind == "f"}


def _error(expected: Array | None, found: Array | None) -> tuple[float, float | None] | None:
    """Largest error and SNR; None for values that cannot be compared."""
    if expected is None or found is None or expected.shape != found.shape or not expected.size:
        return None
    same = np.equal(expected, found) | (np.isnan(expected) & np.isnan(found))  # equal infinities, as masks hold them
    if not np.isfinite(np.where(same, 0, found)).all() or not np.isfinite(np.where(same, 0, expected)).all():
        return float("inf"), float("-inf")
    reference = np.where(np.isfinite(expected), expected, 0).astype(np.float64)
    error = np.where(same, 0, found).astype(np.float64) - np.where(same, 0, expected)
    if not error.any():
        return 0.0, None
    snr = snr_db(reference, error)
    return float(np.abs(error).max()), float("-inf") if snr is None else snr


def _located(where: str, kind: str, value: str, error: tuple[float, float | None], before: list[Located]) -> Located:
    known = [one.snr_db for one in before if one.snr_db is not None]
    largest, snr = error
    return Located(where, kind, value, largest, snr, min(known) - snr if known and snr is not None else None)


def _sources(names: Any, makers: Mapping[str, onnx.NodeProto], rows: Mapping[str, Located]) -> list[Located]:
    """The nearest compared values that a node's inputs are made from."""
    found: list[Located] = []
    waiting, seen = list(names), set(names)
    while waiting:
        name = waiting.pop()
        if name in rows:
            found.append(rows[name])
            continue
        node = makers.get(name)
        for source in node.input if node is not None else ():
            if source not in seen:
                seen.add(source)
                waiting.append(source)
    return found
