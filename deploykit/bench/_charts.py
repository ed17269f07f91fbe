"""The charts of a report, as SVG markup: pure functions of their numbers. Every one says in words what it shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from deploykit.bench import _svg as svg
from deploykit.bench._svg import Scale

#: A panel's width in drawing units, which are pixels where the page has room.
PANEL = 400.0
_LETTER = 7.0  # about the width of a character of the labels


@dataclass(frozen=True)
class Box:
    """One row's latencies: percentiles by percent, in milliseconds, the median among them. Groups lie together.

    ``device`` is the median of the GPU's own time, where it is known.
    """

    name: str
    style: int
    group: str
    quantiles: Mapping[int, float]
    note: str = ""
    device: float | None = None


@dataclass(frozen=True)
class Point:
    """One row: its latency, its SNR (None where there is no error at all), and whether it passed."""

    name: str
    style: int
    latency: float
    snr: float | None
    passed: bool


@dataclass(frozen=True)
class Curve:
    """One series of points, in the order of x."""

    name: str
    style: int
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Attempt:
    """A rate that was tried, the percentile that it had (None where its queue ran away), and whether it held."""

    rate: float
    found: float | None
    held: bool


@dataclass(frozen=True)
class Search:
    """One subject's attempts."""

    name: str
    style: int
    attempts: tuple[Attempt, ...]


@dataclass(frozen=True)
class Bar:
    """Shares, 0 to 1, that are int8, int8-storage and float32."""

    name: str
    int8: float
    storage: float
    float32: float


def distributions(boxes: Sequence[Box], name: str, title: str, width: float) -> str:
    """Nested bands of each row's latencies on one axis: the middle half, 5 to 95 %, 1 to 99 %, smallest and largest."""
    longest = max((len(box.name) for box in boxes), default=0)
    left = min(longest * _LETTER + 14, 0.3 * width)
    values = [value for box in boxes for value in box.quantiles.values()]
    values += [box.device for box in boxes if box.device is not None]
    scale = svg.positive_scale(values, left, width - 62)
    body, y = [svg.text(width, 14, "median, ms", "muted", "end")], 14.0
    lines: list[str] = []
    group: str | None = None
    for box in boxes:
        if box.group != group:
            group = box.group
            y += 14 if y > 14 else 0
            lines.append(svg.text(0, y, group, "strong"))
            y += 12
        lines += _box(box, scale, y + 10, left, width)
        y += 26
    body += _vertical_grid(scale, 22, y + 2, y + 18, max(3, int((width - left) / 75)))
    body.append(svg.text((scale.start + scale.end) / 2, y + 36, _axis("latency, ms", scale), "muted", "middle"))
    words = "; ".join(
        f"{box.name} at {box.group}: median {svg.told(box.quantiles[50])} ms, from "
        f"{svg.told(min(box.quantiles.values()))} to {svg.told(max(box.quantiles.values()))} ms"
        + ("" if box.device is None else f", the GPU's own median {svg.told(box.device)} ms")
        for box in boxes
    )
    return svg.figure(name, title, words, width, y + 42, [*body, *lines])


def _box(box: Box, scale: Scale, y: float, left: float, width: float) -> list[str]:
    kind, at = svg.series(box.style), box.quantiles
    found = [svg.text(left - 10, y + 4, svg.short(box.name, int(left / _LETTER)), "", "end")]
    found += [
        f'<circle cx="{scale(at[end]):.1f}" cy="{y:.1f}" r="1.6" class="dot {kind}"/>' for end in (0, 100) if end in at
    ]
    for low, high, height, band in ((1, 99, 1.5, "b1"), (5, 95, 6, "b2"), (25, 75, 14, "b3")):
        if low in at and high in at:
            start, end = scale(at[low]), scale(at[high])
            found.append(svg.rect(start, y - height / 2, max(1.0, end - start), height, f"{band} {kind}"))
    middle = scale(at[50])
    found.append(svg.line(middle, y - 9, middle, y + 9, "median"))
    if box.device is not None:
        found.append(f'<circle cx="{scale(box.device):.1f}" cy="{y:.1f}" r="4" class="mark hollow {kind}"/>')
    found.append(svg.text(width, y + 4, svg.told(float(f"{at[50]:.3g}")) + box.note, "number", "end"))
    return found


