"""Answers beside their references: tidied, compared, counted."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from dehvf_kit.data.metrics.intervals import share
from dehvf_kit.data.metrics.scores import Score, Scores
from dehvf_kit.data.sample_filter import Skipped
from dehvf_kit.data.samples import Sample


@dataclass(frozen=True)
class Prediction:
    """One question and what was answered. skipped: why it could not be asked; it then counts as wrong."""

    id: str
    kind: str
    question: str
    image: str
    answer: str
    prediction: str
    skipped: str = ""

    @property
    def right(self) -> bool:
        return not self.skipped and tidy(self.prediction) == tidy(self.answer)

    def row(self) -> dict[str, Any]:
        return {**asdict(self), "right": self.right}


def with_skipped(
    predictions: Sequence[Prediction], samples: Sequence[Sample], skipped: Sequence[Skipped]
) -> list[Prediction]:
    """Predictions of all `samples` in their order, those that were not asked without an answer; the others come in order."""
    reasons = {one.sample: one.reason for one in skipped if one.sample is not None}
    asked = iter(predictions)
    return [_not_asked(sample, reasons[sample]) if sample in reasons else next(asked) for sample in samples]


def _not_asked(sample: Sample, reason: str) -> Prediction:
    return Prediction(sample.id, sample.kind, sample.question, str(sample.image), sample.answer, "", reason)


def note_skipped(scores: Scores, skipped: Sequence[Skipped]) -> Scores:
    """Scores that say what was skipped: a question with its reference counts as wrong, a row without one is missing."""
    if not skipped:
        return scores
    wrong = sum(one.sample is not None for one in skipped)
    notes = [f"questions that could not be asked, counted as wrong: {wrong:,}"] if wrong else []
    if wrong < len(skipped):
        notes.append(f"rows that are no question, missing from the scores: {len(skipped) - wrong:,}")
    facts = {**scores.facts, "skipped": [one.row() for one in skipped]}
    return replace(scores, facts=facts, notes=[*scores.notes, *notes])


def tidy(text: str) -> str:
    """An answer as it is compared: first line, lower case, no closing punctuation."""
    lines = text.strip().splitlines()
    return lines[0].strip().rstrip(".!").strip().lower() if lines else ""


def accuracy(predictions: Sequence[Prediction]) -> dict[str, Any]:
    """Share of right answers in all and by kind, each with its count and 95% Wilson interval."""
    groups: dict[str, list[bool]] = defaultdict(list)
    for prediction in predictions:
        if prediction.kind:
            groups[prediction.kind].append(prediction.right)
    everything = [prediction.right for prediction in predictions]
    return {"all": share(everything), "by_kind": {kind: share(rights) for kind, rights in sorted(groups.items())}}


def exact_match(predictions: Sequence[Prediction]) -> Scores:
    """`accuracy` as Scores; `results` maps each id to the answer given."""
    facts = accuracy(predictions)
    rows = [("all", facts["all"]), *facts["by_kind"].items()]
    scores = [Score(name, row["accuracy"], row["low"], row["high"], row["questions"]) for name, row in rows]
    return Scores(scores, "all", facts, {one.id: one.prediction for one in predictions})
