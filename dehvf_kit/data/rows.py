"""One row -> one sample, its cells as text, for JSON lines, CSV, Parquet, `datasets` tables and streams alike.

What a row holds that cannot be used is refused with a `RowFaultError`, or noted; nothing is dropped without a word.
"""

from __future__ import annotations

import base64
import binascii
import math
import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from dehvf_kit.api.config import Settings
from dehvf_kit.data.conversations import conversation_sample, messages_of
from dehvf_kit.data.samples import (
    PLACEHOLDER,
    HeldImage,
    ImageFile,
    Issue,
    Message,
    Reading,
    Sample,
    is_data_uri,
    is_url,
    marked,
    note,
)
from dehvf_kit.errors import DataError, did_you_mean, listing, shown

EXACT_INTEGERS = 2**53
MISSING_WORDS = frozenset(["nan", "NaN", "NA", "N/A", "null", "NULL", "None", "<NA>", "\\N"])
"""How tools write a missing value into text."""
WIDE_DIGITS = 15
"""Digits that a number of 32 bits has at least where it is written as one of 64."""

PLURAL = "images"
VIDEOS = ("video", "videos")
INDEX_COLUMNS = ("", "Unnamed: 0", "__index_level_0__", "__key__", "__url__")
"""Columns that pandas and webdataset add by themselves."""
IMAGE_ENDING = re.compile(r"\.(png|jpe?g|webp|gif|bmp|tiff?|avif|ppm|jp2)$", re.IGNORECASE)
IMAGE_TEXT = re.compile(r"(iVBORw0KGgo|/9j/|R0lGOD|UklGR)[A-Za-z0-9+/=\s]{60,}")
"""The base64 of a PNG, JPEG, GIF or WebP."""
IMAGE_MARKS = re.compile(r"<image>|<img>|<video>|<audio>|<\|?image[ _]?(?:pad|\d+)\|?>|<ImageHere>|\[IMG\]")
"""What stands for an image in the texts of other tools."""
Row = tuple[Any, str, Mapping[str, Any], Path]
"""(number, place, row, folder): its key where it has no id, its name in messages, the folder its image paths are relative to."""


class TableColumns(Settings):
    """Which column holds what; those of id, image and kind may be missing from the table."""

    id: str = Field("id", description="a unique name; the row's number where there is no such column")
    image: str = Field("image", description="a path beside the file (or under `images`), or the image itself")
    question: str = Field("question", description="the question")
    answer: str = Field("answer", description="the answer: a text, a number, or a list whose first text is meant")
    kind: str = Field("kind", description="what groups the scores, such as a question type")
    choices: str = Field("choices", description="where the metric chooses, the choices: a list of texts, or it as JSON text")
    messages: str = Field("messages", description="a conversation, in rows that have no question and answer")


class RowFaultError(DataError):
    """A row that cannot be used: `kind` groups such rows in reports. Its message alone makes it too: so workers hand it over."""

    def __init__(self, detail: str, place: str = "", kind: str = "") -> None:
        super().__init__(f"{place}: {detail}" if place else detail)
        self.kind = kind


