"""Multiple-choice questions of rows: `{"question": "...", "choices": ["a dog", "a cat"], "answer": "a cat"}`, and an image."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from string import ascii_uppercase
from typing import Any, Literal

from dehvf_kit_streams.table import TableDataConfig
from pydantic import Field

from dehvf_kit.data.metrics.scores import Scores
from dehvf_kit.data.rows import RowFaultError, TableColumns, is_missing, named
from dehvf_kit.data.samples import DataConfig, Sample
from dehvf_kit.errors import shown
from dehvf_kit.utils.plain_data import NotJson, parse_json
from dehvf_kit_benchmarks import likelihood

WANTED = {"text": "its text", "index": "its number from 0", "letter": "its letter from A"}


class ChoicesDataConfig(TableDataConfig):
    """A table of questions with choices; the model says the choice that it finds likeliest, and generates nothing."""

    type: Literal["choices"] = "choices"  # type: ignore[assignment]
    metric: likelihood.Metric = Field(  # type: ignore[assignment]
        "likelihood", description="the likeliest choice: by the sum over its tokens, or by that sum per character"
    )

    @classmethod
    def recognise(cls, place: Path) -> dict[str, Any] | None:
        return None

    @property
    def chooser(self) -> Chooser:
        return self.chooser_of(self)

    @staticmethod
    def chooser_of(config: DataConfig) -> Chooser:
        """What reads the choices of a data set's rows and takes the likeliest."""
        return Chooser(config.metric, config.answer_is)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Chooser:
    """Reads the choices of rows and takes the likeliest. told: what the answer of a row holds."""

    metric: likelihood.Metric
    told: Literal["text", "index", "letter"] = "text"

    def choose(self, model: Any, samples: Sequence[Any], **settings: Any) -> Sequence[Any]:
        """Predictions, as `evaluation.answers.answer` makes them, without generating."""
        return likelihood.choose(model, samples, self.metric, **settings)

    def score(self, predictions: Sequence[Any]) -> Scores:
        """Shares of right choices."""
        return likelihood.score(self.metric, predictions)

    def sample(
        self, read: Callable[[Mapping[str, Any]], Sample], row: Mapping[str, Any], columns: TableColumns, place: str, advice: str
    ) -> likelihood.ChoiceSample:
        """The sample that `read` makes of a row, and its choices, of which its answer is one.

        Raises: RowFaultError for choices that are none, and an answer that is none of them.
        """
        choices = self._choices(row.get(columns.choices), columns.choices, place, advice)
        if is_missing(row.get(columns.question)) and not is_missing(row.get(columns.messages)):
            found = read(row)
            return self.among(found, choices, columns.messages, place)
        answer = self._answer(row.get(columns.answer), choices, columns.answer, place)
        return likelihood.with_choices(read({**row, columns.answer: answer}), choices)

    def among(self, sample: Sample, choices: tuple[str, ...], column: str, place: str) -> likelihood.ChoiceSample:
        """A sample whose answer is one of some choices. Raises: RowFaultError where it is none."""
        return likelihood.with_choices(replace(sample, answer=self._answer(sample.answer, choices, column, place)), choices)

    def _choices(self, cell: Any, column: str, place: str, advice: str) -> tuple[str, ...]:
        """Raises: RowFaultError for fewer than two, an empty one, or one that is there twice."""
        given = cell
        if isinstance(cell, str):
            try:
                given = parse_json(cell.encode())
            except NotJson:
                given = None
        texts = [named(one, "") for one in given] if isinstance(given, (list, tuple)) else []
        if len(texts) < 2 or not all(text and text.strip() for text in texts):
            wanted = f"wants a list of two texts or more, given {shown(cell)}; {advice or 'write it beside the conversation'}"
            raise RowFaultError(f"'{column}' {wanted}", place, "no choices" if not texts else "empty choice")
        found = tuple(str(text).strip() for text in texts)
        if len(set(found)) < len(found):
            raise RowFaultError(f"'{column}' has a choice twice: {shown(cell)}", place, "choice twice")
        return found

    def _answer(self, cell: Any, choices: Sequence[str], column: str, place: str) -> str:
        """The text of the right choice. Raises: RowFaultError for an answer that is none of them."""
        text = (named(cell, "") or "").strip()
        if self.told == "text" and text in choices:
            return text
        number = ascii_uppercase.find(text) if len(text) == 1 else -1
        if self.told == "index":
            number = int(text) if text.isdecimal() else -1
        if self.told != "text" and 0 <= number < len(choices):
            return choices[number]
        raise RowFaultError(
            f"'{column}' is none of the {len(choices)} choices, given {shown(cell)}; data.answer_is={self.told} wants "
            f"{WANTED[self.told]}",
            place,
            "answer is no choice",
        )
