"""ScienceQA in its upstream layout, in flat variants of it, and as the `datasets` table derek-thomas/ScienceQA.

Upstream: `problems.json`, `pid_splits.json`, `captions.json`, and an image of a question at `images/<split>/<id>/image.png`,
`images/<id>/image.png` or `images/<id>.png`. Source: Lu et al. 2022, arXiv:2209.09513.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dehvf_kit_streams.hub_tables import TableImage, open_table, part_of, table_files
from pydantic import Field, field_validator, model_validator

from dehvf_kit.data.rows import named
from dehvf_kit.data.samples import PREPARE, DataConfig, Issue, PromptConfig, Published, Reading, Sample, Split, refuse
from dehvf_kit.errors import DataError, listing, shown
from dehvf_kit.utils.atomic import is_file, is_folder
from dehvf_kit.utils.plain_data import read_json
from dehvf_kit_benchmarks import likelihood
from dehvf_kit_benchmarks import scienceqa_columns as columns
from dehvf_kit_benchmarks.scienceqa_columns import UNANSWERED
from dehvf_kit_benchmarks.scienceqa_prompt import LETTERS, Problem, check_format, choice_of, prompt, reply, reply_start

if TYPE_CHECKING:
    from dehvf_kit.data.metrics.scores import Scores

SOURCE = "Lu et al. 2022, arXiv:2209.09513"
COUNTS = {"train": 12_726, "val": 4_241, "test": 4_241}
SUBJECTS = ("natural science", "social science", "language science")
USUAL_CHOICES = 5


class ScienceQaDataConfig(DataConfig):
    """ScienceQA: multiple-choice science questions, about half of them with an image."""

    type: Literal["scienceqa"] = "scienceqa"
    metric: Literal["scienceqa", "likelihood"] = Field(
        "scienceqa", description="the nine columns, of generated answers or of the likeliest choices"
    )
    path: str = Field("data/scienceqa", description="folder with problems.json, `datasets` folder, or hub id")
    download: bool = Field(False, description="allow fetching a hub id that is not on this machine")
    revision: str | None = Field(None, description="hub branch, tag or commit")
    train_split: Literal["train", "trainval", "minitrain"] = Field("train", description="what is trained on")
    test_split: Literal["test", "val", "minitest", "minival"] = Field("test", description="what is scored")
    format: str = Field("QCM-A", description="input parts, hyphen, output parts; letters Q C M L E A")
    captions: bool = Field(False, description="add the image's caption to the context")
    pictures: bool = Field(True, description="false: text alone, images are excluded")
    response: str = Field("Response:", description="last line of the prompt")
    prompt: PromptConfig = Field(
        default_factory=lambda: PromptConfig(question="{question}", answer="{answer}"),
        description="what stands around the formatted question and answer",
    )

    @field_validator("format")
    @classmethod
    def _format(cls, value: str) -> str:
        return check_format(value)

    @model_validator(mode="after")
    def _has_choices(self) -> ScienceQaDataConfig:
        if self.answer_is != "text":
            raise ValueError(f"answer_is={self.answer_is} is for rows with `choices`; ScienceQA has numbers, leave it out")
        if self.metric == "likelihood" and not reply_start(self.format):
            raise ValueError(f"metric=likelihood scores answers that stand first, and format={self.format} has them later")
        return self

    @classmethod
    def recognise(cls, place: Path) -> dict[str, Any] | None:
        return {"path": str(place)} if is_file(place / "problems.json") else None

    @property
    def means_text_only(self) -> bool:
        return self.text_only or not self.pictures

    def part_of(self, split: Split) -> str:
        return {"train": self.train_split, "validation": "val", "test": self.test_split}[split]

    def samples(self, split: Split) -> list[Sample]:
        reading = self.read(self.part_of(split))
        missing = [
            Issue("missing image", sample.id, str(sample.image))
            for sample in reading.samples
            if isinstance(sample.image, Path) and not os.path.isfile(sample.image)
        ]
        refuse(self.path, [*reading.issues, *missing], PREPARE)
        return list(reading.samples)

    def parts(self) -> Sequence[str]:
        return ("train", "val", "test")

    def files(self) -> list[Path]:
        folder = Path(os.path.expanduser(self.path))  # of the upstream folder texts and images are compared one by one
        return [file for part in dict.fromkeys((self.train_split, "val")) for file in table_files(folder, part)]

    def read(self, part: str) -> Reading:
        problems, issues = self.problems(part)
        facts = {"with an image": sum(problem.has_image for problem in problems)}
        return Reading([self._sample(problem) for problem in problems], issues, len(problems), facts)

    def published(self, part: str) -> Published | None:
        return Published(COUNTS[part], "questions", SOURCE) if part in COUNTS else None

    def prompt_facts(self) -> dict[str, Any]:
        facts = {"format": self.format, "captions": self.captions, "response": self.response, "pictures": self.pictures}
        return {**super().prompt_facts(), **facts}

    def ask(self, answer: Callable[..., Sequence[Any]], model: Any, samples: Sequence[Any], **settings: Any) -> Sequence[Any]:
        return (
            likelihood.choose(model, samples, "likelihood", **settings)
            if self.metric == "likelihood"
            else answer(model, samples, **settings)
        )

    def score(self, predictions: Sequence[Any]) -> Scores:
        """The nine columns; an answer that names no choice is wrong, and counted as such in a note."""
        problems = {problem.id: problem for problem in self.problems(self.test_split)[0]}
        asked = [problems[one.id] for one in predictions]
        found = {one.id: choice_of(one.prediction, problems[one.id].choices) for one in predictions}
        return columns.score(asked, {key: UNANSWERED if index is None else index for key, index in found.items()})

    def problems(self, part: str) -> tuple[list[Problem], list[Issue]]:
        """The questions of a split that can be used, and everything wrong with it.

        Raises: DataError where there is no such data set or split.
        """
        folder = Path(os.path.expanduser(self.path))
        if is_file(folder / "problems.json"):
            return _upstream(folder, part, self.captions, self.pictures)
        if is_folder(folder) and not any(folder.iterdir()):
            raise DataError(f"{self.path}: is empty; wants problems.json and pid_splits.json, or a `datasets` folder")
        if self.captions:
            raise DataError(f"{self.path}: a table has no captions; set captions=false, or use the upstream folder")
        return _table(self.path, part, self.download, self.revision, self.pictures)

    def _sample(self, problem: Problem) -> Sample:
        sample = Sample(
            id=problem.id,
            question=prompt(problem, self.format, self.captions, self.response),
            answer=reply(problem, self.format),
            image=problem.image,
            kind=problem.subject,
            answer_start=reply_start(self.format),
        )
        if self.metric != "likelihood":
            return sample
        letters = (reply(replace(problem, answer=number), "Q-A") for number in range(len(problem.choices)))
        return likelihood.with_choices(sample, tuple(letters))


def _upstream(folder: Path, part: str, captions: bool, with_images: bool) -> tuple[list[Problem], list[Issue]]:
    rows, ids, repeated = _files(folder, part)
    told = _captions(folder) if captions else {}
    issues = [Issue("id twice in problems.json" if key in rows else "field twice in problems.json", key) for key in repeated]
    problems, seen = [], set()
    for key in ids:
        if key in seen:
            issues.append(Issue("id twice in pid_splits.json", f"{part}/{key}"))
            continue
        seen.add(key)
        if key not in rows:
            issues.append(Issue("id missing from problems.json", f"{part}/{key}"))
            continue
        found = list(_faults(rows[key], f"{part}/{key}"))
        issues += found
        if any(issue.fatal for issue in found) or key in repeated:
            continue
        image = None
        if with_images and rows[key].get("image"):
            image = _image(folder / "images", part, rows[key].get("split"), key, str(rows[key]["image"]))
        problems.append(_problem(key, rows[key], told.get(key, ""), image))
    return problems, issues


def _files(folder: Path, part: str) -> tuple[Mapping[str, Any], Sequence[str], Sequence[str]]:
    """problems.json, the ids of a split, and the keys that an object in problems.json has twice."""
    repeated: list[str] = []
    rows = read_json(folder / "problems.json", repeated)
    splits = read_json(folder / "pid_splits.json")
    if not isinstance(rows, dict):
        raise DataError(f"{folder / 'problems.json'}: wants an object of questions by id")
    if not isinstance(splits, dict) or not isinstance(splits.get(part), list):
        there = listing(splits) if isinstance(splits, dict) else shown(splits)
        raise DataError(f"{folder / 'pid_splits.json'}: has no split '{part}'; it has {there}")
    odd = [key for key in splits[part] if named(key, None) is None]
    if odd:
        raise DataError(f"{folder / 'pid_splits.json'}: {part}: an id is a text or a number, given {shown(odd[0])}")
    return rows, [str(key) for key in splits[part]], repeated


def _captions(folder: Path) -> Mapping[str, str]:
    file = folder / "captions.json"
    found = read_json(file)
    found = found.get("captions") if isinstance(found, dict) else None
    if not isinstance(found, dict) or not all(isinstance(caption, str) for caption in found.values()):
        raise DataError(f"{file}: wants an object with `captions`, a caption by question id")
    return found


def _image(images: Path, part: str, split: Any, key: str, name: str) -> Path:
    """The first place of an image's that is there, or the upstream one where none is."""
    folders = dict.fromkeys([str(split or part), part])
    places = [images / folder / key / name for folder in folders]
    places += [images / key / name, *(images / f"{key}{ending}" for ending in (Path(name).suffix, ".png", ".jpg"))]
    return next((place for place in places if os.path.isfile(place)), places[0])