class RowReader:
    """Makes samples of rows and remembers which columns they had.

    Args:
        columns: which column holds what.
        notes: gains an issue for every value that was read in another form than it was given; None: they are not kept.
        advice: closes messages about a column, `set data.columns` where they can be set.
        chooser: reads the choices of rows; None: they are not read.
    """

    def __init__(self, columns: TableColumns, notes: list[Issue] | None = None, advice: str = "", chooser: Any = None) -> None:
        self.columns, self.notes, self.advice, self.chooser = columns, notes, advice, chooser
        self.seen: Counter[str] = Counter()
        self.has_images = False
        self._images: set[str] = set()

    def sample(self, row: Mapping[str, Any], place: str, folder: Path, key: Any = None) -> Sample:
        """The sample of a row.

        Args:
            row: values by column; an image cell may also hold an `ImageFile`.
            place: names the row in messages.
            folder: where relative image paths begin.
            key: the id of a row that has none; `place` where left out.

        Raises:
            RowFaultError: naming place, column and value, for a row that cannot be used.
        """
        self.remember(row)
        read = partial(self._sample, place=place, folder=folder, key=key)
        return read(row) if self.chooser is None else self.chooser.sample(read, row, self.columns, place, self.advice)

    def _sample(self, row: Mapping[str, Any], place: str, folder: Path, key: Any) -> Sample:
        columns = self.columns
        own, kind = named(row.get(columns.id), place if key is None else key), named(row.get(columns.kind), "")
        for column, found in ((columns.id, own), (columns.kind, kind)):
            if found is None:
                raise RowFaultError(
                    f"'{column}' must be a text or a number, given {shown(row[column])}", place, "id or kind is no text"
                )
        question = row.get(columns.question)
        if not is_missing(row.get(columns.messages)):
            if is_missing(question):
                return self._conversation(row, place, folder, str(own), str(kind))
            self.note("conversation beside a question, not read", place, f"columns {columns.messages}, {columns.question}")
        if not isinstance(question, str) or not question.strip():
            raise self._fault(place, "empty question", columns.question, question)
        try:
            given = row.get(columns.answer)
            answer, remarks = answer_of(given)
            several = isinstance(given, (list, tuple)) and [answer_of(one)[0] for one in given if not is_missing(one)]
        except DataError as error:
            raise self._fault(place, str(error), columns.answer, row.get(columns.answer)) from None
        images = self.images(row, place, folder)
        (asked,) = self.texts([Message("user", question)], place, len(images))
        for remark in remarks:
            self.note(remark, place, shown(answer))
        more = {"further_images": images[1:], "references": tuple(several) if several and len(several) > 1 else ()}
        return Sample(str(own), asked.content, answer, *images[:1] or (None,), str(kind), **more)

    def _conversation(self, row: Mapping[str, Any], place: str, folder: Path, key: str, kind: str) -> Sample:
        """The sample of a row's messages. Raises: RowFaultError for what is no conversation, or does not end with an answer."""
        try:
            messages, held = messages_of(row[self.columns.messages])
            if messages[-1].role != "assistant" or len(messages) < 2 or messages[-2].role != "user":
                raise DataError("its messages must end with a question of the user and the assistant's answer")
        except DataError as error:
            raise RowFaultError(str(error), place, "not a conversation") from None
        images = self.images(row, place, folder)
        if images and held:
            raise RowFaultError("has images in its messages and in a column of images; keep one", place, "images twice")
        images = images or images_of(held, self.columns.messages, place, folder)
        before = self.texts(messages[:-1], place, len(images))
        return conversation_sample(key, before, messages[-1].content, images, kind)

    def texts(self, messages: Sequence[Message], place: str, num_images: int) -> list[Message]:
        """Messages with their placeholders settled: see `marked`. Raises: RowFaultError where they and the images disagree."""
        self.has_images = self.has_images or num_images > 0
        try:
            found = marked(messages, num_images)
        except DataError as error:
            kind = "empty question" if "no text" in str(error) else "placeholders and images disagree"
            kind = kind if num_images else "placeholder without an image"
            raise RowFaultError(str(error), place, kind) from None
        marks = {mark for one in found for mark in IMAGE_MARKS.findall(one.content)}
        if "<img>" in marks and not num_images:
            raise RowFaultError("the text has <img>, the row names no image", place, "placeholder without an image")
        for mark in sorted(marks - ({PLACEHOLDER} if num_images > 1 else set())):
            self.note(f"{mark} inside a text, kept as text", place)
        return found

    def note(self, kind: str, place: str, detail: str = "") -> None:
        """Note something that stops nothing."""
        if self.notes is not None:
            self.notes.append(Issue(kind, place, detail, fatal=False))

    def report(self, issues: list[Issue]) -> None:
        """Add what the rows have in common to their `issues`: a missing column, in place of each row's fault; unread columns."""
        kinds = {issue.kind for issue in issues}
        missing = dict(self._missing_columns(kinds))
        issues[:] = [issue for issue in issues if issue.kind not in missing]
        issues += [*missing.values(), *self.unread()]

    def _missing_columns(self, kinds: Collection[str]) -> Iterator[tuple[str, Issue]]:
        """A fault for a column that no row has, and which of the rows' own `kinds` of faults it explains."""
        for field, kind in (("question", "empty question"), ("answer", "answer is missing"), ("choices", "no choices")):
            column = getattr(self.columns, field)
            if kind in kinds and self.seen and not {column, self.columns.messages} & set(self.seen):
                near = did_you_mean(column, self.seen)
                detail = f"no row has it{near} Columns: {listing(self.seen)}; {self.advice}"
                yield kind, Issue("missing column", column, detail)

    def unread(self) -> Iterator[Issue]:
        """Columns that no field reads; one of images is a fault where no sample has an image."""
        fields = self.columns.model_dump(exclude=None if self.chooser else {"choices"})
        known = {*fields.values(), *INDEX_COLUMNS, *((PLURAL,) if fields["image"] == "image" else ())}
        free = [field for field, column in fields.items() if column not in self.seen]
        for column, count in self.seen.items():
            if column in known:
                continue
            near = did_you_mean(column, free).rstrip(".")
            if column in self._images and not self.has_images and fields["image"] not in self.seen:
                named = f"set data.columns.image={column}"
                mended = named if self.advice.startswith("set") else f"rename it to image, or {named} and data.type=table"
                yield Issue("images in a column that is not read", column, mended)
            else:
                yield Issue("column that is not read", column, f"{count:,} rows{near}", fatal=False)

    def remember(self, row: Mapping[str, Any]) -> None:
        """Remember which columns a row has, and which of them hold images."""
        for column, value in row.items():
            if value is not None and value != "":
                self.seen[column] += 1
                if column not in self._images and looks_like_image(value):
                    self._images.add(column)

    def _fault(self, place: str, kind: str, column: str, value: Any) -> RowFaultError:
        advice = f"; {self.advice}" if self.advice else ""
        why = "a truth value; write the words to be learned" if isinstance(value, bool) else ""
        given = f"{shown(value)}, {why}" if why else shown(value)
        return RowFaultError(f"'{column}' must be a text, given {given}{advice}", place, kind)

    def images(self, row: Mapping[str, Any], place: str, folder: Path) -> tuple[Path | ImageFile, ...]:
        """The images of a row. Raises: RowFaultError for a video, and for what is no image."""
        column = self.columns.image
        cell = row.get(column)
        if not cell and column == "image" and row.get(PLURAL):
            column, cell = PLURAL, row[PLURAL]
        images = images_of(cell, column, place, folder)
        if not images:
            for name in VIDEOS:
                if row.get(name) and name not in self.columns.model_dump().values():
                    raise RowFaultError(f"'{name}' is given, which is not read; give its frames as images", place, "video")
        return images


