"""Holds a quantized graph against its float parent, and keeps layers in float until the bounds are met.

The accuracy of int8 differs from model to model: it is measured before a file is written, never assumed. Where a bound
is missed, each quantized node is tried alone, which ranks them by what they cost; the dearest keep float arithmetic,
one after another, until the bounds hold: on weights stored as int8 if that is enough, else all in float. That finds the
fewest only as far as costs add up, which they nearly do.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from deploykit.coverage import Coverage
from deploykit.errors import GateError, ModelError, QuantizationError, first_line
from deploykit.runtime import sentence, session
from deploykit.types import Metric, TensorSpec

if TYPE_CHECKING:
    import onnx

    from deploykit.bench.report import Accuracy, OutputError
    from deploykit.types import Array, Infer

#: A way to quantize: the names of the nodes that stay in float, and of those whose weights alone are stored as int8,
#: to the graph and its coverage.
Apply = Callable[[frozenset[str], frozenset[str]], "tuple[onnx.ModelProto, Coverage]"]


@dataclass(frozen=True)
class Bounds:
    """What a quantized artifact may lose against its parent, on every output.

    ``min_snr`` in decibels, and where an output has no signal to compare with, every element within ``bench``'s
    tolerance of int8; ``min_equal`` the share of equal elements of an output of integers or booleans, which have no
    SNR; ``max_error`` absolute; ``max_metric_drop`` a share of the parent's metric.
    """

    min_snr: float = 20.0
    max_error: float | None = None
    max_metric_drop: float = 0.01
    min_equal: float = 0.9

    def missed(self, measured: Measured) -> str | None:
        """None when all bounds hold, else one clause on the first that does not."""
        if measured.accuracy is None:
            return measured.unusable
        for name, error in measured.accuracy.outputs.items():
            clause = self._missed_by(error)
            if clause is not None:
                return f"output {name} {clause}"
        if measured.metric is not None and not measured.metric.drop <= self.max_metric_drop:
            return f"{measured.metric.told}, and {self.max_metric_drop:.1%} is allowed"
        return None

    def _missed_by(self, error: OutputError) -> str | None:
        if error.snr_db is not None and not error.snr_db >= self.min_snr:
            return f"has {error.snr_db:.1f} dB, and {self.min_snr:g} dB is asked for"
        if error.outside:
            return f"is all zeros in float, and off by up to {error.max_abs:.3g} in {error.outside} places"
        # Integers and booleans have neither SNR nor cosine.
        if error.outside is None and error.cosine is None and not error.equal >= self.min_equal:
            return f"is equal in {error.equal:.1%}, and {self.min_equal:.0%} is asked for"
        if self.max_error is not None and not error.max_abs <= self.max_error:
            return f"is off by {error.max_abs:.3g}, and {self.max_error:g} is allowed"
        return None


@dataclass(frozen=True)
class MetricChange:
    """The metric, the model's own or the user's, of the quantized artifact and of its parent."""

    name: str
    value: float
    parent: float
    higher_is_better: bool

    @property
    def drop(self) -> float:
        """How much worse, as a share of the parent's value; negative when better."""
        loss = self.parent - self.value if self.higher_is_better else self.value - self.parent
        return loss / abs(self.parent) if self.parent else loss

    @property
    def told(self) -> str:
        """In words."""
        return f"{self.name} goes from {self.parent:.4f} to {self.value:.4f} ({self.drop:+.2%} worse)"


@dataclass(frozen=True)
class Measured:
    """One comparison with the parent; without accuracy where the outputs cannot be compared, as those with a NaN."""

    accuracy: Accuracy | None
    unusable: str = ""
    metric: MetricChange | None = None