def front(points: Sequence[Point]) -> list[Point]:
    """Those that nothing is both faster than and at least as close to the reference, the fastest first."""
    best: float | None = None
    found = []
    for point in sorted(points, key=lambda point: (point.latency, -_closeness(point))):
        if best is None or _closeness(point) > best:
            best = _closeness(point)
            found.append(point)
    return found


def _closeness(point: Point) -> float:
    return float("inf") if point.snr is None else point.snr


def tradeoff(points: Sequence[Point], name: str, title: str, least: float | None = None) -> str:
    """Latency against SNR, with the Pareto front; ``least`` is the SNR that int8 needs to pass."""
    height, left, right, top, bottom = 290.0, 44.0, PANEL - 12, 24.0, 244.0
    x = svg.positive_scale([point.latency for point in points], left, right)
    known = [point.snr for point in points if point.snr is not None] + ([] if least is None else [least])
    exact = any(point.snr is None for point in points)
    low, high = min(known, default=0.0), max(known, default=40.0)
    pad = max(5.0, 0.08 * (high - low))
    y = Scale(low - pad, high + pad, bottom, top + (26 if exact else 0))

    def place(point: Point) -> tuple[float, float]:
        return x(point.latency), top if point.snr is None else y(point.snr)

    ahead = front([point for point in points if point.passed])
    body = [*_vertical_grid(x, 12, bottom, bottom + 16), *_horizontal_grid(y, left, right)]
    if exact:
        body += [svg.line(left, top, right, top, "grid"), svg.text(left - 6, top + 4, "exact", "muted", "end")]
    if least is not None:
        body.append(svg.line(left, y(least), right, y(least), "limit"))
        body.append(svg.text(right, y(least) - 5, f"int8 passes from {svg.told(least)} dB", "muted", "end"))
    stairs: list[tuple[float, float]] = []
    for point in ahead:
        here = place(point)
        stairs += [(here[0], stairs[-1][1]), here] if stairs else [here]
    body.append(svg.path(stairs, "front") if len(stairs) > 1 else "")
    heights = svg.spaced([place(point)[1] for point in points], 15, top, bottom - 4)
    for point, level in zip(points, heights, strict=True):
        here, best = place(point), point in ahead
        body.append(svg.marker(point.style, *here, f"mark {'full' if best else 'hollow'} {svg.series(point.style)}"))
        label = svg.short(point.name, 20) + ("" if point.passed else ", outside")
        # Above and to the left of its mark, where the front's line never runs; to the right where there is no room.
        before = here[0] - 8 - _LETTER * len(label) > left
        kind = "strong halo" if best else "halo"
        body.append(svg.text(here[0] + (-8 if before else 8), level - 6, label, kind, "end" if before else "start"))
    body.append(svg.text((left + right) / 2, height - 8, _axis("median latency, ms", x), "muted", "middle"))
    body.append(svg.text(0, 10, "SNR, dB", "muted"))
    words = "; ".join(
        f"{point.name}: {svg.told(point.latency)} ms, "
        + ("no error" if point.snr is None else f"{point.snr:.1f} dB")
        + (", on the Pareto front" if point in ahead else "")
        for point in points
    )
    return svg.figure(name, title, words, PANEL, height, body)


