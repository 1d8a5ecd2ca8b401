"""The samples of a split that can be used, and a list of the others: refused or skipped, as `data.on_bad_sample` says.

A sample is bad where its row says nothing usable, its image cannot be read, or its answer leaves no room for a prompt token.
With `skip` every distinct image is opened once before work begins, so that a run knows its samples and steps from the start.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dehvf_kit.data.images import read_image
from dehvf_kit.data.metrics.exact_match import Prediction
from dehvf_kit.data.metrics.scores import Scores
from dehvf_kit.data.samples import DataConfig, Issue, Sample, Split, each_image, refuse
from dehvf_kit.errors import DataError, ImageError
from dehvf_kit.utils import atomic

SKIPPED = "skipped.jsonl"
SHOWN = 5
THREADS = 4
REPORTED = 100
"""Images between two calls of a progress function."""
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Skipped:
    """An excluded sample: its split, its id or line, and why. sample: the sample itself, None where its row was not usable."""

    split: str
    place: str
    reason: str
    sample: Sample | None = None

    @classmethod
    def of(cls, split: str, issue: Issue, sample: Sample | None = None) -> Skipped:
        """A sample or row excluded for an issue."""
        return cls(split, issue.place, f"{issue.kind}: {issue.detail or issue.place}", sample)

    def row(self) -> dict[str, str | None]:
        """As plain data."""
        image = str(self.sample.image) if self.sample is not None and self.sample.image is not None else None
        return {"split": self.split, "sample": self.place, "reason": self.reason, "image": image}

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Skipped:
        """What `row` wrote; of the sample, its id and image alone."""
        image = row["image"] if "image" in row else row["picture"]  # as files before 0.1.0 have it
        sample = None if image is None else Sample(row["sample"], "", "", Path(image))
        return cls(row["split"], row["sample"], row["reason"], sample)


class SampleFilter:
    """One split of a data set, or `samples` of it. Raises: DataError as the data set does, where bad samples are errors."""

    def __init__(self, data: DataConfig, split: Split, samples: Sequence[Sample] | None = None) -> None:
        self.split = split
        self.skips = data.on_bad_sample == "skip"
        self.skipped: list[Skipped] = []
        if samples is None:
            reading = data.usable(split)
            samples = reading.samples
            self.skipped += [Skipped.of(split, issue) for issue in reading.issues if issue.fatal]
        self.samples = list(samples)

    def skip(self, sample: Sample, reason: str) -> None:
        """Leave a sample out from now on."""
        self.skipped.append(Skipped(self.split, sample.id, reason, sample))

    def with_question(self) -> list[Sample]:
        """The samples that ask something. Raises: DataError naming the others, unless bad samples are skipped."""
        blank = [sample for sample in self.samples if not sample.question.strip()]
        if blank and not self.skips:
            issues = [Issue("empty question", sample.id) for sample in blank]
            refuse(f"data.{self.split}", issues, "write them, or set data.on_bad_sample=skip")
        for sample in blank:
            self.skip(sample, "empty question")
        self.samples = [sample for sample in self.samples if sample.question.strip()]
        return self.samples

    def readable(self, progress: Progress | None = None) -> list[Sample]:
        """The samples whose images can be read; with `on_bad_sample: error` all of them, unopened.

        Raises: DataError where not one is left.
        """
        if not self.skips:
            return self.samples
        images = each_image(self.samples)
        found = zip(images, image_issues(images, progress=progress), strict=True)
        bad = {one.image: issue for one, issue in found if issue is not None}
        kept = []
        for sample in self.samples:
            fault = next((bad[image] for image in sample.images if image in bad), None)
            if fault is not None:
                self.skip(sample, Skipped.of(self.split, fault).reason)
            else:
                kept.append(sample)
        if not kept and self.samples:
            raise DataError(f"data.{self.split}: not one of {len(self.samples):,} samples can be read; the first: "
                            f"{self.skipped[0].place}: {self.skipped[0].reason}")  # fmt: skip
        return kept


def write_skipped(file: Path, skipped: Sequence[Skipped]) -> Path | None:
    """List samples in a file, a JSON object a line; None where there are none. Raises: DataError where it cannot be written."""
    if not skipped:
        return None
    with atomic.writing(file, DataError):
        file.parent.mkdir(parents=True, exist_ok=True)
        lines = (json.dumps(one.row(), ensure_ascii=False) + "\n" for one in skipped)
        return atomic.write_text(file, "".join(lines))


def summary(skipped: Sequence[Skipped], file: Path | None = None) -> str:
    """Lines for the end of a command; an empty text where nothing was skipped."""
    if not skipped:
        return ""
    count = len(skipped)
    lines = [f"skipped {count:,} sample{'s' if count > 1 else ''}{f', listed in {file}' if file else ''}:"]
    lines += [f"  {one.split} {one.place}: {one.reason}" for one in skipped[:SHOWN]]
    return "\n".join([*lines, f"  and {count - SHOWN:,} more"] if count > SHOWN else lines)


def with_skipped(predictions: Sequence[Prediction], samples: Sequence[Sample], skipped: Sequence[Skipped]) -> list[Prediction]:
    """Predictions of all `samples` in their order, those that were not asked without an answer; the others come in order."""
    reasons = {one.sample: one.reason for one in skipped if one.sample is not None}
    asked = iter(predictions)
    return [_not_asked(sample, reasons[sample]) if sample in reasons else next(asked) for sample in samples]


def _not_asked(sample: Sample, reason: str) -> Prediction:
    return Prediction(
        sample.id,
        kind=sample.kind,
        question=sample.question,
        image=str(sample.image),
        answer=sample.answer,
        prediction="",
        skipped=reason,
    )


def note_skipped(scores: Scores, skipped: Sequence[Skipped]) -> Scores:
    """Scores that say what was skipped: a question with its reference counts as wrong, a row without one is missing."""
    if not skipped:
        return scores
    wrong = sum(one.sample is not None for one in skipped)
    notes = [f"questions that could not be asked, counted as wrong: {wrong:,}"] if wrong else []
    if wrong < len(skipped):
        notes.append(f"rows that are no question, missing from the scores: {len(skipped) - wrong:,}")
    facts = {**scores.facts, "skipped": [one.row() for one in skipped]}
    return replace(scores, facts=facts, notes=[*scores.notes, *notes])


def no_images(data: DataConfig, part: str, samples: Sequence[Sample], reads_images: bool | None) -> Issue | None:
    """An issue for samples of which not one has an image; None where one has, or where the recipe says so.

    reads_images: whether the graph reads images, None where that is not known; the issue is then no fault.
    """
    if reads_images is False or data.means_text_only or not samples or any(one.image is not None for one in samples):
        return None
    detail = f"{len(samples):,} samples; name the column of images, or set data.text_only=true if none is meant to have one"
    return Issue("no sample has an image", part, detail, fatal=bool(reads_images))


def image_issues(samples: Sequence[Sample], open_images: bool = True, progress: Progress | None = None) -> Iterator[Issue | None]:
    """For each sample what is wrong with its image, or None. open_images: decode it, not only look for its file."""
    with ThreadPoolExecutor(THREADS) as pool:
        found = pool.map(lambda sample: image_issue(sample, open_images), samples)
        for number, issue in enumerate(found, start=1):
            if progress is not None and (number % REPORTED == 0 or number == len(samples)):
                progress(number, len(samples))
            yield issue


def image_issue(sample: Sample, open_images: bool = True) -> Issue | None:
    """What is wrong with a sample's image, or None. open_images: decode it, not only look for its file."""
    if isinstance(sample.image, Path) and not os.path.isfile(sample.image):
        return Issue("missing image", sample.id, str(sample.image))
    if not open_images:
        return None
    try:
        read_image(sample.image)
    except ImageError as error:
        return Issue("broken image", sample.id, str(error))
    return None
