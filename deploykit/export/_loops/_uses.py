"""Who reads what the steps of a loop compute."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from deploykit.export._loops._find import Carried, Match
from deploykit.export._loops._graph import Editor


@dataclass
class Uses:
    """Who reads a value of the steps from outside: stacks of all of them, or (step, node, input) one by one."""

    stacks: list[tuple[ir.Node, int, bool]] = field(default_factory=list)
    single: list[tuple[int, ir.Node, int]] = field(default_factory=list)
    declared: set[int] = field(default_factory=set)

    @property
    def steps(self) -> set[int]:
        return {step for step, _, _ in self.single} | self.declared


def dependent(match: Match) -> list[ir.Node]:
    """The nodes of a step that need something of the step before."""
    found: list[ir.Node] = []
    values: set[ir.Value | None] = set()
    for node, kinds in match.inputs.items():
        if any(isinstance(kind, Carried) for kind in kinds) or not values.isdisjoint(node.inputs):
            found.append(node)
            values.update(node.outputs)
    return found


def outside_uses(editor: Editor, match: Match, value: ir.Value) -> Uses:
    found = Uses()
    chain = match.chains[value]
    outputs = set(editor.graph.outputs)
    stacked: set[tuple[ir.Node, int]] = set()
    for node in dict.fromkeys(use.node for use in chain[0].uses()):
        for reverse in (False, True):
            start = _run(node, chain[::-1] if reverse else chain)
            if start is not None and node not in match.matched:
                found.stacks.append((node, start, reverse))
                stacked.update((node, start + offset) for offset in range(len(chain)))
                break
    for step, counterpart in enumerate(chain):
        if counterpart in outputs:
            found.declared.add(step)
        for use in counterpart.uses():
            if use.node not in match.matched and (use.node, use.idx) not in stacked:
                found.single.append((step, use.node, use.idx))
    return found


def _run(node: ir.Node, chain: Sequence[ir.Value]) -> int | None:
    """Where among the inputs of a Concat the chain begins."""
    inputs = list(node.inputs)
    if node.op_type != "Concat" or chain[0] not in inputs:
        return None
    start = inputs.index(chain[0])
    return start if inputs[start : start + len(chain)] == list(chain) else None
