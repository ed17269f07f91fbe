from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from deploykit.advise.choose import Candidate, Choice, best_of_each, pareto, weigh
from deploykit.advise.cost import Costs, Estimate, Group
from deploykit.advise.evidence import Evidence
from deploykit.advise.quality import Judge
from deploykit.advise.question import Question
from tests.advise.samples import MACHINE, QUALITIES, TASK, grid, quality

POINTS = st.lists(st.tuples(*[st.integers(0, 4).map(float)] * 3), min_size=1, max_size=12)


def choice(*rows: object, **asked: object) -> Choice:
    judge = Judge([Evidence(qualities=rows if rows else QUALITIES)], [TASK])  # type: ignore[arg-type]
    question = Question(steps=20, **asked)  # type: ignore[arg-type]
    return weigh(question, Costs(Group(grid(), MACHINE, True)), judge, {"gru": True, "rnn-tanh": False})


def named(number: int) -> Candidate:
    return Candidate("gru", number, "ort", "float32", "", Estimate({}, 0, 0), None)


@given(POINTS)
def test_the_front_is_who_is_not_dominated(points: list[tuple[float, ...]]) -> None:
    found = pareto([(named(number), point) for number, point in enumerate(points)])
    for number, point in enumerate(points):
        beaten = any(all(a <= b for a, b in zip(other, point, strict=True)) and other != point for other in points)
        assert (named(number).key in found) == (not beaten)


def test_without_limits_the_least_loss_is_taken_and_the_faster_of_equals() -> None:
    found = choice()
    assert found.taken is not None
    assert found.leader is not None
    assert found.taken.network == ("gru", 64)
    assert found.leader.precision == "float32"  # int8 loses 1 % more, which no run tells
    assert found.taken.precision == "int8"


@given(st.floats(0.01, 5.0), st.integers(100, 20_000))
def test_what_is_taken_keeps_the_limits(milliseconds: float, size: int) -> None:
    found = choice(latency={"p99": milliseconds}, size_bytes=size)
    if found.taken is None:
        assert all(one.missed for one in found.candidates)
        assert found.nearest is not None
    else:
        assert found.taken.estimate.latency_ms["p99"] <= milliseconds
        assert found.taken.estimate.size_bytes <= size


@given(st.floats(0.2, 5.0), st.floats(1.0, 3.0))
def test_a_tighter_limit_never_finds_less_loss(milliseconds: float, factor: float) -> None:
    tight, loose = (choice(latency={"p50": limit}).leader for limit in (milliseconds, milliseconds * factor))
    if tight is not None:
        assert loose is not None
        assert tight.index is not None
        assert loose.index is not None
        assert loose.index.median <= tight.index.median


def test_more_loss_than_three_percent_is_not_given_away() -> None:
    wide = (quality("gru", 64, (18.0, 20.0, 24.0)), quality("rnn-tanh", 64, (19.0, 22.0, 24.0)))
    found = choice(*wide)
    assert {one.architecture for one in found.equals} == {"gru"}
    near = (wide[0], quality("rnn-tanh", 64, (19.0, 20.2, 24.0)))
    assert choice(*near).taken is not None
    assert {one.architecture for one in choice(*near).equals} == {"gru", "rnn-tanh"}


def test_filters_leave_the_others_out() -> None:
    assert {one.architecture for one in choice(architectures=("gru",)).candidates} == {"gru"}
    assert {one.precision for one in choice(precisions=("int8",)).candidates} == {"int8"}
    assert {one.architecture for one in choice(causal=True).candidates} == {"gru"}
    assert not choice(backends=("openvino",)).candidates


def test_who_was_not_judged_is_not_taken() -> None:
    found = choice(QUALITIES[1])
    unjudged = [one for one in found.candidates if one.architecture == "rnn-tanh"]
    assert unjudged
    assert all("no run of it is known" in one.missed for one in unjudged)
    assert not any(one.front for one in unjudged)
    assert any(one.front for one in found.candidates)


def test_a_statistic_with_too_few_runs_is_a_limit_missed() -> None:
    short = tuple(replace(one, latency_ms={"p50": 1.0}) for one in grid())
    judge = Judge([Evidence(qualities=QUALITIES)], [TASK])
    found = weigh(Question(steps=10, latency={"p99": 9.0}), Costs(Group(short, MACHINE)), judge, {})
    assert found.taken is None
    assert all("p99 is not known" in one.missed[0] for one in found.candidates)


def test_each_architecture_has_one_row_and_the_best_comes_first() -> None:
    found = best_of_each(choice(latency={"p99": 1.5}), "p99")
    assert [one.architecture for one in found] == ["gru", "rnn-tanh"]
    assert all(not one.missed for one in found)