def curves(drawn: Sequence[Curve], name: str, title: str, x_name: str, y_name: str, sizes: bool = False) -> str:
    """Lines with their names at their ends; ``sizes`` says that x are a few sizes, marked and told one by one.

    Else x are the middles of equal pieces, so the axis ends as far behind the last as it begins before the first.
    """
    height, left, top, bottom = 260.0, 52.0, 24.0, 214.0
    labels = [svg.short(curve.name, 16) for curve in drawn]
    right = PANEL - 14 - _LETTER * max((len(label) for label in labels), default=0)
    xs = sorted({x for curve in drawn for x, _ in curve.points})
    x = _sizes_scale(xs, left + 10, right - 4) if sizes else Scale(0, xs[0] + xs[-1] if xs else 1.0, left, right)
    y = svg.positive_scale([value for curve in drawn for _, value in curve.points], bottom, top)
    # Where the scale is logarithmic there is no place for 0: such points are left out, and the line goes on.
    shown = [[(x(a), y(b)) for a, b in curve.points if b > 0 or not y.log] for curve in drawn]
    body = _horizontal_grid(y, left, right)
    for tick in xs if sizes else x.ticks(4):
        body += [svg.text(x(tick), bottom + 16, svg.told(tick), "tick", "middle")]
        body += [svg.line(x(tick), bottom, x(tick), bottom + 4, "axis")]
    body.append(svg.line(left, bottom, right, bottom, "axis"))
    ends = [points[-1][1] if points else bottom for points in shown]
    for curve, points, label, level in zip(drawn, shown, labels, svg.spaced(ends, 14, top, bottom), strict=True):
        kind = svg.series(curve.style)
        body.append(svg.path(points, f"curve {kind}") if len(points) > 1 else "")
        marked = points if sizes else points[-1:]
        body += [svg.marker(curve.style, *point, f"mark full {kind}") for point in marked]
        body.append(svg.text(right + 10, level + 4, label))
    body.append(svg.text(0, 10, _axis(y_name, y), "muted"))
    body.append(svg.text((left + right) / 2, height - 10, x_name, "muted", "middle"))
    words = "; ".join(
        f"{curve.name}: {svg.told(curve.points[0][1])} at {svg.told(curve.points[0][0])}, "
        f"{svg.told(curve.points[-1][1])} at {svg.told(curve.points[-1][0])}"
        for curve in drawn
        if curve.points
    )
    return svg.figure(name, title, words, PANEL, height, body)


def searches(drawn: Sequence[Search], name: str, title: str, percentile: str, bound: float) -> str:
    """The latency percentile over the rate: a filled mark held the bound, a hollow one did not."""
    legend, below = _legend([(search.name, search.style) for search in drawn])
    left, right, top, bottom = 66.0, PANEL - 14, below + 30, below + 220
    tried = [attempt for search in drawn for attempt in search.attempts]
    away = any(attempt.found is None for attempt in tried)
    x = svg.positive_scale([attempt.rate for attempt in tried], left, right)
    y = svg.positive_scale([bound, *(one.found for one in tried if one.found is not None)], bottom, top + 22 * away)
    body = [*legend, *_vertical_grid(x, top, bottom, bottom + 16), *_horizontal_grid(y, left, right)]
    if away:
        body += [svg.line(left, top, right, top, "grid"), svg.text(left - 6, top + 4, "ran away", "muted", "end")]
    body.append(svg.line(left, y(bound), right, y(bound), "limit"))
    body.append(svg.text(left + 4, y(bound) - 5, f"bound: {svg.told(bound)} ms", "muted"))
    for search in drawn:
        kind = svg.series(search.style)
        places = [(x(one.rate), top if one.found is None else y(one.found)) for one in search.attempts]
        body.append(svg.path(places, f"curve {kind}") if len(places) > 1 else "")
        for attempt, place in zip(search.attempts, places, strict=True):
            body.append(svg.marker(search.style, *place, f"mark {'full' if attempt.held else 'hollow'} {kind}"))
    body.append(svg.text(0, below + 16, _axis(f"{percentile}, ms", y), "muted"))
    body.append(svg.text((left + right) / 2, bottom + 36, _axis("requests per second", x), "muted", "middle"))
    words = "; ".join(f"{search.name}: {', '.join(map(_attempt, search.attempts))}" for search in drawn)
    return svg.figure(name, title, words, PANEL, bottom + 46, body)


