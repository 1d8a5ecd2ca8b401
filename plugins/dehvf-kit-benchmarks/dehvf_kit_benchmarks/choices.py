"""Multiple-choice questions from a table: `{"question": "...", "choices": ["a dog", "a cat"], "answer": "a cat"}`, and an image."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from string import ascii_uppercase
from typing import Any, Literal

from dehvf_kit_streams.table import TableDataConfig
from pydantic import Field

from dehvf_kit.data.metrics.scores import Scores
from dehvf_kit.data.rows import RowFaultError, RowReader, TableColumns, named, reading_of
from dehvf_kit.data.samples import Issue, Reading, Sample
from dehvf_kit.errors import shown
from dehvf_kit.utils.plain_data import NotJson, parse_json
from dehvf_kit_benchmarks import likelihood

Told = Literal["text", "index", "letter"]


class ChoiceColumns(TableColumns):
    """Which column holds what."""

    choices: str = Field("choices", description="the choices: a list of texts, or such a list as JSON text")


class ChoicesDataConfig(TableDataConfig):
    """A table of questions with choices; the model says the choice that it finds likeliest, and generates nothing."""

    type: Literal["choices"] = "choices"  # type: ignore[assignment]
    metric: likelihood.Metric = Field(  # type: ignore[assignment]
        "likelihood", description="the likeliest choice: by the sum over its tokens, or by that sum per character"
    )
    columns: ChoiceColumns = Field(default_factory=ChoiceColumns, description="which column holds what")
    answer_is: Told = Field("text", description="what the answer column holds: a choice's text, its number from 0, or its letter")

    @classmethod
    def recognise(cls, place: Path) -> dict[str, Any] | None:
        return None

    def read_file(self, part: str) -> Reading:
        issues: list[Issue] = []
        reader = ChoiceReader(self.columns, issues, "set data.columns")
        reader.told = self.answer_is
        return reading_of(self._rows(part, issues), reader, issues)

    def ask(self, answer: Callable[..., Sequence[Any]], model: Any, samples: Sequence[Any], **settings: Any) -> Sequence[Any]:
        return likelihood.choose(model, samples, self.metric, **settings)

    def score(self, predictions: Sequence[Any]) -> Scores:
        return likelihood.score(self.metric, predictions)


class ChoiceReader(RowReader):
    """Makes samples with choices. told: what the answer column holds."""

    columns: ChoiceColumns
    told: Told = "text"

    def sample(self, row: Mapping[str, Any], place: str, folder: Path, key: Any = None) -> Sample:
        try:
            choices = self._choices(row.get(self.columns.choices), place)
            answer = self._answer(row.get(self.columns.answer), choices, place)
        except RowFaultError:
            self.remember(row)
            raise
        found = super().sample({**row, self.columns.answer: answer}, place, folder, key)
        return likelihood.with_choices(found, choices)

    def _choices(self, cell: Any, place: str) -> tuple[str, ...]:
        """Raises: RowFaultError for fewer than two, an empty one, or one that is there twice."""
        column, given = self.columns.choices, cell
        if isinstance(cell, str):
            try:
                given = parse_json(cell.encode())
            except NotJson:
                given = None
        texts = [named(one, "") for one in given] if isinstance(given, (list, tuple)) else []
        if len(texts) < 2 or not all(text and text.strip() for text in texts):
            advice = f"wants a list of two texts or more, given {shown(cell)}; {self.advice}"
            raise RowFaultError(f"'{column}' {advice}", place, "no choices" if not texts else "empty choice")
        found = tuple(str(text).strip() for text in texts)
        if len(set(found)) < len(found):
            raise RowFaultError(f"'{column}' has a choice twice: {shown(cell)}", place, "choice twice")
        return found

    def _answer(self, cell: Any, choices: Sequence[str], place: str) -> str:
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
            f"'{self.columns.answer}' is none of the {len(choices)} choices, given {shown(cell)}; data.answer_is={self.told} wants "
            f"{'its text' if self.told == 'text' else 'its number from 0' if self.told == 'index' else 'its letter from A'}",
            place,
            "answer is no choice",
        )
