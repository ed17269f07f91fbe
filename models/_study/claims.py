"""What the article that this project grew from claims, each claim as a question to the results of a study.

A claim holds where the whole interval says so, does not where the whole interval says otherwise, and cannot be said
where the interval includes both, or where the study has no numbers for it. The article's own numbers are of other data
and another machine, so it is orders and ratios that are asked for, never its milliseconds and miles.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from .results import CLAIMED, GRU, LSTM, RNN, SAME_HIDDEN, Results
from .statistics import Interval, Order, paired_ratio, separated

Verdict = Literal["holds", "does not hold", "cannot be said here"]

#: How far a time may lie from the article's and still be called the same: a tenth of it on either side.
SLACK = 0.10
#: "About 30 % faster": from a fifth more work in the same time (1 / 1.2) to about a third less time.
ABOUT_30_PERCENT = (0.65, 1 / 1.2)
#: "22 % faster" in the reading that is easier to meet: 1.22 times as fast, not 22 % less time.
FASTER_22_PERCENT = 1 / 1.22


@dataclass(frozen=True)
class Finding:
    """One claim, what the results say to it, and the numbers that they say it with."""

    name: str
    claim: str
    verdict: Verdict
    evidence: str


_SHORT = {RNN: "RNN", GRU: "GRU", LSTM: "LSTM"}

Claim = Callable[[Results], Finding]


def findings(results: Results) -> tuple[Finding, ...]:
    """Every claim held against one task's results, in the article's order."""
    return tuple(claim(results) for claim in CLAIMS)


def error_order(results: Results) -> Finding:
    """MAE 2.3, 1.8 and 1.9: the RNN errs more than the GRU, and the GRU more than the LSTM."""
    claim = "The basic RNN errs most (MAE 2.3), then the GRU (1.9), and the LSTM least (1.8)."
    worse = paired_ratio(_errors(results, RNN), _errors(results, GRU))
    nearly = paired_ratio(_errors(results, GRU), _errors(results, LSTM))
    if worse is None or nearly is None:
        return _unsaid("error order", claim)
    sides = {
        separated(_errors(results, RNN), _errors(results, GRU)),
        separated(_errors(results, GRU), _errors(results, LSTM)),
    }
    verdict: Verdict = "cannot be said here"
    if sides == {"above"}:
        verdict = "holds"
    elif "below" in sides:
        verdict = "does not hold"
    told = f"Error of the RNN over the GRU's {worse.told()} (the article's 1.21), of the GRU over the LSTM's "
    return Finding("error order", claim, verdict, f"{told}{nearly.told()} (1.06).{_unclear(sides)}")


def training_time(results: Results) -> Finding:
    """120, 180 and 140 minutes: as shares of the LSTM's time 0.67 and 0.78."""
    claim = "Training takes the RNN 120 minutes, the LSTM 180 and the GRU 140."
    rnn = _over_lstm(results, RNN)
    gru = _over_lstm(results, GRU)
    if rnn is None or gru is None:
        return _unsaid("training time", claim)
    told = f"Time over the LSTM's at one hidden size: RNN {rnn.told()} (the article's 0.67), GRU {gru.told()} (0.78)."
    parts = [_near(rnn, 120 / 180), _near(gru, 140 / 180)]
    return Finding("training time", claim, _all(parts), told)


def quality(results: Results) -> Finding:
    """The GRU keeps at least 95 % of the LSTM's quality: the LSTM's error over the GRU's."""
    claim = "The GRU has 95 % of the LSTM's quality."
    lower = not results.higher_is_better
    lstm, gru = results.metrics("family", LSTM), results.metrics("family", GRU)
    share = paired_ratio(lstm, gru) if lower else paired_ratio(gru, lstm)
    if share is None:
        return _unsaid("quality", claim)
    which = "the LSTM's over the GRU's" if lower else "the GRU's over the LSTM's"
    return Finding("quality", claim, _at_least(share, 0.95), f"{results.metric}, {which}: {share.told(3)}.")


def inference(results: Results) -> Finding:
    """The GRU infers 22 % faster than the LSTM; onnxruntime's float32 at one hidden size decides, others are told."""
    claim = "The GRU infers 22 % faster than the LSTM."
    cells = (("ort", "float32", ""), ("torch", "float32", ""), ("ort", "int8", "portable"), ("ort", "int8", "fused"))
    told, deciding = [], None
    for variant in (SAME_HIDDEN, ""):
        for backend, precision, kernels in cells:
            row = results.latency(LSTM, backend, precision, kernels, variant)
            if row is None or row.ratio is None:
                continue
            ratio = row.ratio.inverse()
            deciding = deciding or (ratio if (variant, backend, precision) == (SAME_HIDDEN, "ort", "float32") else None)
            where = " ".join(filter(None, (backend, precision, kernels)))
            told.append(f"{where} at {variant or 'equal parameters'} {ratio.told()}")
    if deciding is None:
        return _unsaid("inference", claim)
    verdict = _at_most(deciding, FASTER_22_PERCENT)
    return Finding("inference", claim, verdict, f"Time over the LSTM's (0.82 or less is claimed): {'; '.join(told)}.")


