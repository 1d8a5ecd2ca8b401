"""easy-VQA's records and subsets; the test images are unseen in training."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path

import pytest
from dehvf_kit_demo.data import EasyVqaDataConfig
from dehvf_kit_demo.easy_vqa import EasyVqaRecord, load_easy_vqa, subset

from dehvf_kit.errors import DataError


@pytest.fixture
def records() -> list[EasyVqaRecord]:
    """20 images, image `i` with 1 + i % 5 questions: 60 in all."""
    return [
        EasyVqaRecord(Path(f"{image}.png"), f"question {number}?", "yes", image, "yes/no")
        for image in range(20)
        for number in range(1 + image % 5)
    ]


@pytest.mark.parametrize(
    ("split", "num_images", "by_type"),
    [
        ("train", 4000, {"yes/no": 28407, "colour": 5166, "shape": 5002}),
        ("test", 1000, {"yes/no": 7136, "colour": 1280, "shape": 1257}),
    ],
)
def test_reads_a_split(easy_vqa_wheel: None, split: str, num_images: int, by_type: dict[str, int]) -> None:
    records = load_easy_vqa(split)
    assert Counter(record.question_type for record in records) == by_type
    images = {record.image for record in records}
    assert len(images) == num_images and all(image.is_file() for image in images)
    assert all(record.image.stem == str(record.image_id) for record in records)


def test_first_record(easy_vqa_wheel: None) -> None:
    record = load_easy_vqa("test")[0]
    assert (record.question, record.answer, record.image_id) == ("what is the red shape?", "triangle", 0)
    assert record.question_type == "shape" and record.image.parts[-3:] == ("test", "images", "0.png")


def test_no_test_image_is_a_train_image(easy_vqa_wheel: None) -> None:
    train, test = (
        {hashlib.sha256(image.read_bytes()).digest() for image in {record.image for record in load_easy_vqa(split)}}
        for split in ("train", "test")
    )
    assert (len(train), len(test)) == (4000, 1000)  # nor is an image in one split twice
    assert not train & test


def test_unknown_split() -> None:
    with pytest.raises(DataError, match="there are train and test"):
        load_easy_vqa("validation")  # type: ignore[arg-type]


@pytest.mark.parametrize(("num_questions", "questions_per_image"), [(1, 1), (20, 1), (30, 3), (48, 3), (60, 5), (60, 99)])
def test_subset_bounds_the_images(records: list[EasyVqaRecord], num_questions: int, questions_per_image: int) -> None:
    chosen = subset(records, num_questions, questions_per_image=questions_per_image)
    assert len(chosen) == len(set(chosen)) == num_questions and set(chosen) <= set(records)
    per_image = Counter(record.image for record in chosen)
    assert max(per_image.values()) <= questions_per_image
    runs = [chosen[0].image, *(b.image for a, b in zip(chosen, chosen[1:], strict=False) if a.image != b.image)]
    assert len(runs) == len(per_image)  # an image's questions stay together


def test_subset_is_deterministic(records: list[EasyVqaRecord]) -> None:
    chosen = subset(records, 30, questions_per_image=3, seed=7)
    assert chosen == subset(records, 30, questions_per_image=3, seed=7)
    assert chosen != subset(records, 30, questions_per_image=3, seed=8)
    assert chosen[:11] == subset(records, 11, questions_per_image=3, seed=7)


@pytest.mark.parametrize(
    ("num_questions", "questions_per_image", "message"),
    [(0, 1, "must be 1 or more"), (1, 0, "must be 1 or more"), (21, 1, "20 images with up to 1 each have 20")],
)
def test_subset_refuses(records: list[EasyVqaRecord], num_questions: int, questions_per_image: int, message: str) -> None:
    with pytest.raises(DataError, match=message):
        subset(records, num_questions, questions_per_image=questions_per_image)


def test_subset_of_the_real_split_keeps_the_mix(easy_vqa_wheel: None) -> None:
    records = load_easy_vqa("test")
    chosen = subset(records, 1500, questions_per_image=4, seed=0)
    assert len({record.image for record in chosen}) <= 420
    share, expected = (Counter(record.question_type for record in some)["yes/no"] / len(some) for some in (chosen, records))
    assert abs(share - expected) < 0.05


def test_balanced_draws_the_types_in_turn() -> None:
    answers = {"yes/no": "yes", "colour": "red", "shape": "circle"}
    types = ["yes/no"] * 6 + ["colour", "shape"] * 2  # of each image
    records = [
        EasyVqaRecord(Path(f"{image}.png"), f"{number}?", answers[kind], image, kind)
        for image in range(5)
        for number, kind in enumerate(types)
    ]
    chosen = subset(records, 25, questions_per_image=5, balanced=True)
    for start in range(0, 25, 5):
        asked = chosen[start : start + 5]
        assert len({record.image for record in asked}) == 1
        assert set(Counter(record.question_type for record in asked).values()) in ({1, 2}, {2, 1})
    assert Counter(record.question_type for record in subset(records, 50, questions_per_image=10, balanced=True)) == {
        "yes/no": 30, "colour": 10, "shape": 10
    }  # fmt: skip


def test_balanced_leaves_the_test_split_as_it_is(easy_vqa_wheel: None) -> None:
    plain, balanced = (EasyVqaDataConfig(train_questions=300, test_questions=300, balanced=on) for on in (False, True))
    assert plain.samples("test") == balanced.samples("test")
    share = Counter(sample.kind for sample in balanced.samples("train"))["yes/no"] / 300
    assert share < 0.65 < Counter(sample.kind for sample in plain.samples("train"))["yes/no"] / 300
    with pytest.raises(ValueError, match="train_questions=0"):
        EasyVqaDataConfig(balanced=True)
