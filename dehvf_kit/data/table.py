"""Questions, answers and pictures from a table whose columns are named in the recipe: JSON lines, Parquet or `datasets`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from dehvf_kit.api.config import Settings
from dehvf_kit.data.hub_tables import TableImage, open_table
from dehvf_kit.data.issues import PREPARE, Issue, refuse
from dehvf_kit.data.jsonl import json_lines, named
from dehvf_kit.data.samples import DataConfig, Reading, Sample, Split
from dehvf_kit.errors import DataError, listing, shown
from dehvf_kit.utils.places import is_file, is_folder


class TableColumns(Settings):
    """Which column holds what; those of id, image and kind may be missing from the table."""

    id: str = Field("id", description="a unique name; the row's number where there is no such column")
    image: str = Field("image", description="a path beside the file (or under `images`), or the picture itself")
    question: str = Field("question", description="the question")
    answer: str = Field("answer", description="the answer: a text, a number, or a list whose first text is meant")
    kind: str = Field("kind", description="what groups the scores, such as a question type")


class TableDataConfig(DataConfig):
    """Image, question and answer from JSON lines, Parquet or a `datasets` folder, under any column names."""

    type: Literal["table"] = "table"
    path: str = Field("", description="`datasets` folder or hub id; train and test then name its splits")
    train: str = Field("train", description="training split of `path`; without a path a .jsonl or .parquet file")
    test: str = Field("test", description="test split of `path`; without a path a .jsonl or .parquet file")
    images: Path | None = Field(None, description="folder of pictures given as paths; the file's own where left out")
    columns: TableColumns = Field(default_factory=TableColumns, description="which column holds what")
    download: bool = Field(False, description="allow fetching a hub id that is not on this machine")
    revision: str | None = Field(None, description="hub branch, tag or commit")

    @classmethod
    def recognise(cls, place: Path) -> dict[str, Any] | None:
        if place.suffix == ".parquet" and is_file(place):
            return {"train": str(place), "test": ""}
        marks = ("dataset_dict.json", "*.parquet", "*/*.parquet")
        return {"path": str(place)} if is_folder(place) and any(any(place.glob(mark)) for mark in marks) else None

    def parts(self) -> Sequence[str]:
        return [part for part in ("train", "test") if getattr(self, part)]

    def samples(self, split: Split) -> list[Sample]:
        reading = self.read(split)
        refuse(self._where(split), reading.issues, PREPARE)
        return list(reading.samples)

    def read(self, part: str) -> Reading:
        samples, seen = [], set()
        issues: list[Issue] = []
        for number, row, picture in self._rows(part, issues):
            key, kind = named(row.get(self.columns.id), number), named(row.get(self.columns.kind), "")
            question, answer = row.get(self.columns.question), answer_text(row.get(self.columns.answer))
            if key is None or kind is None:
                column = self.columns.id if key is None else self.columns.kind
                issues.append(Issue("id or kind is no text", str(number), f"{column}: {shown(row[column])}"))
                continue
            if key in seen:
                issues.append(Issue("id twice", key))
            elif not isinstance(question, str) or not question.strip():
                issues.append(Issue("empty question", key, f"{self.columns.question}: {shown(question)}"))
            elif answer is None:
                given = shown(row.get(self.columns.answer))
                issues.append(Issue("answer is no text", key, f"{self.columns.answer}: {given}"))
            else:
                samples.append(Sample(key, question, answer, picture, kind))
            seen.add(key)
        return Reading(samples, issues)

    def _where(self, part: str) -> str:
        name = self.train if part == "train" else self.test
        return f"{self.path}:{name}" if self.path else name

    def _rows(self, part: str, issues: list[Issue]) -> Iterator[tuple[int, Mapping[str, Any], Any]]:
        """(row number, row, its picture) of every row that can be read; others are added to `issues`."""
        name = self.train if part == "train" else self.test
        if not self.path and name.endswith(".jsonl"):
            folder = self.images or Path(name).parent
            for number, row in json_lines(Path(name), issues):
                image = row.get(self.columns.image)
                if image is not None and not isinstance(image, str):
                    given = f"'{self.columns.image}' must be a path, given {shown(image)}"
                    issues.append(Issue("faulty line", f"{name}:{number}", given))
                    continue
                yield number, row, folder / image if image else None
            return
        if not self.path and not os.path.isfile(name):
            raise DataError(f"data.{part}: there is no file '{name}'; name a .jsonl or .parquet file, or set data.path")
        source = self.path or name
        table = open_table(source, name, self.download, self.revision)
        for column in (self.columns.question, self.columns.answer):
            if column not in table.column_names:
                raise DataError(
                    f"{source}: has no column '{column}'; it has {listing(table.column_names)}; set data.columns"
                )
        yield from self._table_rows(source, table)

    def _table_rows(self, source: str, table: Any) -> Iterator[tuple[int, Mapping[str, Any], Any]]:
        folder = self.images or (Path(source).parent if is_file(Path(source)) else Path(source))
        column = self.columns.image
        paths: list[Any] = [None] * len(table)
        if column in table.column_names:
            paths = [_place(cell, folder) for cell in _without_bytes(table, column)]
            table_of_texts = table.remove_columns(column)
        else:
            table_of_texts = table
        for number, row in enumerate(table_of_texts):
            place = paths[number]
            yield number, row, TableImage(source, number, column, table) if place is True else place


def _without_bytes(table: Any, column: str) -> Iterator[Any]:
    """The cells of a picture column: a path, True for a picture that lies in the table itself, or None."""
    import pyarrow as pa

    for chunk in table.data.column(column).chunks:
        if pa.types.is_struct(chunk.type):
            inside = chunk.field("bytes").is_valid().to_pylist()
            paths = chunk.field("path").to_pylist()
            valid = chunk.is_valid().to_pylist()
            for full, has_bytes, path in zip(valid, inside, paths, strict=True):
                yield None if not full else True if has_bytes else path
        elif pa.types.is_binary(chunk.type) or pa.types.is_large_binary(chunk.type):
            yield from (full or None for full in chunk.is_valid().to_pylist())
        else:
            yield from chunk.to_pylist()


def _place(cell: Any, folder: Path) -> Any:
    return folder / cell if isinstance(cell, str) and cell else cell or None


def answer_text(value: Any) -> str | None:
    """An answer as text: a text, a number, or the first of a list; None for anything else."""
    if isinstance(value, (list, tuple)) and value:
        value = value[0]
    if isinstance(value, bool) or value is None:
        return None
    return str(value) if isinstance(value, (str, int, float)) else None
