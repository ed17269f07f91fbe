from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploykit.bench import accuracy
from deploykit.bench.report import Accuracy, Tolerance
from deploykit.bench.tolerance import FLOAT32, INT8

if TYPE_CHECKING:
    from deploykit.types import Array


def measure(reference: Array, found: Array, allowed: Tolerance = FLOAT32, time_axis: int | None = None) -> Accuracy:
    axes = {} if time_axis is None else {"y": time_axis}
    return accuracy.measure([({"y": reference}, {"y": found})], allowed, batch_axes={}, time_axes=axes)


def noise(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_the_numbers_of_a_known_error() -> None:
    reference = np.asarray([[3.0, 4.0]], np.float32)
    found = measure(reference, np.asarray([[3.0, 4.5]], np.float32))
    assert (found.max_abs, found.mean_abs) == (0.5, 0.25)
    assert found.snr_db == pytest.approx(20), "25 / 0.25 is a hundred, 20 dB"
    assert found.cosine == pytest.approx((9 + 18) / (5 * np.hypot(3, 4.5)))
    assert found.argmax_agreement == 1
    assert found.outputs["y"].equal == 0.5
    assert found.outputs["y"].outside == 1


@given(st.floats(-1e4, 1e4, width=32), st.floats(-1, 1, width=32))
@settings(max_examples=100, deadline=None)
def test_an_element_passes_exactly_when_it_is_within_atol_plus_rtol(value: float, error: float) -> None:
    reference = np.asarray([value], np.float32)
    found = np.asarray([value + error], np.float32)
    within = bool(
        np.isclose(found.astype(np.float64), reference.astype(np.float64), atol=FLOAT32.atol, rtol=FLOAT32.rtol)
    )
    assert (accuracy.judge(measure(reference, found), FLOAT32) is None) == within


def test_a_reference_of_zeros_divides_nothing() -> None:
    zeros = np.zeros((1, 5), np.float32)
    found = measure(zeros, zeros)
    assert (found.snr_db, found.cosine, found.max_abs) == (None, None, 0)
    assert accuracy.judge(measure(zeros, zeros + 5e-5), FLOAT32) is None
    assert accuracy.judge(measure(zeros, zeros + 5e-4), FLOAT32) is not None
    assert accuracy.judge(measure(zeros, zeros + 5e-4, INT8), INT8) is None
    assert "in 5 elements" in str(accuracy.judge(measure(zeros, zeros + 0.5, INT8), INT8))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_cannot_be_compared(bad: float) -> None:
    reference = noise(2, 3)
    found = reference.copy()
    found[0, 0] = bad
    sentence = accuracy.mismatch({"y": reference}, {"y": found})
    assert sentence == "its output 'y' has 1 of 6 elements that are NaN or Inf."


def test_float16_is_a_mismatch_unless_the_artifact_is_of_that_precision() -> None:
    reference = {"y": noise(2, 3)}
    found = {"y": reference["y"].astype(np.float16)}
    assert "is float16, and the reference's float32" in str(accuracy.mismatch(reference, found))
    assert accuracy.mismatch(reference, found, half=True) is None


def test_int8_is_judged_by_the_snr_of_each_output() -> None:
    reference = noise(4, 50)
    assert accuracy.judge(measure(reference, reference + 0.05 * noise(4, 50, seed=1), INT8), INT8) is None
    sentence = accuracy.judge(measure(reference, reference + 0.2 * noise(4, 50, seed=1), INT8), INT8)
    assert sentence is not None
    assert "dB, and 20 dB is needed" in sentence
    both = accuracy.measure(
        [({"y": reference, "h": reference}, {"y": reference, "h": -reference})], INT8, batch_axes={}, time_axes={}
    )
    assert "'h'" in str(accuracy.judge(both, INT8)), "the good output does not hide the bad one"


def test_integers_are_exact_in_float32_and_mostly_equal_in_int8() -> None:
    reference = np.arange(100)
    one, many = reference.copy(), reference.copy()
    one[0] += 1
    many[:20] += 1
    assert measure(reference, one).snr_db is None
    assert accuracy.judge(measure(reference, one), FLOAT32) is not None
    assert accuracy.judge(measure(reference, one, INT8), INT8) is None
    assert "equals the reference in 80.0%" in str(accuracy.judge(measure(reference, many, INT8), INT8))


def test_booleans_can_be_compared() -> None:
    reference = np.asarray([True, False, True])
    assert measure(reference, ~reference).max_abs == 1
    assert accuracy.judge(measure(reference, reference), FLOAT32) is None


def test_argmax_is_of_classes_never_of_time_or_a_single_value() -> None:
    assert measure(noise(2, 5, 1), noise(2, 5, 1)).argmax_agreement is None
    assert measure(noise(2, 5), noise(2, 5), time_axis=1).argmax_agreement is None
    reference = np.asarray([[1.0, 2.0], [2.0, 1.0]], np.float32)
    assert measure(reference, reference[:, ::-1]).argmax_agreement == 0


def test_the_error_of_each_step_over_the_time_axis() -> None:
    reference = noise(2, 200, 3)
    ramp = np.arange(200, dtype=np.float32)[None, :, None]
    found = measure(reference, reference + ramp, time_axis=1)
    assert found.per_step is not None
    assert len(found.per_step) == 64
    assert found.per_step[0] == pytest.approx(1.5, abs=0.01), "the mean of the steps 0, 1, 2 and 3"
    assert found.per_step[-1] == pytest.approx(198, abs=0.01)
    assert found.outputs["y"].steps == 200
    assert (found.grows, found.first_step_outside) == (True, 1)


def test_an_error_that_saturates_does_not_grow() -> None:
    assert accuracy.grows(np.asarray([0.0, 0.5, 0.9] + [1.0] * 37)) is False
    assert accuracy.grows(np.linspace(0, 1, 40)) is True
    assert accuracy.grows(np.ones(7)) is None


def test_time_first_outputs_have_steps_too() -> None:
    reference = noise(9, 2, 3)
    found = reference.copy()
    found[5] += 1
    result = measure(reference, found, time_axis=0)
    assert result.per_step is not None
    assert np.argmax(result.per_step) == 5
    assert result.first_step_outside == 5


def test_seeds_of_one_shape_are_pooled() -> None:
    reference = noise(1, 4)
    pairs = [({"y": reference}, {"y": reference}), ({"y": reference}, {"y": reference + np.float32(1)})]
    found = accuracy.measure(pairs, FLOAT32, batch_axes={}, time_axes={})
    assert found.mean_abs == pytest.approx(0.5)
    assert found.outputs["y"].outside == 4


def test_empty_outputs_have_no_error() -> None:
    empty = np.zeros((0, 3), np.float32)
    assert measure(empty, empty).max_abs == 0
