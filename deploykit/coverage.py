"""What quantization did to a graph, node by node: the record that keeps the word int8 honest."""

from __future__ import annotations

from dataclasses import dataclass

RECURRENT = frozenset({"GRU", "LSTM", "RNN"})


@dataclass(frozen=True)
class CoverageRow:
    """One weighted node of the source graph.

    ``became`` is ``int8`` (int8 weights and int8 arithmetic), ``int8-storage`` (int8 weights, float arithmetic) or
    ``float32``; ``form`` names the operators that now do the work; ``macs`` counts multiply-accumulates for one row
    and one time step; ``coupled`` says that a row's answer may depend on its batch neighbours or on later steps;
    ``reason`` says why a node was left, or what a reader should know; ``by_preference`` that the node could be int8,
    and is not because that would be slower, or larger.
    """

    node: str
    kind: str
    became: str
    form: str
    weight_bytes: int
    macs: int
    coupled: bool = False
    reason: str | None = None
    by_preference: bool = False


@dataclass(frozen=True)
class Coverage:
    """All rows of one quantization, in graph order."""

    rows: tuple[CoverageRow, ...]

    @property
    def recurrent_left(self) -> tuple[CoverageRow, ...]:
        """Recurrent layers whose arithmetic stayed in float."""
        return tuple(row for row in self.rows if row.kind in RECURRENT and row.became != "int8")

    def shares(self) -> tuple[tuple[float, float], ...]:
        """Of each row, its share of all weight bytes and of all multiply-accumulates, 0 to 1."""
        size, macs = (sum(getattr(row, what) for row in self.rows) or 1 for what in ("weight_bytes", "macs"))
        return tuple((row.weight_bytes / size, row.macs / macs) for row in self.rows)

    @property
    def weight_share(self) -> float:
        """Share of the weighted nodes' float weight bytes that are stored in int8 now, 0 to 1."""
        total = sum(row.weight_bytes for row in self.rows)
        return sum(row.weight_bytes for row in self.rows if row.became != "float32") / total if total else 0.0

    @property
    def mac_share(self) -> float:
        """Share of multiply-accumulates that run in int8 now, 0 to 1."""
        total = sum(row.macs for row in self.rows)
        return sum(row.macs for row in self.rows if row.became == "int8") / total if total else 0.0
