"""Rows of CSV, TSV, JSON lines and JSON files: one file, or the files of one split in a folder."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dehvf_kit.data.hub_tables import ALIASES
from dehvf_kit.data.issues import Issue
from dehvf_kit.data.jsonl import MAX_LINE, json_lines
from dehvf_kit.errors import DataError, listing, shown
from dehvf_kit.utils.strict_json import read_json

TEXT_ENDINGS = (".csv", ".tsv", ".jsonl", ".json")
DELIMITERS = {".tsv": "\t", ".csv": ",;\t|"}
DATASETS_FILES = ("dataset_dict.json", "state.json", "dataset_info.json", "dataset_infos.json")
ENCODINGS = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
Row = tuple[int, str, Mapping[str, Any]]


def text_files(folder: Path) -> list[Path]:
    """The text files of a folder, of its folders, and of those below `data`; without what `datasets` writes beside its own."""
    return sorted(
        file
        for ending in TEXT_ENDINGS
        for deep in ("", "*/", "data/*/")
        for file in folder.glob(f"{deep}*{ending}")
        if file.name not in DATASETS_FILES
    )


def split_files(folder: Path, split: str) -> list[Path]:
    """The text files of a split in a folder; empty for a folder without any. Raises: DataError where it has no such split."""
    files = text_files(folder)
    found = files_of_split(files, folder, split)
    if files and not found:
        there = listing(str(file.relative_to(folder)) for file in files)
        raise DataError(f"{folder}: has no split '{split}'; it has {there}")
    return found


def files_of_split(files: Sequence[Path], folder: Path, split: str) -> list[Path]:
    """Of a folder's files those of a split: `train.csv`, `train-0.csv`, `train/a.csv`.

    Files that name no split are a training split, as the `datasets` library takes them.
    """

    def names(file: Path, words: str) -> bool:
        word = re.compile(rf"(^|[-_.])({words})([-_.]|$)")
        return bool(word.search(file.name) or (file.parent != folder and word.search(file.parent.name)))

    for name in (split, ALIASES.get(split, split)):
        found = [file for file in files if names(file, re.escape(name))]
        if found:
            return found
    return [file for file in files if not names(file, "train|test|val|validation|dev")] if split == "train" else []


def text_rows(files: Sequence[Path], issues: list[Issue]) -> Iterator[Row]:
    """(number, place, row) of the files' rows, numbered on from file to file; faulty ones are added to `issues`."""
    number = 0
    rows: Iterator[tuple[str, Mapping[str, Any]]]
    for file in files:
        if file.suffix == ".jsonl":
            rows = ((f"{file}:{line}", row) for line, row in json_lines(file, issues))
        elif file.suffix == ".json":
            rows = json_rows(file, issues)
        else:
            rows = csv_rows(file, issues)
        for place, row in rows:
            yield number, place, row
            number += 1


def json_rows(file: Path, issues: list[Issue]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Rows of a JSON file that is a list of objects."""
    found = read_json(file)
    if not isinstance(found, list):
        raise DataError(f"{file}: wants a list of rows, this is {type(found).__name__}")
    for number, row in enumerate(found):
        if isinstance(row, Mapping):
            yield f"{file}[{number}]", row
        else:
            issues.append(Issue("faulty line", f"{file}[{number}]", f"a row must be an object, given {shown(row)}"))


def csv_rows(file: Path, issues: list[Issue]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Rows of a CSV or TSV file with a line of column names; an empty cell is a missing value.

    Numbers that pandas wrote with a point (`3.0`) are whole numbers again, where every cell of their column is a number so
    written. Raises: DataError for a file without column names, of another encoding than UTF-8 or UTF-16, or wrongly quoted.
    """
    try:
        data = file.read_bytes()
        text = data.decode(ENCODINGS.get(data[:2], "utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not UTF-8: {error.reason} at byte {error.start}; save it as UTF-8") from error
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror or error}") from error
    csv.field_size_limit(MAX_LINE)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter_of(text, file.suffix), strict=True)
    rows: list[tuple[str, list[str]]] = []
    header: list[str] = []
    try:
        for cells in reader:
            if not header:
                header = _header(cells, file)
            elif len(cells) == len(header):
                rows.append((f"{file}:{reader.line_num}", cells))
            elif cells:
                given = f"{len(cells)} cells, the file has {len(header)} columns; quote cells that hold the delimiter"
                issues.append(Issue("faulty line", f"{file}:{reader.line_num}", given))
    except csv.Error as error:
        raise DataError(f"{file}:{reader.line_num}: {error}; quote a cell that holds quotes, and double them") from error
    if not header:
        raise DataError(f"{file}: is empty; wants a line of column names")
    numbers = [_are_floats([cells[column] for _, cells in rows]) for column in range(len(header))]
    for place, cells in rows:
        values = (float(cell) if number and cell else cell or None for number, cell in zip(numbers, cells, strict=True))
        yield place, dict(zip(header, values, strict=True))


def delimiter_of(text: str, ending: str) -> str:
    """The delimiter that makes the most columns of the first line."""
    lines = io.StringIO(text, newline="")

    def columns(delimiter: str) -> int:
        lines.seek(0)
        return len(next(csv.reader(lines, delimiter=delimiter), []))

    return max(DELIMITERS[ending], key=columns)


def _header(cells: list[str], file: Path) -> list[str]:
    names = [cell.strip() for cell in cells]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{file}: two columns are named '{twice}'; rename one")
    return names


def _are_floats(cells: Sequence[str]) -> bool:
    """Whether every cell that is not empty is a float as Python writes it."""
    try:
        return any(cells) and all(cell == repr(float(cell)) for cell in cells if cell)
    except ValueError:
        return False
