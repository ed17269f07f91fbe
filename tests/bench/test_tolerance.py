from __future__ import annotations

import pytest

from deploykit.bench.report import MetricResult
from deploykit.bench.tolerance import FLOAT16, FLOAT32, INT8, judge_metric, tolerance
from deploykit.errors import UsageError


def test_precisions_have_their_tolerance() -> None:
    assert tolerance("float32") is tolerance("fp32") is FLOAT32
    assert tolerance("float16") is tolerance("fp16") is FLOAT16
    assert tolerance("int8") is tolerance("int8-storage") is INT8
    with pytest.raises(UsageError, match="int4"):
        tolerance("int4")


@pytest.mark.parametrize(
    ("value", "reference", "higher", "passes"),
    [
        (0.991, 1.0, True, True),
        (0.989, 1.0, True, False),
        (1.2, 1.0, True, True),
        (2.019, 2.0, False, True),
        (2.03, 2.0, False, False),
        (1.0, 2.0, False, True),
        (-1.02, -1.0, True, False),
        (0.005, 0.0, False, True),
        (0.02, 0.0, False, False),
        (float("nan"), 1.0, True, False),
        (float("inf"), 1.0, False, False),
    ],
)
def test_int8_may_lose_a_hundredth_of_the_metric(value: float, reference: float, higher: bool, passes: bool) -> None:
    found = judge_metric(MetricResult("m", value, reference, higher), INT8)
    assert (found is None) == passes
