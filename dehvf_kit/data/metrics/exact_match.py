"""Answers beside their references: tidied, compared, counted."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from dehvf_kit.data.metrics.intervals import share
from dehvf_kit.data.metrics.scores import Score, Scores, name_of


@dataclass(frozen=True)
class Prediction:
    """One question and what was answered. skipped: why it could not be asked; it then counts as wrong.

    cut: tokens that its prompt lost at the beginning, being longer than the model reads. references: all answers, if several.
    """

    id: str
    kind: str
    question: str
    image: str
    answer: str
    prediction: str
    skipped: str = ""
    cut: int = 0
    references: tuple[str, ...] = ()

    @property
    def right(self) -> bool:
        return not self.skipped and tidy(self.prediction) in map(tidy, self.references or [self.answer])

    def row(self) -> dict[str, Any]:
        return {**asdict(self), "right": self.right}


def tidy(text: str) -> str:
    """An answer as it is compared: first line, lower case, no closing punctuation."""
    lines = text.strip().splitlines()
    return lines[0].strip().rstrip(".!").strip().lower() if lines else ""


def accuracy(predictions: Sequence[Prediction]) -> dict[str, Any]:
    """Share of right answers in all and by kind, each with its count and 95% Wilson interval."""
    groups: dict[str, list[bool]] = defaultdict(list)
    for prediction in predictions:
        if prediction.kind:
            groups[name_of(prediction.kind)].append(prediction.right)
    everything = [prediction.right for prediction in predictions]
    return {"all": share(everything), "by_kind": {kind: share(rights) for kind, rights in sorted(groups.items())}}


def exact_match(predictions: Sequence[Prediction]) -> Scores:
    """`accuracy` as Scores; `results` maps each id to the answer given."""
    facts = accuracy(predictions)
    rows = [("all", facts["all"]), *facts["by_kind"].items()]
    scores = [Score(name, row["accuracy"], row["low"], row["high"], row["questions"]) for name, row in rows]
    return Scores(scores, "all", facts, {one.id: one.prediction for one in predictions})
