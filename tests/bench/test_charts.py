from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploykit.bench import _charts as charts
from deploykit.bench import _svg as svg
from deploykit.bench._charts import Attempt, Bar, Box, Curve, Point, Search

_NUMBERS = st.floats(1e-6, 1e6)


def parsed(text: str) -> ElementTree.Element:
    assert not re.search(r"nan|inf\b", text)
    return ElementTree.fromstring(text)


def classes(text: str, tag: str) -> list[str]:
    return [element.attrib.get("class", "") for element in parsed(text).iter(tag)]


def test_the_front_is_what_nothing_beats_in_both() -> None:
    fast, middle, exact = (
        Point("fast", 0, 1, 20, True),
        Point("middle", 1, 2, 60, True),
        Point("exact", 2, 9, None, True),
    )
    worse, slower = Point("worse", 3, 3, 50, True), Point("slower", 4, 10, None, True)
    assert charts.front([slower, worse, exact, middle, fast]) == [fast, middle, exact]


def test_what_is_outside_its_tolerance_is_not_on_the_front_and_says_so() -> None:
    text = charts.tradeoff([Point("good", 0, 2, 40, True), Point("bad", 1, 1, 50, False)], "t", "title")
    assert "bad, outside" in text
    assert [kind.split()[1] for kind in classes(text, "circle")] == ["full"]
    assert "good: 2 ms, 40.0 dB, on the Pareto front" in text
    assert "bad: 1 ms, 50.0 dB<" in text


@pytest.mark.parametrize(
    ("values", "log"), [([1, 9], False), ([1, 50], True), ([0, 1], False), ([], False), ([0], False)]
)
def test_a_wide_range_is_logarithmic(values: Sequence[float], log: bool) -> None:
    scale = svg.positive_scale(values, 0, 100)
    assert scale.log is log
    assert log or scale.low == 0


@given(low=_NUMBERS, factor=st.floats(1.001, 1e9), log=st.booleans())
@settings(max_examples=100, deadline=None)
def test_ticks_are_round_few_and_within(low: float, factor: float, log: bool) -> None:
    scale = svg.Scale(low, low * factor, 0, 100, log)
    ticks = scale.ticks()
    assert len(ticks) <= 12
    assert ticks == sorted(ticks)
    assert all(low * (1 - 1e-6) <= tick <= low * factor * (1 + 1e-6) for tick in ticks)
    assert len(svg.labels(ticks)) == len(ticks)


@given(st.lists(st.floats(0, 200), max_size=12))
@settings(max_examples=100, deadline=None)
def test_labels_are_moved_apart_in_their_order(places: list[float]) -> None:
    moved = svg.spaced(places, 14, 0, 200)
    order = sorted(range(len(places)), key=lambda index: places[index])
    gaps = [moved[after] - moved[before] for before, after in itertools.pairwise(order)]
    assert all(gap >= 14 - 1e-6 for gap in gaps)


@pytest.mark.parametrize("width", [400.0, 840.0])
@given(st.lists(st.lists(_NUMBERS, min_size=7, max_size=7), min_size=1, max_size=8))
@settings(max_examples=30, deadline=None)
def test_boxes_lie_within_the_drawing(width: float, rows: list[list[float]]) -> None:
    boxes = [
        Box(f"row {number}", number, "group", dict(zip((0, 1, 5, 25, 50, 95, 100), sorted(row), strict=True)))
        for number, row in enumerate(rows)
    ]
    found = parsed(charts.distributions(boxes, "d", "title", width))
    for element in found.iter("circle"):
        assert 0 <= float(element.attrib["cx"]) <= width
    assert len(
        [kind for kind in classes(charts.distributions(boxes, "d", "t", width), "line") if kind == "median"]
    ) == len(rows)


