"""The study as one drawing: a row an architecture; a column each for metric, training time and latency."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from deploykit.bench import _svg as svg

from .results import Results
from .statistics import Interval, spread

ROW, TOP, LEFT, NAMES, COLUMN, GAP = 32.0, 60.0, 10.0, 160.0, 230.0, 30.0
BOTTOM = 52.0
#: A column whose largest value is this many times its smallest has a logarithmic scale.
LOG_FROM = 5.0

#: The drawing stands alone, so that it brings its own colours, for light and dark.
STYLE = """
svg { font: 13px system-ui, sans-serif; background: #fff; }
text { fill: #1f2328; } .muted, .tick { fill: #59636e; font-size: 11px; } .head { font-weight: 600; }
.grid { stroke: #d8dee4; } .zero { stroke: #59636e; stroke-dasharray: 3 3; } .bar { stroke-width: 2; fill: none; }
.s0 { fill: #0b62c4; stroke: #0b62c4; }
.s1 { fill: #b3470a; stroke: #b3470a; }
.s2 { fill: #117a4a; stroke: #117a4a; }
.seed { fill-opacity: 0.35; stroke: none; }
@media (prefers-color-scheme: dark) {
  svg { background: #0d1117; } text { fill: #e6edf3; } .muted, .tick { fill: #9198a1; }
  .grid { stroke: #30363d; } .zero { stroke: #9198a1; }
  .s0 { fill: #58a6ff; stroke: #58a6ff; }
  .s1 { fill: #f0883e; stroke: #f0883e; }
  .s2 { fill: #3fb950; stroke: #3fb950; }
}
"""


@dataclass(frozen=True)
class Mark:
    """One median with its bounds in a row; ``points`` are the single runs."""

    middle: float
    low: float | None = None
    high: float | None = None
    points: tuple[float, ...] = ()

    @property
    def values(self) -> tuple[float, ...]:
        return tuple(value for value in (self.middle, self.low, self.high, *self.points) if value is not None)


@dataclass(frozen=True)
class Column:
    """``series``: a name and a mark for each row, None where there is none. ``line`` is drawn across all rows."""

    title: str
    series: tuple[tuple[str, tuple[Mark | None, ...]], ...]
    line: tuple[str, float] | None = None


def picture(results: Results) -> str:
    """The whole drawing as SVG."""
    names = results.architectures
    columns = [column for column in _columns(results, names) if any(any(marks) for _, marks in column.series)]
    width = NAMES + len(columns) * (COLUMN + GAP)
    height = TOP + len(names) * ROW + BOTTOM
    body = [svg.text(LEFT, TOP + (row + 0.6) * ROW, svg.short(name, 22)) for row, name in enumerate(names)]
    for number, column in enumerate(columns):
        body += _drawn(column, NAMES + number * (COLUMN + GAP), len(names))
    body += [svg.line(LEFT, TOP + row * ROW, width - GAP, TOP + row * ROW, "grid") for row in range(len(names) + 1)]
    words = "; ".join(_told(column, names) for column in columns)
    drawing = svg.figure(f"study-{results.task}", f"The study of {results.task}", words, width, height, body)
    head, _, rest = drawing.partition(">")
    size = f'width="{width:.0f}" height="{height:.0f}"'
    return f'{head} xmlns="http://www.w3.org/2000/svg" {size}><style>{STYLE}</style>{rest}\n'


def _columns(results: Results, names: Sequence[str]) -> list[Column]:
    better = "higher" if results.higher_is_better else "lower"
    told = f"{results.metric.replace('_', ' ')}, {better} is better"
    baseline = next(iter(results.baselines.items()), None)
    return [
        Column(
            told,
            (
                ("float32", tuple(_runs(results.metrics("family", name)) for name in names)),
                ("int8", tuple(_runs(_int8(results, name)) for name in names)),
            ),
            baseline,
        ),
        Column(
            "training time over the GRU's",
            (("", tuple(None if (pace := results.pace(name)) is None else _mark(pace.ratio) for name in names)),),
            ("GRU", 1.0),
        ),
        Column(
            "latency over the GRU's",
            tuple(
                (label, tuple(_latency(results, name, *cell) for name in names))
                for label, cell in (
                    ("float32", ("ort", "float32", "")),
                    ("int8", ("ort", "int8", "portable")),
                    ("int8 fused", ("ort", "int8", "fused")),
                )
            ),
            ("GRU", 1.0),
        ),
    ]


def _int8(results: Results, name: str) -> dict[int, float]:
    found = results.of("family", name)
    return {
        seed: one.deployed.int8_metric
        for seed, one in found.items()
        if one.deployed is not None and one.deployed.int8_metric is not None
    }


def _runs(found: dict[int, float]) -> Mark | None:
    interval = spread(list(found.values()))
    return None if interval is None else Mark(interval.median, interval.low, interval.high, tuple(found.values()))


def _mark(interval: Interval) -> Mark:
    return Mark(interval.median, interval.low, interval.high)


def _latency(results: Results, name: str, backend: str, precision: str, kernels: str) -> Mark | None:
    row = results.latency(name, backend, precision, kernels)
    return None if row is None or row.ratio is None else _mark(row.ratio)


def _drawn(column: Column, left: float, rows: int) -> list[str]:
    values = [value for _, marks in column.series for mark in marks if mark is not None for value in mark.values]
    scale = _scale(values, None if column.line is None else column.line[1], left, left + COLUMN)
    bottom = TOP + rows * ROW
    body = [svg.text(left, 16, column.title, "head"), *_legend(column, left)]
    ticks = scale.ticks(4)
    for tick, label in zip(ticks, svg.labels(ticks), strict=True):
        body += [svg.line(scale(tick), TOP, scale(tick), bottom, "grid")]
        body += [svg.text(scale(tick), bottom + 15, label, "tick", "middle")]
    if column.line is not None and scale.low <= column.line[1] <= scale.high:
        at = scale(column.line[1])
        body += [
            svg.line(at, TOP - 4, at, bottom, "zero"),
            svg.text(at, bottom + 30, column.line[0], "muted", "middle"),
        ]
    elif column.line is not None:
        body += [svg.text(left, bottom + 30, f"{column.line[0]}: {column.line[1]:.3g}, outside", "muted")]
    count = len(column.series)
    for style, (_, marks) in enumerate(column.series):
        for row, mark in enumerate(marks):
            if mark is not None:
                body += _placed(mark, scale, TOP + row * ROW + ROW * (style + 1) / (count + 1), style)
    return body


def _placed(mark: Mark, scale: svg.Scale, y: float, style: int) -> list[str]:
    kind = svg.series(style)
    body = [svg.marker(0, scale(point), y, f"seed {kind}") for point in mark.points]
    if mark.low is not None and mark.high is not None:
        body.append(svg.line(scale(mark.low), y, scale(mark.high), y, f"bar {kind}"))
    return [*body, svg.marker(style, scale(mark.middle), y, kind)]


def _legend(column: Column, left: float) -> list[str]:
    body: list[str] = []
    for style, (name, _) in enumerate(column.series):
        if name:
            body += [svg.marker(style, left + 6, 34, svg.series(style)), svg.text(left + 16, 38, name, "muted")]
            left += 76
    return body


def _scale(values: Sequence[float], line: float | None, left: float, right: float) -> svg.Scale:
    """From the smallest to the largest, not from 0: differences are what is looked for; a far baseline is left out.

    Logarithmic where one is many times another, or the rest would lie on one point.
    """
    low, high = min(values), max(values)
    room = (high - low) or abs(high) * 0.1 or 1.0
    if line is not None and low - 2 * room <= line <= high + 2 * room:
        low, high = min(low, line), max(high, line)
        room = (high - low) or room
    if low > 0 and high > LOG_FROM * low:
        margin = (high / low) ** 0.06
        return svg.Scale(low / margin, high * margin, left, right, log=True)
    return svg.Scale(low - 0.06 * room, high + 0.06 * room, left, right)


def _told(column: Column, names: Sequence[str]) -> str:
    said = []
    for label, marks in column.series:
        numbers = [f"{name} {mark.middle:.4g}" for name, mark in zip(names, marks, strict=True) if mark is not None]
        said.append(f"{column.title}{f' ({label})' if label else ''}: {', '.join(numbers)}")
    return "; ".join(said)
