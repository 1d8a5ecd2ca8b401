"""VQA accuracy, ANLS and relaxed accuracy: values as lmms-eval 0.7.3's own functions return them, and their choice in a recipe."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dehvf_kit.data.jsonl import JsonlDataConfig
from dehvf_kit.data.metrics.exact_match import Prediction
from dehvf_kit.data.metrics.open_answers import METRICS
from dehvf_kit.errors import DataError

NINE = ["red"] * 9


@pytest.mark.parametrize(
    ("metric", "said", "references", "value"),
    [
        # vqav2_process_results, of rows that differ in `answer_id`
        ("vqa", "red", [*NINE, "blue"], 1.0),
        ("vqa", "blue", [*NINE, "blue"], 0.3),
        ("vqa", "blue", [*["red"] * 8, "blue", "blue"], 0.6),
        ("vqa", "blue", [*["red"] * 7, "blue", "blue", "blue"], 0.9),
        ("vqa", "green", [*NINE, "blue"], 0.0),
        ("vqa", "The two.", ["2"] * 10, 1.0),
        ("vqa", "none", ["0"] * 10, 1.0),
        ("vqa", "dont know", ["Don't know"] * 10, 1.0),
        ("vqa", "shes here", ["she's here"] * 10, 0.0),  # the table of contractions has `she's` twice, and not `shes`
        ("vqa", "somebody'd", ["somebodyd"] * 10, 1.0),
        ("vqa", "1,000", ["1000"] * 10, 1.0),
        ("vqa", "hot-dog", ["hot dog"] * 10, 1.0),
        ("vqa", "hot - dog", ["hot dog"] * 10, 1.0),
        ("vqa", "3.5", ["35"] * 10, 0.0),
        ("vqa", "U.S.", ["us"] * 10, 1.0),
        # anls
        ("anls", "Hello  World", ["hello world"], 1.0),
        ("anls", "helo world", ["hello world", "no"], 1 - 1 / 11),
        ("anls", "abcd", ["abxy"], 0.5),
        ("anls", "abcd", ["axyz"], 0.0),
        ("anls", "", [""], 1.0),
        ("anls", "ß", ["/"], 0.5),  # its length is that in capitals, SS
        # relaxed_correctness
        ("relaxed", "52.4", ["50"], 1.0),
        ("relaxed", "52.5", ["50"], 1.0),
        ("relaxed", "52.6", ["50"], 0.0),
        ("relaxed", "0.5", ["50%"], 1.0),
        ("relaxed", "0", ["0.0"], 0.0),
        ("relaxed", "-47.5", ["-50"], 1.0),
        ("relaxed", "Red", ["red"], 1.0),
        ("relaxed", "red.", ["red"], 0.0),
    ],
)
def test_values_are_those_of_lmms_eval(metric: str, said: str, references: list[str], value: float) -> None:
    assert METRICS[metric](said, references) == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize("metric", ["exact_match", "anls"])
def test_a_kind_called_all_has_a_figure_of_its_own(metric: str) -> None:
    rows = [prediction("a", "red", kind="all"), prediction("b", "blue", kind="x"), prediction("c", "blue", kind="x")]
    found = JsonlDataConfig(metric=metric).score(rows)
    assert [(one.name, one.count) for one in found.scores] == [("all", 3), ("kind all", 1), ("x", 2)]
    assert found.facts["by_kind"]["kind all"]["questions"] == 1


def prediction(key: str, said: str, references: tuple[str, ...] = (), **more: str) -> Prediction:
    return Prediction(key, more.get("kind", ""), "q", "", "red", said, more.get("skipped", ""), references=references)


def test_the_recipe_chooses_and_the_mean_is_reported_by_kind(tmp_path: Path) -> None:
    given = [[*NINE, "blue"], [*["red"] * 8, "blue", "blue"]]
    rows = [{"question": "what ?", "answer": answers, "kind": "colour", "id": str(n)} for n, answers in enumerate(given)]
    file = tmp_path / "test.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = JsonlDataConfig(test=file, metric="vqa", text_only=True)
    data.check_scoring()
    samples = data.samples("test")
    assert [len(one.references) for one in samples] == [10, 10] and samples[0].answer == "red"
    found = [prediction(one.id, "blue", one.references, kind="colour") for one in samples]
    scores = data.score([*found, prediction("2", "red", skipped="no image")])
    assert scores.headline.value == pytest.approx((0.3 + 0.6 + 0) / 3) and scores.headline.count == 3
    assert scores.facts["by_kind"]["colour"]["accuracy"] == pytest.approx(0.45) and not scores.notes
    assert scores.headline.low < scores.headline.value < scores.headline.high
    assert JsonlDataConfig(test=file).score(found).headline.value == 1.0, "one of the answers that were given"
    few = data.score([prediction("0", "red", ("red",) * 5)])
    assert few.headline.value == 1.0 and "fewer than ten answers: 1" in few.notes[0]


def test_vqa_accuracy_needs_its_answers_before_anything_is_asked(tmp_path: Path) -> None:
    file = tmp_path / "test.jsonl"
    file.write_text(json.dumps({"question": "what ?", "answer": "red"}) + "\n")
    with pytest.raises(DataError, match="sample '1' has too few answers, 1; wants the ten of VQA"):
        JsonlDataConfig(test=file, metric="vqa").check_scoring()
    JsonlDataConfig(test=file, metric="anls").check_scoring()
    assert JsonlDataConfig(test=file, metric="anls").score([prediction("1", "rad")]).headline.value == pytest.approx(2 / 3)
