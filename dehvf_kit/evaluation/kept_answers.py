"""Answers as they come, in a file, so that an evaluation that was ended goes on where it was.

A JSON object a line: {"place": of the question, "text": the answer, "cut": tokens its prompt lost}. The file's name holds a
digest of all that decides the answers, so that only the same evaluation goes on from it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dehvf_kit.data.samples import Sample
from dehvf_kit.utils.atomic import writing

SUFFIX = ".partial"


class Said(NamedTuple):
    """One answer, and how many tokens its prompt lost at the beginning."""

    text: str
    cut: int


class KeptAnswers:
    """The answers of one evaluation, by the places of their questions; `known` holds those that the file has already."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.known: dict[int, Said] = dict(_read(file))

    def add(self, answers: Mapping[int, Said]) -> None:
        """Append answers. Raises: DehvfError where the file cannot be written."""
        lines = [json.dumps({"place": place, "text": one.text, "cut": one.cut}) for place, one in answers.items()]
        with writing(self.file), self.file.open("a", encoding="utf-8") as opened:
            opened.write("".join(f"\n{line}\n" for line in lines))
        self.known |= answers

    def remove(self) -> None:
        """Take the file away."""
        self.file.unlink(missing_ok=True)


def _read(file: Path) -> Iterator[tuple[int, Said]]:
    """The whole lines of a file; the last one may have been cut."""
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return
    for line in lines:
        with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
            row = json.loads(line)
            yield int(row["place"]), Said(str(row["text"]), int(row["cut"]))


def digest(facts: Mapping[str, Any], samples: Sequence[Sample]) -> str:
    """Twelve hexadecimal digits of what decides the answers to some questions, image files by size and time, others by content."""
    found = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode())
    stamps: dict[Any, str] = {}
    for sample in samples:
        images = sample.images or (None,)
        stamps |= {image: _stamp(image) for image in images if image not in stamps}
        row = (sample.id, sample.question, sample.answer, sample.answer_start, *(stamps[image] for image in images))
        found.update(json.dumps(row).encode())
    return found.hexdigest()[:12]


def _stamp(image: Any) -> str:
    with contextlib.suppress(OSError, ValueError):
        if isinstance(image, Path):
            about = image.stat()
            return f"{image} {about.st_size} {about.st_mtime_ns}"
        if image is not None:
            return hashlib.sha256(image.read_bytes()).hexdigest()
    return str(image)
