"""easy-VQA (github.com/vzhou842/easy-VQA): questions about one coloured shape on a 64x64 image, from its PyPI wheel.

train: 4,000 images, 38,575 questions; test: 1,000 other images, 9,673 questions; 13 answers.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dehvf_kit.errors import DataError
from dehvf_kit_demo.wheels import EASY_VQA

QuestionType = Literal["yes/no", "colour", "shape"]

ANSWERS: dict[QuestionType, tuple[str, ...]] = {
    "yes/no": ("yes", "no"),
    "colour": ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow"),
    "shape": ("circle", "rectangle", "triangle"),
}
"""Every answer there is, under the type of its question."""

_TYPE_OF_ANSWER: dict[str, QuestionType] = {answer: kind for kind, answers in ANSWERS.items() for answer in answers}


@dataclass(frozen=True)
class EasyVqaRecord:
    """One question: `image` is the path of a 64x64 RGB PNG; `image_id` counts from 0 in each split."""

    image: Path
    question: str
    answer: str
    image_id: int
    question_type: QuestionType


def load_easy_vqa(split: Literal["train", "test"]) -> list[EasyVqaRecord]:
    """All records of a split in the order of its file, those of one image together; no image is in both splits.

    Raises: DataError for another split or an unreadable file; DehvfError where the wheel is not installed.
    """
    if split not in ("train", "test"):
        raise DataError(f"easy_vqa: there is no split {split!r}; there are train and test")
    folder = EASY_VQA.file(f"data/{split}")
    questions_file = EASY_VQA.file(f"data/{split}/questions.json")
    try:
        questions = json.loads(questions_file.read_text(encoding="utf-8"))
        return [_record(folder, question, answer, image_id) for question, answer, image_id in questions]
    except (OSError, TypeError, ValueError) as error:
        raise DataError(f"{questions_file}: not a readable list of [question, answer, image id]: {error}") from error


def subset(
    records: Iterable[EasyVqaRecord], num_questions: int, *, questions_per_image: int = 4, seed: int = 0, balanced: bool = False
) -> list[EasyVqaRecord]:
    """`num_questions` records on few images: images are drawn first, then up to `questions_per_image` of each.

    About `num_questions / questions_per_image` images are used, a few more as some have fewer questions, so this bounds
    the cost of extracting features. The records of one image stay together, images come in the order drawn. Equal
    arguments give equal records, and fewer questions give the beginning of the same list. balanced: an image's questions are
    drawn from its types in turn, where three in four are yes/no otherwise.
    Raises: DataError where a count is not positive or there are not that many questions.
    """
    if num_questions < 1 or questions_per_image < 1:
        raise DataError(
            f"easy_vqa: num_questions and questions_per_image must be 1 or more, not {num_questions} and {questions_per_image}"
        )
    by_image: dict[Path, list[EasyVqaRecord]] = {}
    for record in records:
        by_image.setdefault(record.image, []).append(record)
    generator = random.Random(seed)
    images = list(by_image)
    generator.shuffle(images)
    chosen: list[EasyVqaRecord] = []
    for image in images:
        of_image = by_image[image]
        drawn = generator.sample(of_image, len(of_image) if balanced else min(questions_per_image, len(of_image)))
        chosen += _in_turn(drawn)[:questions_per_image] if balanced else drawn
        if len(chosen) >= num_questions:
            return chosen[:num_questions]
    raise DataError(
        f"easy_vqa: {num_questions} questions wanted, but {len(images)} images with up to {questions_per_image} each "
        f"have {len(chosen)}; raise questions_per_image or lower num_questions"
    )


def _in_turn(records: Sequence[EasyVqaRecord]) -> list[EasyVqaRecord]:
    """The first of each type, then the second of each, and so on."""
    seen: Counter[QuestionType] = Counter()
    turns = []
    for record in records:
        turns.append(seen[record.question_type])
        seen[record.question_type] += 1
    return [records[place] for place in sorted(range(len(records)), key=turns.__getitem__)]


def _record(folder: Path, question: str, answer: str, image_id: int) -> EasyVqaRecord:
    kind = _TYPE_OF_ANSWER.get(answer)
    if kind is None:
        raise DataError(f"{folder / 'questions.json'}: image {image_id}: unknown answer {answer!r} to {question!r}")
    return EasyVqaRecord(folder / "images" / f"{image_id}.png", question, answer, image_id, kind)