@dataclass(frozen=True)
class Cost:
    """What one node costs when it alone is quantized; all None where the outputs cannot even be compared."""

    node: str
    snr_db: float | None
    max_abs: float | None

    @property
    def order(self) -> tuple[bool, bool, float]:
        """The dearest first: what makes NaN, then the least SNR, then what makes no error at all."""
        return self.max_abs is not None, self.snr_db is None, self.snr_db or 0.0

    @property
    def told(self) -> str:
        """In words."""
        if self.max_abs is None:
            return f"{self.node} (unusable)"
        if self.snr_db is None:
            return f"{self.node} ({f'off by {self.max_abs:.3g}' if self.max_abs else 'no error'})"
        return f"{self.node} ({self.snr_db:.1f} dB)"


@dataclass(frozen=True)
class Result:
    """The graph that was chosen; ``ranking`` and what follows are empty when everything could be quantized at once.

    ``kept`` are the nodes that stay in float, ``stored`` those that compute in float on weights stored as int8.
    """

    model: onnx.ModelProto
    coverage: Coverage
    measured: Measured
    ranking: tuple[Cost, ...] = ()
    kept: tuple[str, ...] = ()
    stored: tuple[str, ...] = ()


@dataclass(frozen=True)
class Gate:
    """What to compare on. ``feeds`` are sets of inputs by name, ``told`` says where they come from."""

    parent: onnx.ModelProto
    outputs: Sequence[TensorSpec]
    feeds: Sequence[Mapping[str, Array]]
    told: str
    bounds: Bounds = field(default_factory=Bounds)
    metric: Metric | None = None

    def choose(
        self, apply: Apply, exclude: frozenset[str], progress: Callable[[str], None], *, storing: bool = False
    ) -> Result:
        """Quantize all that can be, or all but the nodes that cost most, so that the bounds hold.

        With ``storing`` as many of those nodes' weights as the bounds allow are stored as int8 nevertheless.

        Raises:
            GateError: no choice holds the bounds.
            QuantizationError: the parent itself answers NaN or Inf, or cannot run on the inputs.
        """
        expected = [self._run(self.parent, feeds) for feeds in self.feeds]
        self._require_sound(expected)
        model, coverage = apply(exclude, frozenset())
        progress("measuring against the float artifact")
        measured = self._measure(model, expected)
        missed = self.bounds.missed(measured)
        if missed is None:
            return Result(model, coverage, measured)
        nodes = [row.node for row in coverage.rows if row.became != "float32"]
        ranking = self._rank(apply, exclude, nodes, expected, progress)
        for count in range(1, len(ranking) + storing):
            kept = tuple(cost.node for cost in ranking[:count])
            progress(f"keeping {count} of {len(ranking)} nodes in float")
            if storing:
                found = self._held(apply, exclude, (), kept, ranking, expected)
                if found is not None:
                    return found
            if count == len(ranking):
                break  # all of them in float is the parent
            found = self._held(apply, exclude, kept, (), ranking, expected)
            if found is not None:
                return self._stored(apply, exclude, found, expected) if storing else found
        raise GateError(
            f"no choice of nodes holds the bound ({missed}); quantized alone, the dearest are "
            f"{', '.join(cost.told for cost in ranking[:3])}; loosen the bound, or give real inputs with --calibration "
            f"(these were {self.told})."
        )

    def _held(
        self,
        apply: Apply,
        exclude: frozenset[str],
        kept: tuple[str, ...],
        stored: tuple[str, ...],
        ranking: tuple[Cost, ...],
        expected: Sequence[Mapping[str, Array]],
    ) -> Result | None:
        """The result with these nodes in float and those stored as int8; None where a bound is missed."""
        model, coverage = apply(exclude | set(kept), frozenset(stored))
        measured = self._measure(model, expected)
        missed = self.bounds.missed(measured)
        return None if missed is not None else Result(model, coverage, measured, ranking, kept, stored)

    def _stored(
        self, apply: Apply, exclude: frozenset[str], found: Result, expected: Sequence[Mapping[str, Array]]
    ) -> Result:
        """``found`` with the weights of as many float nodes as the bounds allow stored as int8, the cheapest first."""
        for node in reversed(found.kept):
            kept = tuple(name for name in found.kept if name != node)
            if not kept:
                break  # with all of them stored it was tried before
            better = self._held(apply, exclude, kept, (*found.stored, node), found.ranking, expected)
            found = better or found
        return found

    def _rank(
        self,
        apply: Apply,
        exclude: frozenset[str],
        nodes: Sequence[str],
        expected: Sequence[Mapping[str, Array]],
        progress: Callable[[str], None],
    ) -> tuple[Cost, ...]:
        costs = []
        for number, node in enumerate(nodes, 1):
            progress(f"ranking nodes {number}/{len(nodes)}: {node}")
            model, _ = apply(exclude | (set(nodes) - {node}), frozenset())
            alone = self._compare(model, expected).accuracy
            costs.append(Cost(node, alone.snr_db, alone.max_abs) if alone else Cost(node, None, None))
        return tuple(sorted(costs, key=lambda cost: cost.order))

    def _measure(self, model: onnx.ModelProto, expected: Sequence[Mapping[str, Array]]) -> Measured:
        measured = self._compare(model, expected)
        if self.metric is None or self.bounds.missed(measured) is not None:
            return measured
        parent = self._parent_metric
        try:
            value = self.metric.evaluate(_infer(model))
        except ModelError as error:  # the user's own metric fails on what the candidate answers
            return replace(measured, accuracy=None, unusable=first_line(error))
        return replace(measured, metric=MetricChange(self.metric.name, value, parent, self.metric.higher_is_better))

    @functools.cached_property
    def _parent_metric(self) -> float:
        assert self.metric is not None
        return self.metric.evaluate(_infer(self.parent))

    def _compare(self, model: onnx.ModelProto, expected: Sequence[Mapping[str, Array]]) -> Measured:
        from deploykit.bench.accuracy import measure, mismatch
        from deploykit.bench.tolerance import INT8

        infer = _infer(model)
        pairs = [(reference, infer(feeds)) for reference, feeds in zip(expected, self.feeds, strict=True)]
        for reference, found in pairs:
            wrong = mismatch(reference, found)
            if wrong is not None:
                return Measured(None, unusable=f"quantized, {wrong.rstrip('.')}")
        return Measured(measure(pairs, INT8, batch_axes=self._axes("batch"), time_axes=self._axes("time")))

    def _axes(self, dim: str) -> dict[str, int]:
        return {output.name: output.dims.index(dim) for output in self.outputs if dim in output.dims}

    def _run(self, model: onnx.ModelProto, feeds: Mapping[str, Array]) -> dict[str, Array]:
        try:
            return _infer(model)(feeds)
        except Exception as error:
            raise QuantizationError(
                f"the float artifact itself cannot run on {self.told}: {sentence(error)}; give inputs that it can with "
                "--calibration or --example, or skip the comparison with --no-verify."
            ) from error

    def _require_sound(self, expected: Sequence[Mapping[str, Array]]) -> None:
        from deploykit.bench.accuracy import not_finite

        for outputs in expected:
            for name, value in outputs.items():
                if not_finite(value):
                    raise QuantizationError(
                        f"the float artifact itself answers NaN or Inf in {name} on {self.told}: nothing to compare; "
                        "give other inputs with --calibration or --example, or skip the comparison with --no-verify."
                    )


def record(result: Result, gate: Gate) -> dict[str, Any]:
    """What the manifest keeps of the comparison."""
    import msgspec

    metric = result.measured.metric
    # By way of JSON, so that it is the same whether it comes from here or from the manifest.
    encoded = msgspec.json.encode(
        {
            "verified": True,
            "against": "parent",
            "inputs": gate.told,
            "bounds": gate.bounds,
            "accuracy": result.measured.accuracy,
            "metric": metric,
            "kept_float": result.kept,
            "kept_storage": result.stored,
            "ranking": result.ranking,
        }
    )
    return dict(msgspec.json.decode(encoded))


def _infer(model: onnx.ModelProto) -> Infer:
    opened = session(model.SerializeToString())
    names = [output.name for output in opened.get_outputs()]
    return lambda feeds: dict(zip(names, opened.run(names, dict(feeds)), strict=True))
