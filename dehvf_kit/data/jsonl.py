"""Data sets whose splits are files, and the kit's own: questions about images from JSON lines.

{"image": "a.png", "question": "...", "answer": "..."}
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from dehvf_kit.data.held_out import held_out_groups, image_groups
from dehvf_kit.data.rows import RowReader, TableColumns, reading_of
from dehvf_kit.data.samples import PREPARE, DataConfig, Issue, Reading, Sample, Split, log_notes, note, refuse, require_file
from dehvf_kit.errors import DataError
from dehvf_kit.utils.atomic import is_file
from dehvf_kit.utils.plain_data import NotJson, parse_json

FIELDS = ("id", "image", "question", "answer", "kind")
HEAD_BYTES = 2**16
MAX_LINE = 2**24
"""Bytes a line may have."""


class FileSplitsConfig(DataConfig):
    """Parent of the data sets that are named by `train` and `test`. A subclass reads one of them: `read_file`."""

    validation: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of the images of `train` held out as validation split; also as the test split, where `test` is not set",
    )
    validation_seed: int = Field(0, ge=0, description="another seed holds out other images")

    @model_validator(mode="before")
    @classmethod
    def _test_is_named_or_empty(cls, raw: Any) -> Any:
        """Where images are held out, a test split that nobody named is none, in the recipe that is saved too.

        Without a `path` no file is called as the split that is the default.
        """
        default = cls.model_fields["test"].default
        if not default or not isinstance(raw, Mapping) or not raw.get("validation"):
            return raw
        named = "test" in raw and (raw["test"] != default or raw.get("path"))
        return raw if named else {**raw, "test": ""}

    def read_file(self, part: str) -> Reading:
        """Everything that `train` or `test` names, with everything wrong with it."""
        raise NotImplementedError(f"{type(self).__name__}.read_file")

    def where(self, part: str) -> str:
        """What messages call a split."""
        return f"data.{part}"

    @property
    def names_test(self) -> bool:
        """Whether there is a test split beside what `validation` holds out."""
        return bool(getattr(self, "test", None))

    @property
    def validation_split(self) -> Split | None:
        return None if not self.validation else "validation" if self.names_test else "test"

    def file_of(self, part: str) -> str:
        """Which of `train` and `test` a split is read from."""
        return "test" if part == "test" and (self.names_test or not self.validation) else "train"

    def parts(self) -> Sequence[str]:
        if self.validation:
            return ("train", "validation", "test") if self.names_test else ("train", "test")
        return [part for part in ("train", "test") if getattr(self, part)]

    def samples(self, split: Split) -> list[Sample]:
        reading = self.read(split)
        refuse(self.where(split), reading.issues, PREPARE)
        log_notes(self.where(split), reading)
        return list(reading.samples)

    def read(self, part: str) -> Reading:
        if part == "validation" and not self.validation:
            raise DataError("data.validation is not set; give the share of the training images to hold out, such as 0.1")
        reading = self.read_file(self.file_of(part))
        if not self.validation or self.file_of(part) == "test":
            return reading
        groups = image_groups(reading.samples, self.group_of)
        held_out = held_out_groups(groups, self.validation, self.validation_seed)
        kept = [sample for sample, group in zip(reading.samples, groups, strict=True) if (group in held_out) == (part != "train")]
        return replace(reading, samples=kept, count=None)

    def group_of(self, sample: Sample) -> str:
        """What samples without an image have in common that come into one split: their question."""
        return f"text {sample.question}"


class JsonlDataConfig(FileSplitsConfig):
    """One JSON object a line with `question`, `answer` and, if there is one, `image` (a path beside the file), `id`, `kind`."""

    type: Literal["jsonl"] = "jsonl"
    rows_have_choices = True
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
        rows = ((number, f"{file}:{number}", row, file.parent) for number, row in json_lines(file, issues))
        return reading_of(rows, RowReader(TableColumns(), issues, f"fields: {', '.join(FIELDS)}", self.chooser), issues)


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
