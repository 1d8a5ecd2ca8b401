"""Rows of CSV, TSV, JSON lines and JSON files: one file, or the files of one split in a folder."""

from __future__ import annotations

import csv
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dehvf_kit.data.jsonl import MAX_LINE, is_json_lines, json_lines
from dehvf_kit.data.rows import MISSING_WORDS
from dehvf_kit.data.samples import Issue, note
from dehvf_kit.errors import DataError, listing, shown
from dehvf_kit.utils.plain_data import read_json
from dehvf_kit_streams.hub_tables import ALIASES, require_shards

TEXT_ENDINGS = (".csv", ".tsv", ".jsonl", ".json")
DELIMITERS = {".tsv": "\t,;|", ".csv": ",;\t|"}
"""The likeliest first."""
SNIFFED = 20
"""Lines by which the delimiter is told."""
DATASETS_FILES = ("dataset_dict.json", "state.json", "dataset_info.json", "dataset_infos.json")
ENCODINGS = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
BLANK = MISSING_WORDS | {""}
"""How tools write a missing number."""


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
    require_shards(found)
    return found


def files_of_split(files: Sequence[Path], folder: Path, split: str) -> list[Path]:
    """Of a folder's files those of a split: `train.csv`, `train-0.csv`, `train/a.csv`.

    Files that name no split are a training split, as the `datasets` library takes them.
    """

    def names(file: Path, words: str) -> bool:
        word = re.compile(rf"(^|[-_.=])({words})([-_.]|$)")
        return bool(word.search(file.name) or (file.parent != folder and word.search(file.parent.name)))

    for name in (split, ALIASES.get(split, split)):
        found = [file for file in files if names(file, re.escape(name))]
        if found:
            return found
    return [file for file in files if not names(file, "train|test|val|validation|dev")] if split == "train" else []


def text_rows(file: Path, issues: list[Issue] | None) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(place, row) of a file's rows; faulty ones are added to `issues`; None: they are raised.

    Raises: DataError for a file that cannot be read at all.
    """
    if file.suffix in (".json", ".jsonl") and is_json_lines(file):
        return ((f"{file}:{line}", row) for line, row in json_lines(file, issues))
    return json_rows(file, issues) if file.suffix == ".json" else csv_rows(file, issues)


def json_rows(file: Path, issues: list[Issue] | None) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Rows of a JSON file that is a list of objects."""
    found = read_json(file)
    if not isinstance(found, list):
        keys = f"an object of {listing(found)}" if isinstance(found, dict) else type(found).__name__
        raise DataError(f"{file}: wants a list of rows, this is {keys}; write the list alone, as pandas does with orient='records'")
    for number, row in enumerate(found):
        if isinstance(row, Mapping):
            yield f"{file}[{number}]", row
        else:
            place = f"{file}[{number}]"
            note(issues, Issue("faulty line", place), DataError(f"{place}: a row must be an object, given {shown(row)}"))


def csv_rows(file: Path, issues: list[Issue] | None) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Rows of a CSV or TSV file with a line of column names; an empty cell is a missing value. The file is read twice.

    Numbers that pandas wrote with a point (`3.0`) are whole numbers again, where every cell of their column is a number so
    written. Raises: DataError for a file without column names, of another encoding than UTF-8 or UTF-16, or wrongly quoted.
    """
    header, floats = _columns(file)
    for line, cells in itertools.islice(_csv_lines(file), 1, None):
        if len(cells) == len(header):
            values = (_value(cell, column in floats) for column, cell in enumerate(cells))
            yield f"{file}:{line}", dict(zip(header, values, strict=True))
        elif cells:
            given = f"{len(cells)} cells, the file has {len(header)} columns; quote cells that hold the delimiter"
            note(issues, Issue("faulty line", f"{file}:{line}"), DataError(f"{file}:{line}: {given}"))


def _csv_lines(file: Path) -> Iterator[tuple[int, list[str]]]:
    """(line number, cells) of each line that is not blank."""
    csv.field_size_limit(MAX_LINE)
    line = 0
    try:
        with file.open("rb") as binary:
            encoding = ENCODINGS.get(binary.read(2), "utf-8-sig")
        with file.open(encoding=encoding, newline="") as text:
            first = text.readline()
            told = re.fullmatch(r"sep=(.)\s*", first)  # a line of Excel's
            lines = itertools.chain([] if told else [first], itertools.islice(text, SNIFFED))
            delimiter = told[1] if told else delimiter_of(list(lines), file.suffix)
            text.seek(0)
            if told:
                text.readline()
            reader = csv.reader(text, delimiter=delimiter, strict=True)
            for cells in reader:
                line = reader.line_num
                if cells:
                    yield line, cells
    except UnicodeDecodeError as error:
        raise DataError(f"{file}:{line + 1}: not UTF-8: {error.reason}, here or below; save it as UTF-8") from error
    except csv.Error as error:
        raise DataError(f"{file}:{line + 1}: {error}; quote a cell that holds quotes, and double them") from error
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror or error}") from error


def delimiter_of(lines: Sequence[str], ending: str) -> str:
    """The delimiter that makes as many columns of each of a file's first lines; of several such, the one that makes the most."""

    def fit(delimiter: str) -> tuple[bool, int]:
        widths = [len(cells) for cells in csv.reader(lines, delimiter=delimiter) if cells] or [0]
        whole = widths[:-1] or widths  # the last cell's closing quote may be further below
        return whole[0] > 1 and len(set(whole)) == 1, whole[0]

    return max(DELIMITERS[ending], key=fit)


def _columns(file: Path) -> tuple[list[str], set[int]]:
    """The names of the columns, and the places of those whose cells are all floats as Python writes them."""
    lines = _csv_lines(file)
    names = [cell.strip() for cell in next(lines, (0, []))[1]]
    if not names:
        raise DataError(f"{file}: is empty; wants a line of column names")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{file}: two columns are named '{twice}'; rename one")
    filled, floats = set(), set(range(len(names)))
    for _, cells in lines:
        for column, cell in enumerate(cells[: len(names)]):
            if cell not in BLANK:
                filled.add(column)
                if column in floats and not _is_float(cell):
                    floats.remove(column)
    return names, floats & filled


def _value(cell: str, is_float: bool) -> Any:
    if is_float:
        return None if cell in BLANK else float(cell)
    return cell or None


def _is_float(cell: str) -> bool:
    try:
        return cell == repr(float(cell))
    except ValueError:
        return False
