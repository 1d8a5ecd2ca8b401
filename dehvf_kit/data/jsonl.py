"""Questions about pictures from JSON lines: `{"image": "a.png", "question": "...", "answer": "..."}`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from dehvf_kit.data.samples import DataConfig, Sample, Split
from dehvf_kit.errors import DataError

FIELDS = ("id", "image", "question", "answer", "kind")


class JsonlDataConfig(DataConfig):
    """One JSON object a line with `question`, `answer` and, if there is one, `image` (a path beside the file), `id`, `kind`."""

    type: Literal["jsonl"] = "jsonl"
    train: Path | None = Field(None, description="file of the training samples")
    test: Path | None = Field(None, description="file of the test samples")

    @classmethod
    def recognise(cls, place: Path) -> dict[str, Any] | None:
        return {"train": str(place)} if place.suffix == ".jsonl" and place.is_file() else None

    def parts(self) -> Sequence[str]:
        return [part for part in ("train", "test") if getattr(self, part) is not None]

    def samples(self, split: Split) -> list[Sample]:
        file = self.train if split == "train" else self.test
        if file is None:
            raise DataError(f"data.{split} is not set; name a .jsonl file")
        if not file.is_file():
            raise DataError(f"data.{split}: there is no file '{file}'")
        return list(read_jsonl(file))


def read_jsonl(file: Path) -> Iterator[Sample]:
    """Samples of a JSON-lines file. Raises: DataError naming the line, for what is no object, lacks a field or repeats an id."""
    seen: set[str] = set()
    for number, row in json_lines(file):
        sample = _sample(row, number, file)
        if sample.id in seen:
            raise DataError(f"{file}:{number}: id '{sample.id}' appears twice")
        seen.add(sample.id)
        yield sample


def json_lines(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) of every line that is not blank. Raises: DataError naming a line that is no JSON object."""
    if not file.is_file():
        raise DataError(f"there is no file '{file}'")
    with file.open("rb") as lines:
        for number, data in enumerate(lines, start=1):
            where = f"{file}:{number}"
            try:
                line = data.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise DataError(f"{where}: not UTF-8: {error.reason} at byte {error.start}") from error
            if not line.strip():
                continue
            try:
                row: Any = json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(f"{where}: not JSON: {error.msg} at column {error.colno}") from error
            if not isinstance(row, dict):
                raise DataError(f"{where}: a line must be a JSON object, this one is {type(row).__name__}")
            yield number, row


def _sample(row: dict[str, Any], number: int, file: Path) -> Sample:
    where = f"{file}:{number}"
    for name in ("question", "answer"):
        if not isinstance(row.get(name), str):
            raise DataError(f"{where}: '{name}' must be a text, given {row.get(name)!r}; fields: {', '.join(FIELDS)}")
    image = row.get("image")
    if image is not None and not isinstance(image, str):
        raise DataError(f"{where}: 'image' must be a path, given {image!r}")
    return Sample(
        id=str(row.get("id", number)),
        question=row["question"],
        answer=row["answer"],
        image=file.parent / image if image else None,
        kind=str(row.get("kind", "")),
    )