def _table(source: str, part: str, download: bool, revision: str | None, with_images: bool) -> tuple[list[Problem], list[Issue]]:
    """Questions of a table; it has no ids, so `<split>/<row>` stands for them."""
    table = open_table(source, part, download, revision)
    bare = table.remove_columns("image") if "image" in table.column_names else table
    has_image = _filled(table)
    problems, issues = [], []
    for number, row in enumerate(bare):
        key = f"{part}/{number}"
        found = list(_faults(row, key))
        issues += found
        if any(issue.fatal for issue in found):
            continue
        held = with_images and has_image[number]
        image = TableImage(source, number, "image", table, part=part_of(part, revision)) if held else None
        problems.append(_problem(key, {**row, "image": has_image[number]}, "", image))
    return problems, issues


def _filled(table: Any) -> list[bool]:
    """For each row whether its `image` holds one, without reading any."""
    if "image" not in table.column_names:
        return [False] * len(table)
    return [valid for chunk in table.data.column("image").chunks for valid in chunk.is_valid().to_pylist()]


def _faults(row: Any, place: str) -> Iterator[Issue]:
    """What is wrong with one question."""
    if not isinstance(row, Mapping):
        yield Issue("not a question", place, shown(row))
        return
    if not isinstance(row.get("question"), str) or not row["question"].strip():
        yield Issue("empty question", place)
    choices = row.get("choices")
    if not isinstance(choices, (list, tuple)) or not choices:
        yield Issue("no choices", place)
        return
    if not all(isinstance(choice, str) and choice.strip() for choice in choices):
        yield Issue("empty choice", place)
    if len(choices) > len(LETTERS):
        yield Issue("too many choices", place, f"{len(choices)}, there are {len(LETTERS)} letters")
    elif len(choices) > USUAL_CHOICES:
        yield Issue("more than five choices", place, f"lettered A to {LETTERS[len(choices) - 1]}", fatal=False)
    answer = row.get("answer")
    if not isinstance(answer, int) or isinstance(answer, bool) or not 0 <= answer < len(choices):
        yield Issue("answer is no choice", place, f"{shown(answer)} of {len(choices)}")
    if row.get("subject") not in SUBJECTS:
        yield Issue("unknown subject", place, shown(row.get("subject")))
    for name in ("hint", "lecture", "solution", "image", "split"):
        if row.get(name) is not None and not isinstance(row[name], str):
            yield Issue(f"{name} is no text", place, shown(row[name]))
    if not _grade(row):
        yield Issue("unknown grade", place, shown(row.get("grade")))


