"""Questions about images from JSON lines: `{"image": "a.png", "question": "...", "answer": "..."}`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from dehvf_kit.data.rows import FileSplitsConfig, Row, RowReader, TableColumns, read_rows, reading_of
from dehvf_kit.data.samples import Issue, Reading, Sample, note, require_file
from dehvf_kit.errors import DataError
from dehvf_kit.utils.atomic import is_file
from dehvf_kit.utils.plain_data import NotJson, parse_json

FIELDS = ("id", "image", "question", "answer", "kind")
HEAD_BYTES = 2**16
MAX_LINE = 2**24
"""Bytes a line may have."""


class JsonlDataConfig(FileSplitsConfig):
    """One JSON object a line with `question`, `answer` and, if there is one, `image` (a path beside the file), `id`, `kind`."""

    type: Literal["jsonl"] = "jsonl"
    train: Path | None = Field(None, description="file of the training samples")
    test: Path | None = Field(None, description="file of the test samples")

    @classmethod
    def recognise(cls, place: Path) -> dict[str, Any] | None:
        known = place.suffix == ".jsonl" and is_file(place) and not holds_conversations(place)
        return {"train": str(place)} if known else None

    def read_file(self, part: str) -> Reading:
        file = self.train if part == "train" else self.test
        if file is None:
            raise DataError(f"data.{part} is not set; name a .jsonl file")
        require_file(file, f"data.{part}")
        issues: list[Issue] = []
        return reading_of(_rows(file, issues), _reader(issues), issues)


def read_jsonl(file: Path) -> Iterator[Sample]:
    """Samples of a JSON-lines file. Raises: DataError naming the line, for what is no object, lacks a field or repeats an id."""
    return read_rows(_rows(file), _reader(), None)


def _reader(issues: list[Issue] | None = None) -> RowReader:
    return RowReader(TableColumns(), issues, f"fields: {', '.join(FIELDS)}")


def _rows(file: Path, issues: list[Issue] | None = None) -> Iterator[Row]:
    return ((number, f"{file}:{number}", row, file.parent) for number, row in json_lines(file, issues))


def holds_conversations(file: Path, *keys: bytes) -> bool:
    """Whether a JSON file's beginning looks like conversations rather than like questions and answers. keys: of which kind."""
    with file.open("rb") as opened:
        head = opened.read(HEAD_BYTES)
    return any(key in head for key in keys or (b'"conversations"', b'"messages"'))


def is_json_lines(file: Path) -> bool:
    """Whether a file is JSON lines, by its name or by an object on its first line and more below: `datasets` writes .json so."""
    if file.suffix == ".jsonl":
        return True
    with file.open("rb") as lines:
        first, second = lines.readline(MAX_LINE), lines.readline(1)
    return bool(second) and first.rstrip()[-1:] == b"}" and first.lstrip(b"\xef\xbb\xbf \t")[:1] == b"{"


def json_lines(file: Path, issues: list[Issue] | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) of every line that is not blank. Raises: DataError naming a line that is no JSON object.

    issues: where given, such lines are added to it and left out.
    """
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
        if where.endswith(":1") and data.lstrip()[:1] == b"[":
            raise DataError(f"{where}: a list, where JSON lines have one object a line; call the file .json") from error
        raise DataError(f"{where}: {error}") from error
    if not isinstance(row, dict):
        raise DataError(f"{where}: a line must be a JSON object, this one is {type(row).__name__}")
    return row
