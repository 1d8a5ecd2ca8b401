"""Questions about pictures from JSON lines: `{"image": "a.png", "question": "...", "answer": "..."}`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from dehvf_kit.data.issues import Issue, note
from dehvf_kit.data.samples import DataConfig, Reading, Sample, Split
from dehvf_kit.errors import DataError, shown
from dehvf_kit.utils.places import is_file
from dehvf_kit.utils.strict_json import NotJson, parse_json

FIELDS = ("id", "image", "question", "answer", "kind")
MAX_LINE = 2**24
"""Bytes a line may have."""


class JsonlDataConfig(DataConfig):
    """One JSON object a line with `question`, `answer` and, if there is one, `image` (a path beside the file), `id`, `kind`."""

    type: Literal["jsonl"] = "jsonl"
    train: Path | None = Field(None, description="file of the training samples")
    test: Path | None = Field(None, description="file of the test samples")

    @classmethod
    def recognise(cls, place: Path) -> dict[str, Any] | None:
        return {"train": str(place)} if place.suffix == ".jsonl" and is_file(place) else None

    def parts(self) -> Sequence[str]:
        return [part for part in ("train", "test") if getattr(self, part) is not None]

    def samples(self, split: Split) -> list[Sample]:
        return list(read_jsonl(self._file(split)))

    def read(self, part: str) -> Reading:
        issues: list[Issue] = []
        return Reading(list(read_jsonl(self._file(part), issues)), issues)

    def _file(self, part: str) -> Path:
        file = self.train if part == "train" else self.test
        if file is None:
            raise DataError(f"data.{part} is not set; name a .jsonl file")
        if not os.path.isfile(file):
            raise DataError(f"data.{part}: there is no file '{file}'")
        return file


def read_jsonl(file: Path, issues: list[Issue] | None = None) -> Iterator[Sample]:
    """Samples of a JSON-lines file. Raises: DataError naming the line, for what is no object, lacks a field or repeats an id.

    issues: where given, faulty lines are added to it and left out.
    """
    seen: set[str] = set()
    for number, row in json_lines(file, issues):
        try:
            sample = _sample(row, number, file)
            if sample.id in seen:
                raise DataError(f"{file}:{number}: id '{sample.id}' appears twice")
        except DataError as error:
            note(issues, Issue("faulty line", f"{file}:{number}"), error)
            continue
        seen.add(sample.id)
        yield sample


def json_lines(file: Path, issues: list[Issue] | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) of every line that is not blank. Raises: DataError naming a line that is no JSON object.

    issues: where given, such lines are added to it and left out.
    """
    if not os.path.isfile(file):
        raise DataError(f"there is no file '{file}'")
    try:
        with file.open("rb") as lines:
            for number, data in enumerate(iter(lambda: lines.readline(MAX_LINE + 1), b""), start=1):
                if len(data) > MAX_LINE:
                    raise DataError(f"{file}:{number}: a line of more than {MAX_LINE:,} bytes; is this JSON lines?")
                if not data.strip():
                    continue
                try:
                    yield number, _object(data, f"{file}:{number}")
                except DataError as error:
                    note(issues, Issue("faulty line", f"{file}:{number}"), error)
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror or error}") from error


def _object(data: bytes, where: str) -> dict[str, Any]:
    try:
        row = parse_json(data)
    except NotJson as error:
        raise DataError(f"{where}: {error}") from error
    if not isinstance(row, dict):
        raise DataError(f"{where}: a line must be a JSON object, this one is {type(row).__name__}")
    return row


def _sample(row: dict[str, Any], number: int, file: Path) -> Sample:
    where = f"{file}:{number}"
    for name in ("question", "answer"):
        if not isinstance(row.get(name), str):
            raise DataError(
                f"{where}: '{name}' must be a text, given {shown(row.get(name))}; fields: {', '.join(FIELDS)}"
            )
    image = row.get("image")
    if image is not None and not isinstance(image, str):
        raise DataError(f"{where}: 'image' must be a path, given {shown(image)}")
    key, kind = named(row.get("id"), number), named(row.get("kind"), "")
    for name, found in (("id", key), ("kind", kind)):
        if found is None:
            raise DataError(f"{where}: '{name}' must be a text or a number, given {shown(row[name])}")
    return Sample(str(key), row["question"], row["answer"], file.parent / image if image else None, str(kind))


def named(value: Any, default: Any) -> str | None:
    """A text or number that names something, as a text; `default` for null, None for what is neither."""
    value = default if value is None else value
    return str(value) if isinstance(value, (str, int, float)) and not isinstance(value, bool) else None