def recurrent_parameters(results: Results) -> Finding:
    """Three quarters of the LSTM's recurrent parameters: three gates' worth of weights against four."""
    claim = "The GRU has 3/4 of the LSTM's recurrent parameters."
    gru, lstm = results.counts.get(GRU), results.counts.get(LSTM)
    if not gru or not lstm:
        return _unsaid("parameters", claim)
    verdict: Verdict = "holds" if 4 * gru == 3 * lstm else "does not hold"
    return Finding("parameters", claim, verdict, f"At one hidden size {gru:,} against {lstm:,}: {gru / lstm:.3f}.")


def training_speed(results: Results) -> Finding:
    """The GRU trains about 30 % faster than the LSTM."""
    claim = "The GRU trains about 30 % faster than the LSTM."
    ratio = _over_lstm(results, GRU)
    if ratio is None:
        return _unsaid("training speed", claim)
    low, high = ABOUT_30_PERCENT
    equal = results.pace(LSTM)
    also = "" if equal is None else f"; at equal parameters {equal.ratio.inverse().told()}"
    told = f"Time over the LSTM's at one hidden size {ratio.told()}{also} (taken as claimed: {low:.2f} to {high:.2f})."
    return Finding("training speed", claim, _verdict(ratio.within(low, high)), told)


def short_windows(results: Results) -> Finding:
    """The RNN for sequences of under 20 steps."""
    return _window(results, "short windows", "Under 20 steps, take the RNN.", RNN, 1, 19)


def middle_windows(results: Results) -> Finding:
    """The GRU for sequences of 20 to 100 steps."""
    return _window(results, "middle windows", "From 20 to 100 steps, take the GRU.", GRU, 20, 100)


def long_windows(results: Results) -> Finding:
    """The LSTM for sequences of more than 100 steps."""
    return _window(results, "long windows", "Beyond 100 steps, take the LSTM.", LSTM, 101, None)


CLAIMS: tuple[Claim, ...] = (
    error_order,
    training_time,
    quality,
    inference,
    recurrent_parameters,
    training_speed,
    short_windows,
    middle_windows,
    long_windows,
)


def _window(results: Results, name: str, claim: str, chosen: str, low: int, high: int | None) -> Finding:
    """Holds where every run of the chosen one errs less than every run of both others, at every window of these."""
    windows = sorted({one.window for one in results.records if one.kind == "window"})
    told, verdicts = [], []
    for window in (size for size in windows if size >= low and (high is None or size <= high)):
        ratios = {
            other: paired_ratio(_errors(results, other, window), _errors(results, chosen, window))
            for other in CLAIMED
            if other != chosen
        }
        found = {other: ratio for other, ratio in ratios.items() if ratio is not None}
        if len(found) < 2:
            continue
        mine = _errors(results, chosen, window)
        sides = {separated(_errors(results, other, window), mine) for other in found}
        verdicts.append(None if "below" not in sides and "unclear" in sides else "below" not in sides)
        numbers = ", ".join(f"{_SHORT[other]}'s {ratio.told()}" for other, ratio in found.items())
        told.append(f"{window} steps: over the {_SHORT[chosen]}'s error the {numbers}{_unclear(sides)}")
    if not told:
        return _unsaid(name, claim)
    return Finding(name, claim, _all(verdicts), f"{'; '.join(told).removesuffix('.')}.")


def _errors(results: Results, architecture: str, window: int | None = None) -> dict[int, float]:
    """What is wrong, by seed: the metric, or what an accuracy leaves to 1."""
    found = (
        results.metrics("family", architecture)
        if window is None
        else results.metrics("window", architecture, str(window))
    )
    return {seed: 1 - value if results.higher_is_better else value for seed, value in found.items()}


def _over_lstm(results: Results, architecture: str) -> Interval | None:
    """Training time over the LSTM's at one hidden size, from the two ratios to the GRU's."""
    lstm = results.pace(LSTM, SAME_HIDDEN)
    if lstm is None:
        return None
    if architecture == GRU:
        return lstm.ratio.inverse()
    one = results.pace(architecture, SAME_HIDDEN)
    if one is None or None in (one.ratio.low, one.ratio.high, lstm.ratio.low, lstm.ratio.high):
        return None
    assert one.ratio.low is not None
    assert one.ratio.high is not None
    assert lstm.ratio.low is not None
    assert lstm.ratio.high is not None
    # The widest that both intervals allow: a little too wide, never too narrow.
    return Interval(
        one.ratio.median / lstm.ratio.median, one.ratio.low / lstm.ratio.high, one.ratio.high / lstm.ratio.low
    )


def _near(ratio: Interval, value: float) -> bool | None:
    return ratio.within(value * (1 - SLACK), value * (1 + SLACK))


def _at_least(ratio: Interval, value: float) -> Verdict:
    return _by_side(ratio.against(value), "above")


def _at_most(ratio: Interval, value: float) -> Verdict:
    return _by_side(ratio.against(value), "below")


def _by_side(side: Order, wanted: Order) -> Verdict:
    return "cannot be said here" if side == "unclear" else _verdict(side == wanted)


def _all(parts: list[bool | None]) -> Verdict:
    if False in parts:
        return "does not hold"
    return "cannot be said here" if None in parts else "holds"


def _verdict(found: bool | None) -> Verdict:
    return "cannot be said here" if found is None else "holds" if found else "does not hold"


def _unclear(sides: set[Order]) -> str:
    return " No difference seen where the runs overlap." if "unclear" in sides else ""


def _unsaid(name: str, claim: str) -> Finding:
    return Finding(name, claim, "cannot be said here", "This study has no numbers for it.")
