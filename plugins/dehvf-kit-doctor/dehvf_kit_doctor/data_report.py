"""Everything wrong with a data set, found at once: its files, its samples, its images, its size beside the published one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dehvf_kit.api.registry import plugin_code
from dehvf_kit.data.sample_filter import image_issues, no_images
from dehvf_kit.data.samples import DataConfig, Issue, Published, Reading, Sample, each_image, grouped
from dehvf_kit.errors import DataError, PluginError

Progress = Callable[[str, int, int], None]
UNREADABLE = "cannot be read"


@dataclass(frozen=True)
class PartReport:
    """What was found in one split. count: its size in the unit of the published figure, where there is one."""

    name: str
    samples: int
    with_image: int
    images: int
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
            "samples_with_image": self.with_image,
            "images": self.images,
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
        with_image = sum(sample.image is not None for sample in reading.samples)
        count = len(reading.samples) if reading.count is None else reading.count
        counts = (len(reading.samples), with_image, len(images), count)
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
