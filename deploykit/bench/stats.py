"""Statistics of latency samples: what is reported of them, and when there are too few to say it.

Sources. Percentiles: linear interpolation between order statistics, definition 7 of Hyndman and Fan, "Sample Quantiles
in Statistical Packages", The American Statistician 50 (1996), which is NumPy's default. A percentile p is reported from
1 / (1 - p) samples on, as below that it would be no more than the largest sample (or an extrapolation). The interval of
the speed-up: the percentile bootstrap of Efron and Tibshirani, "An Introduction to the Bootstrap" (1993), chapter 13,
over paired ratios. Pairing by round removes what drifts slowly: both windows of a pair ran within the same second.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from deploykit.bench.report import DeviceTime, Latency, Speedup

if TYPE_CHECKING:
    import numpy.typing as npt

#: A run is stable when the windows' medians spread (interquartile range over median) less than this.
STABLE_SPREAD = 0.10
#: Fewer windows than this say nothing about stability, so such a run is not called stable.
STABLE_WINDOWS = 5
#: Resamples of the bootstrap; at 2000 the ends of a 95 % interval move by well under their own width.
RESAMPLES = 2000
CONFIDENCE = 0.95
#: Two processes of one program differ by 1 % to 2 %, the same in every round: where their memory happens to lie decides
#: how well the caches serve them (Mytkowicz et al., "Producing Wrong Data Without Doing Anything Obviously Wrong!",
#: ASPLOS 2009). No number of rounds shows that, so the interval is this much wider on both sides.
RESOLUTION = 0.02
#: The percents of ``Latency.quantiles``: enough to draw a distribution from.
PERCENTS = (0, 1, *range(5, 100, 5), 99, 100)

#: Nanoseconds per inference, one inner sequence per window.
Windows = Sequence[Sequence[int]]


def latency(windows: Windows, batch: int | None = None) -> Latency:
    """Percentiles, mean, minimum and spread of all samples, in milliseconds; percentiles too few samples bear are None.

    ``batch`` rows are answered by one inference; None counts inferences. ``cv`` is the coefficient of variation: the
    sample standard deviation (n - 1) over the mean.

    Raises:
        ValueError: there is no sample at all.
    """
    samples = np.concatenate([np.asarray(window, np.float64) for window in windows]) / 1e6
    if samples.size == 0:
        raise ValueError("no samples")
    mean = float(samples.mean())
    return Latency(
        p50=percentile(samples, 0.50),
        p90=percentile(samples, 0.90),
        p95=percentile(samples, 0.95),
        p99=percentile(samples, 0.99),
        mean=mean,
        min=float(samples.min()),
        cv=float(samples.std(ddof=1)) / mean if samples.size > 1 and mean > 0 else None,
        samples=int(samples.size),
        windows=len(windows),
        stable=stable(windows),
        quantiles={str(percent): _quantile(samples, percent) for percent in PERCENTS},
        throughput=1e3 * (batch or 1) / mean if mean > 0 else None,
    )


def device_time(milliseconds: Sequence[float]) -> DeviceTime | None:
    """The GPU's own times of single inferences, summed up by the rules of ``latency``; None without any."""
    samples = np.asarray(milliseconds, np.float64)
    if samples.size == 0:
        return None
    return DeviceTime(
        p50=percentile(samples, 0.50),
        p90=percentile(samples, 0.90),
        p95=percentile(samples, 0.95),
        p99=percentile(samples, 0.99),
        mean=float(samples.mean()),
        min=float(samples.min()),
        samples=int(samples.size),
    )


def percentile(samples: npt.NDArray[np.float64], share: float) -> float | None:
    """The percentile at ``share`` (0 to 1), or None with fewer than 1 / (1 - share) samples."""
    # Rounded, as 1 - 0.9 is a little less than a tenth in binary and would ask for one sample too many.
    return float(np.quantile(samples, share)) if samples.size >= round(1 / (1 - share)) else None


def _quantile(samples: npt.NDArray[np.float64], percent: int) -> float | None:
    """Like ``percentile``, with the same rule for the lower half; the smallest and the largest are always known."""
    rarer = min(percent, 100 - percent)
    return float(np.quantile(samples, percent / 100)) if rarer == 0 or samples.size * rarer >= 100 else None


def stable(windows: Windows) -> bool:
    """Whether the windows agree: interquartile range of their medians below ``STABLE_SPREAD`` of the median of them."""
    if len(windows) < STABLE_WINDOWS:
        return False
    low, middle, high = np.quantile(medians(windows), (0.25, 0.5, 0.75))
    return bool(high - low < STABLE_SPREAD * middle)


def medians(windows: Windows) -> npt.NDArray[np.float64]:
    """The median of each window, in nanoseconds, shape ``[windows]``."""
    return np.asarray([np.median(window) for window in windows], np.float64)


def speedup(reference: Windows, subject: Windows, *, vs: str, seed: int) -> Speedup:
    """How many times faster the subject is: the median over rounds of (reference median / subject median).

    ``low`` and ``high`` bound the 95 % percentile bootstrap interval of that median, resampling rounds with
    replacement, widened by ``RESOLUTION``. They are None with fewer than two rounds, which have no spread to resample.

    Raises:
        ValueError: the two have different numbers of rounds, or none.
    """
    if len(reference) != len(subject) or not reference:
        raise ValueError(f"{len(reference)} windows cannot be paired with {len(subject)}")
    ratios = medians(reference) / medians(subject)
    if ratios.size < 2:
        return Speedup(vs, float(ratios[0]), None, None)
    generator = np.random.default_rng(seed)
    drawn = ratios[generator.integers(0, ratios.size, (RESAMPLES, ratios.size))]
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(np.median(drawn, axis=1), (tail, 1 - tail))
    if np.all(ratios == 1):  # the reference against itself
        return Speedup(vs, 1.0, 1.0, 1.0)
    return Speedup(vs, float(np.median(ratios)), float(low) / (1 + RESOLUTION), float(high) * (1 + RESOLUTION))