def _legend(entries: Sequence[tuple[str, int]]) -> tuple[list[str], float]:
    """Marks with their names, in as many lines as they need; and where they end. For lines that end side by side."""
    body: list[str] = []
    x, y = 0.0, 10.0
    for name, style in entries:
        label = svg.short(name, 24)
        wide = 18 + len(label) * _LETTER + 16
        if x and x + wide > PANEL:
            x, y = 0.0, y + 18
        body.append(svg.marker(style, x + 6, y - 4, f"mark full {svg.series(style)}"))
        body.append(svg.text(x + 18, y, label))
        x += wide
    return body, y + 6


def _attempt(attempt: Attempt) -> str:
    found = "its queue ran away" if attempt.found is None else f"{svg.told(float(f'{attempt.found:.3g}'))} ms"
    return f"{found} at {attempt.rate:.4g} requests/s{'' if attempt.held or attempt.found is None else ', not held'}"


def _sizes_scale(xs: Sequence[float], start: float, end: float) -> Scale:
    low, high = (xs[0], xs[-1]) if xs else (1.0, 2.0)
    return Scale(low, high, start, end, log=low > 0) if high > low else Scale(low - 1, low + 1, start, end)


def stacked(bars: Sequence[Bar], name: str, title: str) -> str:
    """One bar of shares each: filled is int8, hatched is int8 in storage alone, empty is float32."""
    left, right, y = 62.0, PANEL - 2, 4.0
    hatch = (
        f'<defs><pattern id="{name}-h" width="6" height="6" patternUnits="userSpaceOnUse" '
        'patternTransform="rotate(45)"><rect width="6" height="6" class="empty"/><rect width="2.5" height="6" '
        'class="solid"/></pattern></defs>'
    )
    body = [hatch]
    fills = (("int8", "solid", None), ("int8 storage", "hatch", f"url(#{name}-h)"), ("float32", "empty", None))
    for bar in bars:
        body.append(svg.text(0, y + 16, bar.name))
        at = left
        for share, (_, kind, fill) in zip((bar.int8, bar.storage, bar.float32), fills, strict=True):
            wide = share * (right - left)
            if share > 0:
                body.append(svg.rect(at, y, wide, 23, f"part {kind}", fill))
            if wide > 44:
                body.append(svg.text(at + wide / 2, y + 16, f"{share:.0%}", f"in-{kind}", "middle"))
            at += wide
        y += 32
    at = left
    for told, kind, fill in fills:
        body += [svg.rect(at, y + 2, 14, 12, f"part {kind}", fill), svg.text(at + 20, y + 12, told, "muted")]
        at += 20 + len(told) * _LETTER + 20
    words = "; ".join(
        f"{bar.name}: {bar.int8:.1%} int8, {bar.storage:.1%} int8 in storage alone, {bar.float32:.1%} float32"
        for bar in bars
    )
    return svg.figure(name, title, words, PANEL, y + 18, body)


def _vertical_grid(scale: Scale, top: float, bottom: float, label: float, wanted: int = 5) -> list[str]:
    found = [svg.line(scale.start, bottom, scale.end, bottom, "axis")]
    ticks = scale.ticks(wanted)
    for tick, told in zip(ticks, svg.labels(ticks), strict=True):
        found.append(svg.line(scale(tick), top, scale(tick), bottom, "grid"))
        found.append(svg.text(scale(tick), label, told, "tick", "middle"))
    return found


def _horizontal_grid(scale: Scale, left: float, right: float) -> list[str]:
    found = []
    ticks = scale.ticks(4)
    for tick, told in zip(ticks, svg.labels(ticks), strict=True):
        found.append(svg.line(left, scale(tick), right, scale(tick), "grid"))
        found.append(svg.text(left - 6, scale(tick) + 4, told, "tick", "end"))
    return found


def _axis(name: str, scale: Scale) -> str:
    return f"{name} (log scale)" if scale.log else name
