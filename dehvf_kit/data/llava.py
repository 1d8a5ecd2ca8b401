"""LLaVA's conversation JSON: `[{"id", "image", "conversations": [{"from": "human", "value": ...}, {"from": "gpt", ...}]}]`.

A conversation becomes one sample for each answer (`turns: each`): its question is the human's turn before it, the earlier
turns stand before that as plain text, a line each, and the loss is on that answer alone. `turns: first` keeps the first
answer only. `<image>` before or after the first question is removed: the image goes into the memory, not into the text.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from dehvf_kit.data.issues import Issue, note, require_file
from dehvf_kit.data.jsonl import holds_conversations, json_lines
from dehvf_kit.data.rows import PLACEHOLDER, FileSplitsConfig, RowFaultError, RowReader, TableColumns, named
from dehvf_kit.data.samples import Reading, Sample
from dehvf_kit.errors import DataError, shown
from dehvf_kit.utils.atomic import is_file
from dehvf_kit.utils.strict_json import read_json

SPEAKERS = {"human": "human", "user": "human", "gpt": "gpt", "assistant": "gpt"}


class LlavaDataConfig(FileSplitsConfig):
    """Conversations about pictures in LLaVA's JSON (or JSON lines), a sample for each answer."""

    type: Literal["llava"] = "llava"
    train: Path | None = Field(None, description="file of the training conversations")
    test: Path | None = Field(None, description="file of the test conversations")
    images: Path | None = Field(None, description="folder of the pictures; the file's own where left out")
    turns: Literal["each", "first"] = Field("each", description="a sample for each answer, or for the first alone")

    @classmethod
    def recognise(cls, place: Path) -> dict[str, Any] | None:
        known = place.suffix in (".json", ".jsonl") and is_file(place) and holds_conversations(place)
        return {"train": str(place)} if known else None

    def read_file(self, part: str) -> Reading:
        file = self.train if part == "train" else self.test
        if file is None:
            raise DataError(f"data.{part} is not set; name a .json or .jsonl file of conversations")
        require_file(file, f"data.{part}")
        issues: list[Issue] = []
        rows = [row for _, row in json_lines(file, issues)] if file.suffix == ".jsonl" else read_json(file)
        if not isinstance(rows, list):
            raise DataError(f"{file}: wants a list of conversations")
        reader, times = RowReader(TableColumns(), issues), Counter[str]()
        samples: list[Sample] = []
        for number, row in enumerate(rows):
            key = named(row.get("id"), number) if isinstance(row, Mapping) else None
            key = str(number) if key is None else key
            times[key] += 1
            name = key if times[key] == 1 else f"{key}#{times[key]}"
            fault = _fault(row)
            if fault:
                issues.append(Issue("not a conversation", name, fault))
                continue
            try:
                samples += self._samples(reader, name, row, self.images or file.parent)
            except RowFaultError as error:
                note(issues, Issue(error.kind, name), error)
        return Reading(samples, issues, len(rows), numbered={sample.id for sample in samples})

    def group_of(self, sample: Sample) -> str:
        return super().group_of(sample) if sample.image is not None else sample.id.rpartition("/")[0]

    def _samples(self, reader: RowReader, key: str, row: Mapping[str, Any], images: Path) -> Iterator[Sample]:
        image = reader.image(row, key, images)
        turns = [str(turn["value"]) for turn in row["conversations"]]
        turns[0] = reader.question(turns[0], key, image is not None)
        if any(PLACEHOLDER in turn for turn in turns[1:]):
            reader.note(f"{PLACEHOLDER} inside a text, kept as text", key)
        before: list[str] = []
        turns = [turn.strip() for turn in turns]
        for number in range(0, len(turns) if self.turns == "each" else 2, 2):
            question, answer = turns[number : number + 2]
            yield Sample(f"{key}/{number // 2}", "\n".join([*before, question]), answer, image)
            before += [question, answer]


def _fault(row: Any) -> str:
    """Why a row is no conversation; an empty text where it is one."""
    turns = row.get("conversations") if isinstance(row, Mapping) else None
    if not isinstance(turns, list) or len(turns) < 2 or len(turns) % 2:
        return "wants `conversations`, turns of human and gpt in pairs"
    if named(row.get("id"), "") is None:
        return f"'id' must be a text or a number, given {shown(row['id'])}"
    for number, turn in enumerate(turns):
        wanted = "gpt" if number % 2 else "human"
        speaker = turn.get("from") if isinstance(turn, Mapping) else turn
        if not isinstance(turn, Mapping) or not isinstance(speaker, str) or SPEAKERS.get(speaker) != wanted:
            return f"turn {number} is not from {wanted}: {shown(speaker)}"
        if not isinstance(turn.get("value"), str) or not turn["value"].strip():
            return f"turn {number} is empty"
    return ""
