"""LLaVA's conversation JSON: `[{"id", "image", "conversations": [{"from": "human", "value": ...}, {"from": "gpt", ...}]}]`.

A conversation becomes one sample for each answer (`turns: each`): its question is the human's turn before it, after the earlier
turns, and the loss is on that answer alone. `turns: first` keeps the first answer only; with `prompt.targets: every` a conversation
is one sample whose every answer is learned. In the decoder's chat template (`prompt.chat`) turns are messages, elsewhere plain
text, a line each. `<image>` before or after a question is removed: the image goes into the memory, not into the text.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from dehvf_kit.data.conversations import conversation_sample
from dehvf_kit.data.jsonl import FileSplitsConfig, holds_conversations, is_json_lines, json_lines
from dehvf_kit.data.rows import RowFaultError, RowReader, TableColumns, named
from dehvf_kit.data.samples import Issue, Message, Names, Reading, Sample, note, require_file
from dehvf_kit.errors import DataError, shown
from dehvf_kit.utils.atomic import is_file
from dehvf_kit.utils.plain_data import read_json

SPEAKERS = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


class LlavaDataConfig(FileSplitsConfig):
    """Conversations about images in LLaVA's JSON (or JSON lines), a sample for each answer."""

    type: Literal["llava"] = "llava"
    rows_have_choices = True
    train: Path | None = Field(None, description="file of the training conversations")
    test: Path | None = Field(None, description="file of the test conversations")
    images: Path | None = Field(None, description="folder of the images; the file's own where left out")
    turns: Literal["each", "first"] = Field("each", description="a sample for each answer, or for the first alone")

    @classmethod
    def recognise(cls, place: Path) -> dict[str, Any] | None:
        known = place.suffix in (".json", ".jsonl") and is_file(place) and holds_conversations(place, b'"conversations"')
        return {"train": str(place)} if known else None

    def read_file(self, part: str) -> Reading:
        file = self.train if part == "train" else self.test
        if file is None:
            raise DataError(f"data.{part} is not set; name a .json or .jsonl file of conversations")
        require_file(file, f"data.{part}")
        issues: list[Issue] = []
        rows = [row for _, row in json_lines(file, issues)] if is_json_lines(file) else read_json(file)
        if not isinstance(rows, list):
            raise DataError(f"{file}: wants a list of conversations")
        reader, names = RowReader(TableColumns(messages="conversations"), issues, chooser=self.chooser), Names()
        samples: list[Sample] = []
        for number, row in enumerate(rows):
            key = named(row.get("id"), number) if isinstance(row, Mapping) else None
            name = names.of(str(number) if key is None else key)
            fault = _fault(row)
            if fault:
                issues.append(Issue("not a conversation", name, fault))
                continue
            try:
                reader.remember(row)
                found = list(self._samples(reader, name, row, self.images or file.parent))
                if reader.chooser is not None:
                    only = partial(_only, found, name)
                    found = [reader.chooser.sample(only, row, reader.columns, name, "")]
                samples += found
            except RowFaultError as error:
                note(issues, Issue(error.kind, name), error)
        issues += reader.unread()
        return Reading(samples, issues, len(rows), numbered={sample.id for sample in samples})

    def group_of(self, sample: Sample) -> str:
        return sample.id.rpartition("/")[0]

    def _samples(self, reader: RowReader, key: str, row: Mapping[str, Any], images: Path) -> Iterator[Sample]:
        given = reader.images(row, key, images)
        turns = [Message(SPEAKERS[turn["from"]], turn["value"].strip()) for turn in row["conversations"]]
        messages = reader.texts(turns, key, len(given))
        answers = [place for place, one in enumerate(messages) if one.role == "assistant"]
        for number, place in enumerate(answers):
            if number == 0 if self.turns == "first" else self.prompt.targets == "last" or place == answers[-1]:
                yield conversation_sample(f"{key}/{number}", messages[:place], messages[place].content, given)


def _only(samples: Sequence[Sample], place: str, _: Any) -> Sample:
    """The sample that a row's choices belong to. Raises: RowFaultError where there are several."""
    if len(samples) > 1:
        raise RowFaultError(
            f"the choices of a row belong to one answer, the conversation has {len(samples)}; set data.turns=first, or give each "
            "answer a row",
            place,
            "choices for several answers",
        )
    return samples[0]


def _fault(row: Any) -> str:
    """Why a row is no conversation; an empty text where it is one."""
    turns = row.get("conversations") if isinstance(row, Mapping) else None
    leading = isinstance(turns, list) and bool(turns) and isinstance(turns[0], Mapping) and turns[0].get("from") == "system"
    if not isinstance(turns, list) or len(turns) < 2 or (len(turns) - leading) % 2:
        return "wants `conversations`, turns of human and gpt in pairs"
    if named(row.get("id"), "") is None:
        return f"'id' must be a text or a number, given {shown(row['id'])}"
    for number, turn in enumerate(turns):
        wanted = "system" if leading and not number else "human" if (number - leading) % 2 == 0 else "gpt"
        speaker = turn.get("from") if isinstance(turn, Mapping) else turn
        if not isinstance(turn, Mapping) or not isinstance(speaker, str) or SPEAKERS.get(speaker) != SPEAKERS[wanted]:
            return f"turn {number} is not from {wanted}: {shown(speaker)}"
        if not isinstance(turn.get("value"), str) or not turn["value"].strip():
            return f"turn {number} is empty"
    return ""