def images_of(cell: Any, column: str, place: str, folder: Path) -> tuple[Path | ImageFile, ...]:
    """The images in a cell, one or a list: each a path beside the file, bytes, a data URI or a `datasets` image.

    Raises: RowFaultError for an address on the net, and whatever else is no image.
    """
    several = isinstance(cell, Sequence) and not isinstance(cell, (str, bytes))
    cells = [one for one in cell if one is not None and one != ""] if several else [cell]
    names = [place] if len(cells) < 2 else [f"{place}#{number}" for number in range(len(cells))]
    found = (_image(one, column, name, folder) for one, name in zip(cells, names, strict=False))
    return tuple(one for one in found if one is not None)


def _image(cell: Any, column: str, place: str, folder: Path) -> Path | ImageFile | None:
    if isinstance(cell, Mapping) and cell.keys() <= {"bytes", "path"}:
        cell = cell["bytes"] if cell.get("bytes") is not None else cell.get("path")
    if cell is None or cell == "":
        return None
    if isinstance(cell, bytes):
        return HeldImage(place, cell)
    if isinstance(cell, str):
        return _named_image(cell, column, place, folder)
    if hasattr(cell, "read_bytes"):
        return cell
    raise RowFaultError(f"'{column}' must be a path or an image, given {shown(cell)}", place, "not an image")


def _named_image(text: str, column: str, place: str, folder: Path) -> Path | ImageFile:
    if is_url(text):
        raise RowFaultError(
            f"'{column}' is an address, {shown(text)}; download the image, and name its file", place, "image is an address"
        )
    if text.startswith(("[", "{", "b'", 'b"')):
        raise RowFaultError(
            f"'{column}' is a list or bytes written as text, {shown(text)}; write the path alone, or a Parquet file",
            place,
            "not an image",
        )
    base64_text = bool(IMAGE_TEXT.match(text))
    if not is_data_uri(text) and not base64_text:
        named = text.removeprefix("file://")
        return folder / (named if "\\" not in named or os.path.isfile(folder / named) else named.replace("\\", "/"))
    head, _, data = ("", "", "".join(text.split())) if base64_text else text.partition(",")
    try:
        return HeldImage(place, base64.b64decode(data, validate=True))
    except (binascii.Error, ValueError):
        raise RowFaultError(f"'{column}' is a data URI without base64 data: {shown(head)}", place, "not an image") from None


def looks_like_image(value: Any) -> bool:
    """Whether a cell that nothing reads looks like an image or like the path of one."""
    if isinstance(value, (list, tuple)) and value:
        value = value[0]
    if isinstance(value, Mapping):
        return "bytes" in value
    if isinstance(value, str):
        return bool(IMAGE_ENDING.search(value) or IMAGE_TEXT.match(value)) or is_data_uri(value, "image/")
    return isinstance(value, bytes) or hasattr(value, "read_bytes")


