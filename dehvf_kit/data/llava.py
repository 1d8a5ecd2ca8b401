"""LLaVA's conversation JSON: `[{"id", "image", "conversations": [{"from": "human", "value": ...}, {"from": "gpt", ...}]}]`.

A conversation becomes one sample for each answer (`turns: each`): its question is the human's turn before it, the earlier
turns stand before that as plain text, a line each, and the loss is on that answer alone. `turns: first` keeps the first
answer only. `<image>` is taken out of the text: the picture goes into the memory, not among the words.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from dehvf_kit.data.issues import PREPARE, Issue, refuse
from dehvf_kit.data.jsonl import holds_conversations, json_lines
from dehvf_kit.data.rows import named
from dehvf_kit.data.samples import DataConfig, Reading, Sample, Split
from dehvf_kit.errors import DataError, shown
from dehvf_kit.utils.places import is_file
from dehvf_kit.utils.strict_json import read_json

SPEAKERS = {"human": "human", "user": "human", "gpt": "gpt", "assistant": "gpt"}
MARK = "<image>"


class LlavaDataConfig(DataConfig):
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

    def parts(self) -> Sequence[str]:
        return [part for part in ("train", "test") if getattr(self, part) is not None]

    def samples(self, split: Split) -> list[Sample]:
        reading = self.read(split)
        refuse(f"data.{split}", reading.issues, PREPARE)
        return list(reading.samples)

    def read(self, part: str) -> Reading:
        file = self.train if part == "train" else self.test
        if file is None:
            raise DataError(f"data.{part} is not set; name a .json or .jsonl file of conversations")
        samples, issues, seen = [], [], set()
        lines = file.suffix == ".jsonl"
        rows = [row for _, row in json_lines(file, issues)] if lines else read_json(file)
        if not isinstance(rows, list):
            raise DataError(f"{file}: wants a list of conversations")
        for number, row in enumerate(rows):
            key = named(row.get("id"), number) if isinstance(row, Mapping) else None
            key = str(number) if key is None else key
            if key in seen:
                issues.append(Issue("id twice", key))
                continue
            seen.add(key)
            fault = _fault(row)
            if fault:
                issues.append(Issue("not a conversation", key, fault))
                continue
            samples += self._samples(key, row, self.images or file.parent)
        return Reading(samples, issues, len(rows))

    def _samples(self, key: str, row: Mapping[str, Any], images: Path) -> Iterator[Sample]:
        image = images / row["image"] if row.get("image") else None
        before: list[str] = []
        turns = [turn["value"].replace(MARK, "").strip() for turn in row["conversations"]]
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
    if row.get("image") is not None and not isinstance(row["image"], str):
        return f"'image' must be a path, given {shown(row['image'])}"
    for number, turn in enumerate(turns):
        wanted = "gpt" if number % 2 else "human"
        speaker = turn.get("from") if isinstance(turn, Mapping) else turn
        if not isinstance(turn, Mapping) or not isinstance(speaker, str) or SPEAKERS.get(speaker) != wanted:
            return f"turn {number} is not from {wanted}: {shown(speaker)}"
        if not isinstance(turn.get("value"), str) or not turn["value"].replace(MARK, "").strip():
            return f"turn {number} is empty"
    return ""