def _grade(row: Mapping[str, Any]) -> int:
    """1 to 12; 0 for anything else."""
    digits = str(row["grade"]).removeprefix("grade") if isinstance(row.get("grade"), (str, int)) else ""
    return int(digits) if digits.isdecimal() and len(digits) <= 2 and 1 <= int(digits) <= 12 else 0


def _problem(key: str, row: Mapping[str, Any], caption: str, image: Any) -> Problem:
    texts = {name: row.get(name) or "" for name in ("hint", "lecture", "solution", "subject")}
    return Problem(
        id=key,
        question=row["question"],
        choices=tuple(row["choices"]),
        answer=row["answer"],
        caption=caption,
        grade=_grade(row),
        has_image=bool(row.get("image")),
        image=image,
        **texts,
    )


def read_results(file: Path, problems: Sequence[Problem], missing_wrong: bool = False) -> dict[str, int]:
    """Anybody's predictions, `{"results": {id: index}}` or the inner object alone; -1 or null where nothing was answered.

    missing_wrong: take questions without a prediction for unanswered. Raises: DataError listing missing, unknown and repeated
    ids and values that are no index.
    """
    repeated: list[str] = []
    found: Any = read_json(file, repeated)
    if isinstance(found, dict) and isinstance(found.get("results"), dict):
        found = found["results"]
    if not isinstance(found, dict):
        raise DataError(f'{file}: wants {{"results": {{"1": 0, ...}}}}, the index of a choice by question id')
    wanted = {problem.id for problem in problems}
    issues = [Issue("id twice", key) for key in repeated]
    issues += [Issue(f"id not among the {len(wanted):,} questions of this split", key) for key in found if key not in wanted]
    if not missing_wrong:
        issues += [
            Issue("question without a prediction (--missing-wrong counts it as wrong)", problem.id)
            for problem in problems
            if problem.id not in found
        ]
    results = {}
    for key, value in found.items():
        if value is None:
            value = UNANSWERED
        if isinstance(value, bool) or not isinstance(value, int):
            issues.append(Issue("not the index of a choice", key, shown(value)))
        results[key] = value
    refuse(str(file), issues)
    return results
