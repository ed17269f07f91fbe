from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploykit.advise.cost import Cell, Costs, Group, groups
from tests.advise.samples import EVIDENCE, MACHINE, cost, grid

GRU: Cell = ("gru", ("ort", "float32", ""))


def costs(**options: object) -> Costs:
    return Costs(Group(grid(), MACHINE, here=True), **options)  # type: ignore[arg-type]


def p50(found: Costs, hidden: int, steps: int, cell: Cell = GRU) -> float:
    known = found.estimate(cell, hidden, steps)
    assert known is not None
    return known.latency_ms["p50"]


def test_what_was_measured_is_told_as_it_was() -> None:
    known = costs().estimate(GRU, 64, 50)
    assert known is not None
    assert known.measured
    assert not known.thin
    assert known.latency_ms == cost("gru", 64, 50).latency_ms
    assert known.size_bytes == 64 * 64 * 4


@given(st.integers(10, 50))
def test_latency_is_linear_in_the_steps(steps: int) -> None:
    assert p50(costs(), 64, steps) == pytest.approx(64 * steps / 1000)


@given(st.integers(16, 64))
def test_between_two_hidden_sizes_it_is_a_power(hidden: int) -> None:
    assert p50(costs(), hidden, 50) == pytest.approx(hidden * 50 / 1000)


def test_steps_beyond_the_measured_are_thin() -> None:
    known = costs().estimate(GRU, 64, 200)
    assert known is not None
    assert known.latency_ms["p50"] == pytest.approx(64 * 200 / 1000)
    assert not known.measured
    assert any("beyond" in said for said in known.thin)


def test_hidden_sizes_beyond_the_measured_are_not_known() -> None:
    assert costs().estimate(GRU, 128, 50) is None
    assert costs().estimate(("lstm", GRU[1]), 64, 50) is None


def test_what_was_timed_here_scales_what_was_not() -> None:
    found = costs(own=[cost("gru", 64, 50, slower=3.0)])
    assert p50(found, 64, 50) == pytest.approx(3 * 64 * 50 / 1000)  # itself
    assert p50(found, 16, 50) == pytest.approx(3 * 16 * 50 / 1000)  # by its factor
    known = found.estimate(GRU, 16, 50)
    assert known is not None
    assert not known.measured
    # Nothing of int8 was timed here, so nothing of it is told beside what was.
    assert found.estimate(("gru", ("ort", "int8", "portable")), 64, 50) is None


def test_more_parameters_make_a_larger_file() -> None:
    found = costs(more=lambda architecture, hidden: 100)
    sizes = {
        precision: found.estimate(("gru", ("ort", precision, kernels)), 64, 50)
        for precision, kernels in (("float32", ""), ("int8", "portable"))
    }
    assert {name: one.size_bytes for name, one in sizes.items() if one} == {
        "float32": 64 * 64 * 4 + 400,
        "int8": 64 * 64 + 100,
    }


def test_costs_are_apart_by_machine_and_kind() -> None:
    found = groups([EVIDENCE], {**MACHINE, "cores": 64})
    assert [group.here for group in found] == [False]
    assert groups([EVIDENCE], MACHINE)[0].here
    assert groups([EVIDENCE], MACHINE)[0].kind == (1, 1, 16, 1)
