"""Questions, answers and images from a table whose columns are named in the recipe: CSV, JSON, Parquet or `datasets`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from dehvf_kit.data.jsonl import FileSplitsConfig, holds_conversations
from dehvf_kit.data.rows import Row, RowReader, TableColumns, reading_of
from dehvf_kit.data.samples import Issue, Reading, require_file
from dehvf_kit.utils.atomic import is_file, is_folder
from dehvf_kit_streams.hub_tables import TableImage, open_table, part_of, plain_rows, table_files
from dehvf_kit_streams.text_tables import TEXT_ENDINGS, files_of_split, split_files, text_files, text_rows

ENDINGS = (*TEXT_ENDINGS, ".parquet")
FOLDER_ENDINGS = (".csv", ".tsv", ".jsonl", ".parquet")


class TableDataConfig(FileSplitsConfig):
    """Image, question and answer from CSV, JSON, Parquet or a `datasets` folder, under any column names."""

    type: Literal["table"] = "table"
    rows_have_choices = True
    path: str = Field("", description="folder of files, `datasets` folder, or hub id; train and test name its splits")
    train: str = Field("train", description="training split of `path`; without a path a .csv, .tsv, .jsonl, .json or .parquet file")
    test: str = Field("test", description="test split of `path`; without a path such a file")
    images: Path | None = Field(None, description="folder of images given as paths; the file's own where left out")
    columns: TableColumns = Field(default_factory=TableColumns, description="which column holds what")
    download: bool = Field(False, description="allow fetching a hub id that is not on this machine")
    revision: str | None = Field(None, description="hub branch, tag or commit")

    @classmethod
    def recognise(cls, place: Path) -> dict[str, Any] | None:
        if is_file(place):
            rows = place.suffix in (".json", ".jsonl") and not holds_conversations(place)
            return {"train": str(place), "test": ""} if rows or place.suffix in (".csv", ".tsv", ".parquet") else None
        marks = ("dataset_dict.json", "state.json", *(f"{deep}*{ending}" for ending in FOLDER_ENDINGS for deep in ("", "*/")))
        if not is_folder(place) or not any(any(place.glob(mark)) for mark in marks):
            return None
        files = text_files(place) or list(place.rglob("*.parquet"))
        without_test = is_file(place / "state.json") or (files and not files_of_split(files, place, "test"))
        return {"path": str(place), "test": ""} if without_test else {"path": str(place)}

    def files(self) -> Sequence[Path]:
        place = Path(self.path)
        return (split_files(place, self.train) or table_files(place, self.train)) if self.path and is_folder(place) else ()

    def where(self, part: str) -> str:
        name = getattr(self, self.file_of(part))
        return f"{self.path}:{name}" if self.path else name

    def read_file(self, part: str) -> Reading:
        issues: list[Issue] = []
        reader = RowReader(self.columns, issues, "set data.columns", self.chooser)
        return reading_of(self._rows(part, issues), reader, issues)

    def _rows(self, part: str, issues: list[Issue]) -> Iterator[Row]:
        """Every row that can be read; others are added to `issues`."""
        name = self.train if part == "train" else self.test
        if not self.path:
            require_file(name, f"data.{part}", f"; name a file ({', '.join(ENDINGS)}), or set data.path")
        source = Path(self.path or name)
        files = split_files(source, name) if self.path else [source]
        folder = source if is_folder(source) else source.parent
        if not any(file.suffix in TEXT_ENDINGS for file in files):
            yield from self._table_rows(self.path or name, name, self.images or folder)
            return
        rows = ((*one, file) for file in files for one in text_rows(file, issues))
        for number, (place, row, file) in enumerate(rows):
            yield number, place, row, self.images or self._image_folder(row, file.parent, folder)

    def _image_folder(self, row: Mapping[str, Any], beside: Path, above: Path) -> Path:
        """Where a row's image path begins: beside its file, or in the folder that `path` names."""
        image = row.get(self.columns.image)
        return above if beside != above and isinstance(image, str) and not is_file(beside / image) else beside

    def _table_rows(self, source: str, split: str, folder: Path) -> Iterator[Row]:
        table = open_table(source, split, self.download, self.revision)
        name = f"{source}:{split}" if self.path else source
        held = {column: list(_without_bytes(table, column)) for column in image_columns(table)}
        plain = plain_rows(table.remove_columns(list(held)) if held else table)
        part = part_of(split, self.revision)
        for number, row in enumerate(plain if table.num_columns > len(held) else [{}] * len(table)):
            cells = {
                column: _lazy(cells[number], TableImage(source, number, column, table, part=part)) for column, cells in held.items()
            }
            yield number, f"{name}[{number}]", {**row, **cells}, folder


def _lazy(cell: Any, image: TableImage) -> Any:
    """A cell whose images are read from the table when they are needed. image: of the cell."""
    if isinstance(cell, list):
        return [replace(image, place=place) if one is True else one for place, one in enumerate(cell)]
    return image if cell is True else cell


def image_columns(table: Any) -> list[str]:
    """Columns that hold images' bytes, alone or in lists."""
    import pyarrow as pa

    def holds(kind: Any) -> bool:
        if pa.types.is_list(kind) or pa.types.is_large_list(kind):
            return holds(kind.value_type)
        if pa.types.is_struct(kind):
            return kind.get_field_index("bytes") >= 0
        return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)

    schema = table.data.schema
    return [name for name in table.column_names if holds(schema.field(name).type)]


def _without_bytes(table: Any, column: str) -> Iterator[Any]:
    """The cells of a column of images: a path, True for an image that is in the table itself, None, or a list of these."""
    for chunk in table.data.column(column).chunks:
        yield from _cells(chunk)


def _cells(chunk: Any) -> Iterator[Any]:
    import pyarrow as pa

    kind = chunk.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        inside = list(_cells(chunk.flatten()))
        start = 0
        for length in chunk.value_lengths().to_pylist():
            yield None if length is None else inside[start : start + length]
            start += length or 0
    elif pa.types.is_struct(kind):
        valid, held = chunk.is_valid().to_pylist(), chunk.field("bytes").is_valid().to_pylist()
        paths = chunk.field("path").to_pylist() if kind.get_field_index("path") >= 0 else [None] * len(chunk)
        for full, has_bytes, path in zip(valid, held, paths, strict=True):
            yield None if not full else True if has_bytes else path
    else:
        yield from (full or None for full in chunk.is_valid().to_pylist())
