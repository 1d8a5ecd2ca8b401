"""Data sets of one file for training and one for testing, or of one file of which a share is held out."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import Field

from dehvf_kit.data.issues import PREPARE, grouped, refuse
from dehvf_kit.data.samples import DataConfig, Reading, Sample, Split
from dehvf_kit.errors import DataError

log = logging.getLogger(__name__)


class FileSplitsConfig(DataConfig):
    """Parent of the data sets that are named by `train` and `test`. A subclass reads one of them: `read_file`."""

    validation: float = Field(
        0.0, ge=0, lt=1, description="share of the images of `train` that is held out as the test split, where `test` is not set"
    )
    validation_seed: int = Field(0, ge=0, description="another seed holds out other images")

    def read_file(self, part: str) -> Reading:
        """Everything that `train` or `test` names, with everything wrong with it."""
        raise NotImplementedError(f"{type(self).__name__}.read_file")

    def where(self, part: str) -> str:
        """What messages call a split."""
        return f"data.{part}"

    def parts(self) -> Sequence[str]:
        named = [part for part in ("train", "test") if getattr(self, part)]
        return ("train", "test") if self.validation else named

    def samples(self, split: Split) -> list[Sample]:
        reading = self.read(split)
        refuse(self.where(split), reading.issues, PREPARE)
        log_notes(self.where(split), reading)
        return list(reading.samples)

    def read(self, part: str) -> Reading:
        if not self.validation:
            return self.read_file(part)
        test: Any = getattr(self, "test", None)
        if test and test != type(self).model_fields["test"].default:
            raise DataError(f"data.validation is {self.validation:g} and data.test is '{test}'; leave one of them out")
        reading = self.read_file("train")
        groups = [self.group_of(sample) for sample in reading.samples]
        held_out = held_out_groups(groups, self.validation, self.validation_seed)
        kept = [sample for sample, group in zip(reading.samples, groups, strict=True) if (group in held_out) == (part == "test")]
        return replace(reading, samples=kept, count=None)

    def group_of(self, sample: Sample) -> str:
        """Samples of one group come into one split: those of one image; without an image, those of one question."""
        image = sample.image
        if image is None:
            return f"text {sample.question}"
        return str(image) if isinstance(image, Path) else hashlib.sha256(image.read_bytes()).hexdigest()


def held_out_groups(groups: Sequence[str], share: float, seed: int) -> set[str]:
    """A share of the distinct groups, at least one and not all; the choice does not depend on their order.

    Raises: DataError where there is only one.
    """
    ranked = sorted(set(groups), key=lambda group: hashlib.sha256(f"{seed} {group}".encode()).digest())
    if len(ranked) < 2:
        raise DataError("data.validation: all samples have one image, so none can be held out; set data.test")
    return set(ranked[: min(max(1, round(share * len(ranked))), len(ranked) - 1)])


def log_notes(where: str, reading: Reading) -> None:
    """Log what was read in another form than it was given, counted by kind."""
    for kind, group in grouped(issue for issue in reading.issues if not issue.fatal).items():
        log.warning("%s: %d x %s, the first: %s", where, len(group), kind, group[0])