def test_a_band_that_is_not_known_is_left_out() -> None:
    text = charts.distributions([Box("a", 0, "g", {0: 1.0, 50: 2.0, 100: 3.0})], "d", "title", 400)
    assert classes(text, "rect") == []
    assert len(classes(text, "circle")) == 2
    assert "a at g: median 2 ms, from 1 to 3 ms" in text


def test_curves_leave_out_what_a_logarithm_has_no_place_for() -> None:
    drawn = [Curve("a", 0, ((0.5, 0.0), (1.5, 1e-6), (2.5, 1e-2))), Curve("b", 1, ())]
    text = charts.curves(drawn, "c", "title", "step", "error")
    path = next(element for element in parsed(text).iter("path") if "curve" in element.attrib["class"])
    assert path.attrib["d"].count("L") == 1
    assert "(log scale)" in text


def test_sizes_are_told_one_by_one() -> None:
    text = charts.curves([Curve("a", 0, ((1, 5), (16, 7), (64, 9)))], "c", "title", "batch", "rows/s", sizes=True)
    told = [element.text for element in parsed(text).iter("text")]
    assert {"1", "16", "64"} <= set(told)


def test_shares_fill_their_bar_and_differ_by_more_than_colour() -> None:
    text = charts.stacked([Bar("weights", 0.6, 0.3, 0.1)], "s", "title")
    parts = [element for element in parsed(text).iter("rect") if "part" in element.attrib.get("class", "")][:3]
    widths = [float(element.attrib["width"]) for element in parts]
    assert [round(width / sum(widths), 2) for width in widths] == [0.6, 0.3, 0.1]
    assert [element.attrib["class"].split()[1] for element in parts] == ["solid", "hatch", "empty"]
    assert "weights: 60.0% int8, 30.0% int8 in storage alone, 10.0% float32" in text


def test_names_are_escaped_and_cut_only_where_they_are_seen() -> None:
    name = "<b>&\"'" * 10
    text = charts.curves([Curve(name, 0, ((1, 1), (2, 2)))], "c", name, "x", "y")
    found = parsed(text)
    title, words = found.find("title"), found.find("desc")
    assert title is not None
    assert title.text == name
    assert words is not None
    assert name in str(words.text)


def test_markers_differ_by_shape() -> None:
    assert len({svg.marker(style, 0, 0, "") for style in range(svg.STYLES)}) == svg.STYLES


def test_a_search_shows_which_rates_held_and_which_ran_away() -> None:
    attempts = (Attempt(50.0, 6.25, True), Attempt(100.0, 31.0, False), Attempt(200.0, None, False))
    text = charts.searches([Search("ort", 0, attempts)], "r", "title", "p99", 20.0)
    assert [kind.split()[1] for kind in classes(text, "circle")] == ["full", "full", "hollow", "hollow"]
    _, *marks = [(float(mark.attrib["cx"]), float(mark.attrib["cy"])) for mark in parsed(text).iter("circle")]
    assert marks == sorted(marks, key=lambda at: (at[0], -at[1])), "a higher rate lies to the right, and here above"
    (bound,) = (float(line.attrib["y1"]) for line in parsed(text).iter("line") if line.attrib["class"] == "limit")
    assert marks[1][1] < bound < marks[0][1]
    words = "ort: 6.25 ms at 50 requests/s, 31 ms at 100 requests/s, not held, its queue ran away at 200 requests/s"
    assert words in text
    assert ">ran away<" in text
    assert ">ran away<" not in charts.searches([Search("ort", 0, attempts[:2])], "r", "title", "p99", 20.0)


def test_a_legend_takes_as_many_lines_as_it_needs() -> None:
    one, end = charts._legend([("ort fp32", 0)])
    many, lower = charts._legend([(f"a backend of number {number}", number) for number in range(5)])
    assert lower > end
    starts = [float(x) for x in re.findall(r'<text x="([0-9.]+)"', "".join(many))]
    assert len(starts) == 5
    assert max(starts) < charts.PANEL - 100, "each has room for its name"
    assert len(one) == 2
