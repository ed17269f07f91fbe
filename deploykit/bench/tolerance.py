"""What passes, by precision, and where each number comes from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from deploykit.bench.report import MetricResult, Tolerance
from deploykit.errors import UsageError

# The same sums in another order differ by some float32 epsilons (1.2e-7) a step, and recurrence carries that along; an
# export that is right stays near 1e-6, one that is wrong (a gate swapped, a bias lost) is beyond 1e-2.
FLOAT32 = Tolerance(
    atol=1e-4,
    rtol=1e-4,
    min_snr_db=None,
    min_equal=1.0,
    max_metric_drop=0.001,
    origin="deploykit's default for float32: the same arithmetic in another order",
)
# float16 has an epsilon of 9.8e-4; ten of them.
FLOAT16 = Tolerance(
    atol=1e-2,
    rtol=1e-2,
    min_snr_db=None,
    min_equal=0.99,
    max_metric_drop=0.005,
    origin="deploykit's default for float16: ten epsilons of the format",
)
# bfloat16 has an epsilon of 7.8e-3; ten of them.
BFLOAT16 = Tolerance(
    atol=8e-2,
    rtol=8e-2,
    min_snr_db=None,
    min_equal=0.95,
    max_metric_drop=0.01,
    origin="deploykit's default for bfloat16: ten epsilons of the format",
)
# An error of a tenth of the signal's amplitude (20 dB) is where int8 recurrent models are known to lose their task; a
# metric of 99 % of float32's is the bar of MLPerf Inference. A single element may be further out: the metric judges.
INT8 = Tolerance(
    atol=1e-2,
    rtol=0.0,
    min_snr_db=20.0,
    min_equal=0.9,
    max_metric_drop=0.01,
    origin="deploykit's default for int8: 20 dB, and 99 % of the reference's metric as in MLPerf Inference",
)

_BY_PRECISION = {"float32": FLOAT32, "fp32": FLOAT32, "float16": FLOAT16, "fp16": FLOAT16, "bfloat16": BFLOAT16}


@dataclass(frozen=True)
class Override:
    """What a user asks for in place of the defaults; None leaves the default."""

    atol: float | None = None
    rtol: float | None = None
    min_snr_db: float | None = None
    max_metric_drop: float | None = None

    def over(self, base: Tolerance) -> Tolerance:
        """``base`` with these numbers. What is named is judged, whatever the precision's own rule is."""
        asked = {name: value for name, value in vars(self).items() if value is not None}
        if not asked:
            return base
        told = ", ".join(f"{name.replace('_db', '').replace('_', '-')} {value:g}" for name, value in asked.items())
        every = base.by_element or self.atol is not None or self.rtol is not None
        changed = {**asked, "origin": f"set by the user: {told}; else {base.origin}"}
        snr = changed.get("min_snr_db", base.min_snr_db)
        return replace(base, **changed, every_element=every and snr is not None)


@dataclass(frozen=True)
class Overrides:
    """Overrides for every output, and for single ones by name on top of those."""

    every: Override = Override()
    outputs: Mapping[str, Override] = field(default_factory=dict)

    def over(self, base: Tolerance) -> Tolerance:
        """``base`` with all of them."""
        common = self.every.over(base)
        return replace(common, outputs={name: own.over(common) for name, own in self.outputs.items()})


def tolerance(precision: str, overrides: Overrides | None = None) -> Tolerance:
    """The tolerance for a precision; every precision that begins with ``int8`` has that of int8.

    Raises:
        UsageError: nothing is known of that precision.
    """
    base = _default(precision)
    return base if overrides is None or overrides == Overrides() else overrides.over(base)


def _default(precision: str) -> Tolerance:
    if precision.startswith("int8"):
        return INT8
    if precision not in _BY_PRECISION:
        raise UsageError(
            f"no tolerance is known for the precision {precision!r}: known are {', '.join(_BY_PRECISION)}, int8."
        )
    return _BY_PRECISION[precision]


def metric_drop(metric: MetricResult) -> float:
    """What the metric lost as a share of the reference's (absolute where that is 0); below 0 where it gained."""
    value, reference = _numbers(metric)
    if math.isinf(reference):
        return math.nan
    loss = reference - value if metric.higher_is_better else value - reference
    return loss / abs(reference) if reference else loss


def judge_metric(metric: MetricResult, allowed: Tolerance) -> str | None:
    """None when the metric lost no more than allowed, relative to the reference's (absolute where that is 0)."""
    share = metric_drop(metric)
    # Written so that a NaN fails.
    if share <= allowed.max_metric_drop:
        return None
    value, reference = _numbers(metric)
    return (
        f"its {metric.name} is {value:.4g} where the reference has {reference:.4g}: "
        f"{share:.2%} worse, and {allowed.max_metric_drop:.2%} is allowed."
    )


def _numbers(metric: MetricResult) -> tuple[float, float]:
    """Its value and the reference's; JSON has no NaN, so that one read from there is None."""
    value, reference = (math.nan if number is None else number for number in (metric.value, metric.reference))
    return value, reference
