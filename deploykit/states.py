"""Which inputs of a model are its recurrent state, by the names that ``deploykit.streaming`` gives them."""

from __future__ import annotations

import re
from collections.abc import Iterable

# No more names than these: an audio_in and an audio_out of one shape are no state.
_STATE = re.compile(r"([hc])_in(_\d+)?")


def carried(inputs: Iterable[str], outputs: Iterable[str]) -> dict[str, str]:
    """Each input that is a state, and the output that is the same state after the inference; none where one is alone.

    Half a pair is no stream: ``h_in`` without ``h_out``, or a state that comes out and cannot be put in.
    """
    known = set(outputs)
    pairs = {name: f"{found[1]}_out{found[2] or ''}" for name in inputs if (found := _STATE.fullmatch(name))}
    return pairs if all(result in known for result in pairs.values()) else {}
