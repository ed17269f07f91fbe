"""Which inputs are carried from one inference to the next."""

from __future__ import annotations

import pytest

from deploykit.states import carried


@pytest.mark.parametrize(
    ("inputs", "outputs", "pairs"),
    [
        (["x", "h_in"], ["y", "h_out"], {"h_in": "h_out"}),
        (
            ["x", "h_in_0", "c_in_0", "h_in_1", "c_in_1"],
            ["y", "h_out_0", "c_out_0", "h_out_1", "c_out_1"],
            {"h_in_0": "h_out_0", "c_in_0": "c_out_0", "h_in_1": "h_out_1", "c_in_1": "c_out_1"},
        ),
        (["x"], ["y"], {}),
        (["x", "h_in"], ["y"], {}),
        (["x", "h_in", "c_in"], ["y", "h_out"], {}),
        (["audio_in"], ["audio_out"], {}),
        (["h_in_a"], ["h_out_a"], {}),
    ],
)
def test_states_pair_up_by_name(inputs: list[str], outputs: list[str], pairs: dict[str, str]) -> None:
    assert carried(inputs, outputs) == pairs
