"""What the charts are drawn with: scales with round ticks, and SVG elements as text. Colours are the page's."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

#: The page has so many colours, markers and dashes for series; the same ones come again after that.
STYLES = 6
_LOG_FROM = 10.0  # values that span more than this factor are drawn on a logarithmic scale


@dataclass(frozen=True)
class Scale:
    """Maps ``low`` to ``high`` onto ``start`` to ``end`` of the drawing, linearly or by the logarithm."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        place = math.log(max(value, self.low)) if self.log else value
        return self.start + (place - low) / (high - low) * (self.end - self.start)

    def ticks(self, wanted: int = 5) -> list[float]:
        """Round numbers within the scale, about as many as ``wanted``."""
        found = _log_ticks(self.low, self.high, wanted) if self.log else _linear_ticks(self.low, self.high, wanted)
        return found if len(found) > 1 or not self.log else _linear_ticks(self.low, self.high, wanted)


def positive_scale(values: Sequence[float], start: float, end: float) -> Scale:
    """A scale for what is never negative: from 0, or logarithmic where the values span more than a factor of ten."""
    above = [value for value in values if value > 0]
    if not above:
        return Scale(0, 1, start, end)
    low, high = min(above), max(above)
    if high / low > _LOG_FROM:
        return Scale(low / 1.15, high * 1.15, start, end, log=True)
    return Scale(0, high * 1.06, start, end)


def spaced(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """The places moved as little as needed to lie ``gap`` apart within ``low`` to ``high``, in their order."""
    order = sorted(range(len(places)), key=lambda index: places[index])
    moved = list(places)
    last = low - gap
    for index in order:
        moved[index] = last = max(places[index], last + gap)
    above = high + gap
    for index in reversed(order):
        moved[index] = above = min(moved[index], above - gap)
    return moved


def figure(name: str, title: str, description: str, width: float, height: float, body: Iterable[str]) -> str:
    """A whole drawing with its title and its content in words, for whoever does not see it."""
    return (
        f'<svg class="chart" role="img" viewBox="0 0 {_n(width)} {_n(height)}" aria-labelledby="{name}-t {name}-d">'
        f'<title id="{name}-t">{_text(title)}</title><desc id="{name}-d">{_text(description)}</desc>'
        f"{''.join(body)}</svg>"
    )


def text(x: float, y: float, content: str, kind: str = "", anchor: str = "start") -> str:
    """Text on the baseline ``y``."""
    return f'<text x="{_n(x)}" y="{_n(y)}" text-anchor="{anchor}" class="{kind}">{_text(content)}</text>'


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    """A straight line."""
    return f'<line x1="{_n(x1)}" y1="{_n(y1)}" x2="{_n(x2)}" y2="{_n(y2)}" class="{kind}"/>'


def rect(x: float, y: float, width: float, height: float, kind: str, fill: str | None = None) -> str:
    """A rectangle; ``fill`` takes the place of its class's."""
    style = "" if fill is None else f' style="fill:{fill}"'
    return f'<rect x="{_n(x)}" y="{_n(y)}" width="{_n(max(0.0, width))}" height="{_n(height)}" class="{kind}"{style}/>'


def path(points: Iterable[tuple[float, float]], kind: str) -> str:
    """A line through the points."""
    steps = " ".join(f"{'L' if index else 'M'}{_n(x)} {_n(y)}" for index, (x, y) in enumerate(points))
    return f'<path d="{steps}" class="{kind}"/>'


def marker(style: int, x: float, y: float, kind: str) -> str:
    """The mark of a series: its shape tells it as well as its colour."""
    r = 4.5
    corners: tuple[tuple[float, float], ...]
    match style % STYLES:
        case 0:
            return f'<circle cx="{_n(x)}" cy="{_n(y)}" r="{r}" class="{kind}"/>'
        case 1:
            corners = ((-r, -r), (r, -r), (r, r), (-r, r))
        case 2:
            corners = ((0, -1.4 * r), (1.4 * r, 0), (0, 1.4 * r), (-1.4 * r, 0))
        case 3:
            corners = ((0, -1.3 * r), (1.2 * r, r), (-1.2 * r, r))
        case 4:
            corners = ((-1.2 * r, -r), (1.2 * r, -r), (0, 1.3 * r))
        case _:
            corners = ((-r, -0.5 * r), (0, -1.3 * r), (r, -0.5 * r), (r, r), (-r, r))
    return f'<path d="M{" L".join(f"{_n(x + dx)} {_n(y + dy)}" for dx, dy in corners)} Z" class="{kind}"/>'


def series(style: int) -> str:
    """The class of a series' colour and dashes."""
    return f"s{style % STYLES}"


def short(name: str, most: int) -> str:
    """A name cut to ``most`` characters; the drawing's description has it whole."""
    return name if len(name) <= most else f"{name[: most - 1]}…"


def told(value: float) -> str:
    """A tick's number, without an exponent where it needs none."""
    if value and not 1e-3 <= abs(value) < 1e5:
        return _exponent(value)
    return f"{value:.3f}".rstrip("0").rstrip(".") if abs(value) < 100 else f"{value:,.0f}"


def labels(ticks: Sequence[float]) -> list[str]:
    """The ticks as text, all with an exponent where one of them needs it."""
    found = [told(tick) for tick in ticks]
    if not any("e" in label for label in found):
        return found
    return [_exponent(tick) if tick else "0" for tick in ticks]


def _exponent(value: float) -> str:
    digits, exponent = f"{value:.1e}".split("e")
    return f"{digits.removesuffix('.0')}e{int(exponent)}"


def _log_ticks(low: float, high: float, wanted: int) -> list[float]:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    found: list[float] = []
    for steps in ((1.0,), (1.0, 3.0), (1.0, 2.0, 5.0)):
        found = [step * 10.0**power for power in range(first, last + 1) for step in steps]
        found = [tick for tick in found if low <= tick <= high]
        if len(found) >= wanted - 2:
            break
    stride = math.ceil(len(found) / (wanted + 2))
    return found[:: max(1, stride)]


def _linear_ticks(low: float, high: float, wanted: int) -> list[float]:
    raw = (high - low) / max(1, wanted)
    power = 10.0 ** math.floor(math.log10(raw))
    step = power * next((size for size in (1, 2, 5) if size * power >= raw), 10)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _text(value: str) -> str:
    # A control character is no XML, escaped or not.
    return escape("".join(char if char >= " " else " " for char in value))
