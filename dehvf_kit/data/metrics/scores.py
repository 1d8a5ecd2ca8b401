"""Scores as `eval` and `score` print and keep them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

OWN = frozenset(["all", "acc", "acc_norm"])
"""Names of figures that are not those of a kind."""


def name_of(kind: str) -> str:
    """What the figure of a kind is called."""
    return f"kind {kind}" if kind in OWN else kind


@dataclass(frozen=True)
class Score:
    """One figure with its 95% interval, over `count` answers.

    percent: a share of one, printed in per cent; others are printed times a hundred, as the field does. digits: decimals.
    """

    name: str
    value: float
    low: float
    high: float
    count: int
    percent: bool = True
    digits: int = 1

    def row(self) -> dict[str, Any]:
        """As plain data."""
        return {"value": self.value, "low": self.low, "high": self.high, "count": self.count}


@dataclass(frozen=True)
class Scores:
    """Every figure of a data set's benchmark.

    main: the name of the figure that stands for all. facts: the same as plain data, for `--json`. results: the predictions
    in the layout that the benchmark's own scripts read. notes: what a reader of the figures must know.
    """

    scores: Sequence[Score]
    main: str
    facts: Mapping[str, Any]
    results: Any = None
    notes: Sequence[str] = field(default_factory=tuple)

    @property
    def headline(self) -> Score:
        """The figure named by `main`."""
        return next(score for score in self.scores if score.name == self.main)