def read_rows(
    rows: Iterable[Row], reader: RowReader, issues: list[Issue] | None, numbered: set[str] | None = None, distinct: bool = True
) -> Iterator[Sample]:
    """Samples of rows. Rows that cannot be used are added to `issues`; None: they are raised.

    Args:
        rows: the rows, each with its place and the folder of its images.
        reader: makes samples of them.
        issues: gains the faulty rows.
        numbered: gains the ids that are row numbers.
        distinct: whether an id that appears twice is a fault.

    Raises:
        DataError: for the first faulty row, where `issues` is None.
    """
    seen: dict[str, bool] = {}  # whether the row has it itself
    for number, place, row, folder in rows:
        own = not is_missing(row.get(reader.columns.id))
        try:
            sample = reader.sample(row, place, folder, number)
            if own and seen.get(sample.id):
                raise RowFaultError(f"id '{sample.id}' appears twice", place, "id twice")
            if sample.id in seen:
                what = f"id '{sample.id}' is also the number of a row without an id; give one to every row, or to none"
                raise RowFaultError(what, place, "id twice")
        except RowFaultError as error:
            note(issues, Issue(error.kind, place), error)
            continue
        if distinct:
            seen[sample.id] = own
        if numbered is not None and not own:
            numbered.add(sample.id)
        yield sample


def reading_of(rows: Iterable[Row], reader: RowReader, issues: list[Issue], distinct: bool = True) -> Reading:
    """All samples of rows, with everything wrong with them. issues: the list that `reader` and whoever yields the rows add to."""
    numbered: set[str] = set()
    samples = list(read_rows(rows, reader, issues, numbered, distinct))
    reader.report(issues)
    return Reading(samples, issues, numbered=numbered if distinct else ())


def answer_of(value: Any) -> tuple[str, list[str]]:
    """An answer as text, and what to note of it: a text, a number, or the first of a list.

    Raises: DataError for a missing value and for what is neither; its message is the kind of fault.
    """
    remarks = []
    if isinstance(value, (list, tuple)):
        given = [one for one in value if not is_missing(one)]
        remarks += ["several answers, the first is read"] if len(given) > 1 else []
        value = given[0] if given else None
    if is_missing(value):
        raise DataError("answer is missing")
    if isinstance(value, float) and value.is_integer():
        remarks.append("whole number given as a decimal, read as a whole number")
    elif isinstance(value, float) and (short := of_32_bits(value)) != value:
        remarks.append("number of 32 bits written with more digits than it has, read without them")
        value = short
    text = named(value, None)
    if text is None:
        raise DataError("answer is no text")
    if isinstance(value, str) and text.strip() in MISSING_WORDS:
        remarks.append("answer that may stand for a missing value, read as text")
    elif isinstance(value, str) and re.fullmatch(r"\s*\[.*\]\s*", text, re.DOTALL):
        remarks.append("answer that may be a list written as text, read as text")
    return text, remarks


def of_32_bits(value: float) -> float:
    """0.1 for 0.10000000149011612, as duckdb writes it into JSON, and for 0.1000000015, as pandas does; else the value itself."""
    if not abs(value) < float(np.finfo(np.float32).max):
        return value
    single = np.float32(value)
    short, digits = float(str(single)), len(Decimal(repr(value)).as_tuple().digits)
    all_digits = value == float(single) and digits >= WIDE_DIGITS
    ten_decimals = value == round(float(single), 10) and len(repr(short)) + 3 <= len(repr(value)) and digits < WIDE_DIGITS
    return short if all_digits or (ten_decimals and value != float(single)) else value


def is_missing(value: Any) -> bool:
    """Whether a value is null or not a number."""
    return value is None or (isinstance(value, (float, Decimal)) and math.isnan(value))


def named(value: Any, default: Any) -> str | None:
    """A text or number as a text, a whole number without a point; `default` for a missing value, None for anything else."""
    value = default if is_missing(value) else value
    if isinstance(value, bool):
        return None
    if isinstance(value, (float, Decimal)) and not math.isfinite(value):
        return None
    if isinstance(value, float) and value.is_integer() and abs(value) < EXACT_INTEGERS:
        return str(int(value))
    if isinstance(value, Decimal):
        return format(value, "f")
    return str(value) if isinstance(value, (str, int, float)) else None
