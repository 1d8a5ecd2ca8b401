"""Everything wrong with a data set, found at once: its files, its samples, its images, its size beside the published one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dehvf_kit.api.plugin_code import plugin_code
from dehvf_kit.data.issues import PREPARE, Issue, grouped
from dehvf_kit.data.sample_filter import image_issues, no_images
from dehvf_kit.data.samples import DataConfig, Published, Reading, Sample, each_image
from dehvf_kit.data.stream import LOOKED_AT, SampleStream
from dehvf_kit.errors import DataError, PluginError
from dehvf_kit.utils.atomic import exists

Progress = Callable[[str, int, int], None]
UNREADABLE = "cannot be read"


@dataclass(frozen=True)
class PartReport:
    """What was found in one split. count: its size in the unit of the published figure, where there is one."""

    name: str
    samples: int
    with_picture: int
    pictures: int
    count: int
    published: Published | None
    facts: Mapping[str, int]
    issues: Sequence[Issue]

    @property
    def sound(self) -> bool:
        """Whether nothing in it would stop a run."""
        return not any(issue.fatal for issue in self.issues)

    def row(self) -> dict[str, Any]:
        """As plain data, with every issue."""
        published = self.published
        return {
            "split": self.name,
            "samples": self.samples,
            "samples_with_picture": self.with_picture,
            "pictures": self.pictures,
            "count": self.count,
            "published": None if published is None else {**vars(published), "equal": published.count == self.count},
            "facts": dict(self.facts),
            "sound": self.sound,
            "issues": {
                kind: {"fatal": group[0].fatal, "count": len(group), "places": [str(issue) for issue in group]}
                for kind, group in grouped(self.issues).items()
            },
        }


def inspect_data(
    config: DataConfig, open_images: bool = True, progress: Progress | None = None, reads_images: bool | None = None
) -> list[PartReport]:
    """A report for each of a data set's `parts`.

    A split that cannot be read at all is a report with that one issue. An id in two splits is an issue of the later one, a
    fault where the sample is the same. reads_images: whether the recipe's graph reads images, None where no recipe is known;
    open_images: decode every image, not only look for its file.
    Where bad samples are skipped (`data.on_bad_sample`), their issues stop no run.
    """
    reports: list[PartReport] = []
    ids: dict[str, tuple[str, Sample]] = {}
    for part in config.parts():
        try:
            with plugin_code(config, "data"):
                reading = config.read(part)
        except (DataError, PluginError) as error:
            reading = Reading([], [Issue(UNREADABLE, part, str(error))])
        issues = [*reading.issues, *_sample_issues(reading.samples)]
        if not reading.samples and not any(issue.fatal for issue in issues):
            issues.append(Issue("no samples", part))
        for sample in reading.samples:
            if sample.id in reading.numbered:
                continue
            earlier, twin = ids.setdefault(sample.id, (part, sample))
            if earlier != part:
                issues.append(Issue("id in two splits", sample.id, f"{earlier} and {part}", fatal=twin == sample))
        blind = no_images(config, part, reading.samples, reads_images)
        issues += [blind] if blind is not None else []
        images = each_image(reading.samples)
        found = image_issues(images, open_images, _named(progress, part))
        issues += [issue for issue in found if issue is not None]
        if config.on_bad_sample == "skip":
            issues = [_skipped(issue) for issue in issues]
        with_picture = sum(sample.image is not None for sample in reading.samples)
        count = len(reading.samples) if reading.count is None else reading.count
        counts = (len(reading.samples), with_picture, len(images), count)
        reports.append(PartReport(part, *counts, config.published(part), reading.facts, issues))
    return reports


def _skipped(issue: Issue) -> Issue:
    """An issue of a sample that is excluded, so that it stops nothing; a split that cannot be read still does."""
    if not issue.fatal or issue.kind == UNREADABLE:
        return issue
    return replace(issue, kind=f"{issue.kind}, skipped", fatal=False)


def _named(progress: Progress | None, part: str) -> Callable[[int, int], None] | None:
    """A progress function that names the split."""
    return None if progress is None else lambda done, total: progress(f"reading images of {part}", done, total)


def _sample_issues(samples: Sequence[Sample]) -> Iterator[Issue]:
    for key, count in Counter(sample.id for sample in samples).items():
        if count > 1:
            yield Issue("id twice", key, f"{count} times")
    for sample in samples:
        if not sample.question.strip():
            yield Issue("empty question", sample.id)
        if not sample.answer.strip():
            yield Issue("empty answer", sample.id, fatal=False)


def recognise(place: Path, configs: Sequence[type[DataConfig]]) -> dict[str, Any]:
    """The data section of a recipe for a file or folder. Raises: DataError where no data set knows it as its own."""
    if not exists(place):
        raise DataError(f"there is no recipe, file or folder '{place}'")
    for config in configs:
        settings = config.recognise(place)
        if settings is not None:
            return {"type": config.model_fields["type"].default, **settings}
    raise DataError(
        f"{place}: no data set that the kit knows: a folder with problems.json (scienceqa) or dataset_coco.json "
        "(coco_captions), a .json of conversations (llava), a .jsonl (jsonl), a .csv, .tsv, .json or .parquet, a folder of "
        "these, or a `datasets` folder (table); shards (.tar) in a recipe with data.type=stream"
    )


def training_data_at_hand(config: DataConfig, reads_images: bool | None) -> tuple[int, list[str]]:
    """Size and faults of a training split that is on this machine, of a stream those of its first rows; images are not opened.

    The size is 0 for a data set that may be downloaded, and where the data are not here.
    """
    stream = config.stream("train")
    size = len(stream) if isinstance(stream, SampleStream) else 0
    if getattr(config, "download", False):
        return size, []
    try:
        with plugin_code(config, "data"):
            reading = stream.reading(LOOKED_AT) if size else config.read(config.part_of("train"))
    except (DataError, PluginError):
        return size, []
    blind = no_images(config, "train", reading.samples, reads_images)
    issues = [*reading.issues, *([blind] if blind is not None else [])]
    if config.on_bad_sample == "skip":
        issues = [issue for issue in issues if issue is blind]
    groups = grouped(issue for issue in issues if issue.fatal)
    faults = [f"{len(group):,} x {kind}, the first: {group[0]}; {PREPARE}" for kind, group in groups.items()]
    return size or len(reading.samples), faults
