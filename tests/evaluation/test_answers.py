"""Comparison of answers, and shares with their intervals."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dehvf_kit.data.samples import Sample
from dehvf_kit.evaluation import answers
from dehvf_kit.evaluation.answers import Prediction, PromptRow, accuracy, batches, share, tidy
from dehvf_kit.evaluation.kept_answers import Said


@pytest.mark.parametrize(
    ("text", "tidied"), [(" Red.\nand more", "red"), ("yes!", "yes"), ("", ""), ("\n", ""), ("  two words ", "two words")]
)
def test_tidy(text: str, tidied: str) -> None:
    assert tidy(text) == tidied


def test_accuracy_by_kind() -> None:
    rows = [("yes/no", "yes", "Yes."), ("yes/no", "no", "yes"), ("colour", "red", "red")]
    scores = accuracy([Prediction(str(n), kind, "?", "", truth, said) for n, (kind, truth, said) in enumerate(rows)])
    assert scores["all"]["accuracy"] == pytest.approx(2 / 3) and scores["all"]["questions"] == 3
    assert {kind: row["accuracy"] for kind, row in scores["by_kind"].items()} == {"yes/no": 0.5, "colour": 1.0}


def test_interval_is_wilsons() -> None:
    # Newcombe 1998, Statistics in Medicine 17:857, table I: 81 of 263 gives 0.2553 to 0.3662.
    row = share([True] * 81 + [False] * 182)
    assert (round(row["low"], 4), round(row["high"], 4)) == (0.2553, 0.3662)


def test_questions_of_one_length_share_a_batch_and_those_about_one_image_stand_together() -> None:
    rows = [PromptRow([0] * (7 if number % 50 else 30), [], 0) for number in range(300)]
    samples = [Sample(str(number), "?", "", Path(f"{number % 3}.png")) for number in range(300)]
    found = list(batches(rows, samples, 1, None))
    assert [len(batch) for batch in found] == [128, 128, 38, 6]
    assert sorted(place for batch in found for place in batch) == list(range(300))
    images = [samples[place].image for place in found[0]]
    assert sum(one != other for one, other in itertools.pairwise(images)) == 1, "98 about the first image, then the second"
    assert [len(batch) for batch in batches(rows, samples, 500, None)][0] == 32, "long answers take memory"
    assert [len(batch) for batch in batches(rows, samples, 1, 100)] == [100, 100, 100]
    assert list(batches(rows, samples, 1, 300)) == [list(range(300))], "what fits into one batch keeps its order"
    assert list(batches([], [], 1, 32)) == list(batches([], [], 1)) == []


@pytest.mark.parametrize(
    ("reads_images", "sampled", "wanted"), [(True, False, "01235"), (False, False, "01"), (False, True, "012345")], ids=str
)
def test_questions_that_nothing_tells_apart_are_asked_once(
    reads_images: bool, sampled: bool, wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = [Sample(str(n), "what" if n % 2 else "who", "", Path("a.png") if n in (1, 2, 5) else None) for n in range(6)]
    asked: list[str] = []

    def say(model: Any, batch: list[Sample], *_: Any) -> list[Said]:
        asked.extend(one.id for one in batch)
        return [Said(f"{one.question} of {one.id}", 0) for one in batch]

    monkeypatch.setattr(answers, "_say", say)
    monkeypatch.setattr(
        answers, "asked_rows", lambda _, rows, new: [PromptRow(list(map(ord, one.question)), [], 0) for one in rows]
    )
    model: Any = SimpleNamespace(reads_images=reads_images, generation_config=SimpleNamespace(do_sample=sampled, max_new_tokens=2))
    done: list[int] = []
    found = answers.answer(model, samples, 2, progress=lambda so_far, total: done.append(so_far))
    assert sorted(asked) == sorted(wanted) and done[-1] == 6 and done == sorted(done)
    assert [one.id for one in found] == list("012345")
    asked.clear()
    answers.answer(model, samples, 2, each=True)
    assert sorted(asked) == list("012345")
    assert all(one.prediction.startswith(one.question) for one in found)
