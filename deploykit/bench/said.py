"""Sentences on what the scenarios and the drift found, for the table and the page alike."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from deploykit.bench.report import Drift, Latency, Row, Server

#: The scenario of a report of before, or that does not say.
SINGLE = "single-stream"


def drift(found: Drift) -> str:
    """What a stream showed, where it lies within the tolerance."""
    error = f"its largest error is {found.max_abs:.2g}"
    grows = ", and its error grows" if found.grows else ""
    if found.snr_first_db is None or found.snr_last_db is None:
        return f"over {found.steps:,} streamed steps {error}{grows}."
    return (
        f"over {found.steps:,} streamed steps {error}{grows}; SNR {found.snr_first_db:.1f} dB in the first tenth, "
        f"{found.snr_last_db:.1f} dB in the last."
    )


def server(found: Server, sizes: str, alone: Latency | None = None) -> str:
    """The highest rate that held, or what a rate that was given did; ``alone`` is the latency without any queue."""
    other = "lower" if found.rate is None else "higher"
    end = f", and the search ended for its time: a {other} rate may hold" if found.capped else ""
    count = f"{len(found.tries)} rate{'' if len(found.tries) == 1 else 's'} tried{end}"
    if found.percentile is not None and found.rate is None:
        least = min((one.rate for one in found.tries), default=None)
        down = "" if least is None else f" down to {least:.3g} requests/s"
        told = f"at {sizes}, no rate{down} holds {found.percentile} within {found.bound_ms:g} ms: {count}"
        served: float | None = getattr(alone, found.percentile, None)
        if served is None or found.bound_ms is None or served <= found.bound_ms:
            return f"{told}."
        return f"{told}; {served:.3g} ms is its {found.percentile} without any queue."
    told = ", ".join(
        f"{name} {value:.3g} ms"
        for name, value in (("p50", found.p50), ("p90", found.p90), ("p99", found.p99))
        if value is not None
    )
    own = None if found.device_ms is None else found.device_ms.p50
    gpu = "" if own is None else f" (the GPU's own time: p50 {own:.3g} ms)"
    if found.percentile is not None:
        return (
            f"at {sizes}, {found.percentile} stays within {found.bound_ms:g} ms up to {found.rate:.4g} requests/s: "
            f"{told}{gpu} over {found.requests:,} requests; {count}."
        )
    if ran_away(found):
        return f"at {sizes}, {found.rate:,.10g} requests/s are too many: its queue ran away."
    few = ", as no more arrive within the time that a try may last" if found.capped else ""
    many = "" if found.requests == 1 else "s"
    told = told or f"mean {found.mean:.3g} ms"
    return f"at {sizes}, {told}{gpu} at {found.rate:.4g} requests/s, over {found.requests:,} request{many}{few}."


def ran_away(found: Server) -> bool:
    """Whether the queue of the rate that was given ran away; too few requests for a median still have a mean."""
    return found.percentile is None and found.p50 is None and found.mean is None


def served(found: Server) -> float | None:
    """The requests a second that it kept up with; None where its queue ran away, or no rate holds the bound."""
    return None if ran_away(found) else found.rate


def best(rows: Sequence[Row]) -> Iterator[str]:
    """The batch with the highest throughput of one subject, for each number of steps."""
    timed = [row for row in rows if row.latency_ms is not None and row.latency_ms.throughput is not None]
    for time in dict.fromkeys(row.time for row in timed):
        found = [row for row in timed if row.time == time]
        if len(found) > 1:
            top = max(found, key=throughput)
            steps = "" if time is None else f", {time} step{'' if time == 1 else 's'}"
            yield f"its best batch is {top.batch}{steps}: {throughput(top):,.0f} rows/s."


def throughput(row: Row) -> float:
    """Batch rows per second; 0 where it is not known."""
    return 0.0 if row.latency_ms is None else row.latency_ms.throughput or 0.0
