"""Multiple choice by likelihood: the sums, the rule of lm-eval and lmms-eval, rows of choices, and `eval` with it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from data.small_sets import COLOURS, picture, scienceqa
from dehvf_kit_benchmarks.choices import ChoicesDataConfig
from dehvf_kit_benchmarks.likelihood import Choice, ChoiceSample, choose, score
from evaluation.benchmarks import recipe, towers

import dehvf_kit
from dehvf_kit.errors import DataError, RecipeError
from dehvf_kit.evaluation.kept_answers import KeptAnswers

NAMES = list(COLOURS)
SETS = [NAMES, ["a square", "the picture of that image one"], ["Light has colours.", "red", "B", "It"]]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny towers, an image of each colour, and `test.jsonl`: six questions, two of them without an image."""
    folder = towers(tmp_path_factory.mktemp("choices"))
    for name in NAMES:
        picture(folder / f"{name}.png", name)
    rows = [
        {"id": str(n), "question": "What colour is it?" + " Look closely" * n, "choices": SETS[n % 3], "answer": SETS[n % 3][n % 2]}
        | ({"image": f"{NAMES[n % 3]}.png"} if n % 3 else {})
        for n in range(6)
    ]
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def model(world: Path) -> Any:
    torch.manual_seed(0)
    found = dehvf_kit.build(dehvf_kit.load_recipe(recipe(world, f"{{type: choices, train: '', test: {world / 'test.jsonl'}}}")))
    for parameter in found.trainable_parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return found


@torch.no_grad()
def by_hand(model: Any, sample: Any, choice: str) -> float:
    """The sum of one choice alone, no batch and no padding."""
    given = model.processor(images=[sample.image] if sample.image else None, text=[sample.question])
    tokens = torch.tensor([model.processor.tokenizer(f" {choice}", add_special_tokens=False)["input_ids"]])
    start = given.pop("input_ids")
    given.pop("attention_mask")
    has_image = {} if sample.image else {"has_image": torch.tensor([False])}
    logits = model(input_ids=torch.cat([start, tokens], 1), **given, **has_image).logits[:, start.shape[1] - 1 : -1]
    return float(logits.log_softmax(-1).gather(-1, tokens[..., None]).sum())


def test_sums_are_those_of_each_choice_alone_in_any_batch(world: Path, model: Any) -> None:
    samples: Any = ChoicesDataConfig(train="", test=str(world / "test.jsonl")).samples("test")
    found = {size: choose(model, samples, "likelihood", batch_size=size) for size in (1, 5, 32)}
    wanted = [[by_hand(model, one, choice) for choice in one.choices] for one in samples]
    for answers in found.values():
        given = [list(one.likelihoods.values()) for one in answers]
        # float32 sums over at most six tokens, in another order of operations
        assert all(one == pytest.approx(other, abs=5e-5) for one, other in zip(given, wanted, strict=True))
        for one, sums, sample in zip(answers, wanted, samples, strict=True):
            assert one.prediction == sample.choices[sums.index(max(sums))]
            lengths = [value / len(choice) for value, choice in zip(sums, sample.choices, strict=True)]
            assert one.likeliest("likelihood_norm") == sample.choices[lengths.index(max(lengths))]
    assert len({round(value, 3) for row in wanted for value in row}) > 15, "images and choices make a difference"


def said(sums: Sequence[float], choices: Sequence[str], answer: str) -> Choice:
    return Choice("1", "", "q", "", answer, choices[0], likelihoods=dict(zip(choices, sums, strict=True)))


@pytest.mark.parametrize(
    ("sums", "choices", "gold", "acc", "acc_norm"),
    [
        ([-3.0, -4.0, -9.0], ["a", "a dog", "a cat on a mat"], 0, 1.0, 0.0),
        ([-3.0, -4.0, -9.0], ["a", "a dog", "a cat on a mat"], 1, 0.0, 0.0),
        ([-3.0, -4.0, -9.0], ["a", "a dog", "a cat on a mat"], 2, 0.0, 1.0),
        ([-2.0, -2.0], ["red", "tan"], 0, 1.0, 1.0),  # the first among equals
        ([-2.0, -2.0], ["red", "tan"], 1, 0.0, 0.0),
        ([-8.0, -2.5, -2.6], ["ja", "ß", "ss"], 1, 1.0, 0.0),  # characters, not bytes
        ([-8.0, -2.5, -2.6], ["ja", "ß", "ss"], 2, 0.0, 1.0),
        ([-1e-9, -5.0], ["A", "B"], 0, 1.0, 1.0),
    ],
)
def test_the_rule_is_that_of_lmms_eval(
    sums: list[float], choices: list[str], gold: int, acc: float, acc_norm: float
) -> None:  # `acc` and `acc_norm` of `process_results` of lmms-eval 0.7.3, whose sums are losses
    one = said(sums, choices, choices[gold])
    assert [one.likeliest(rule) == choices[gold] for rule in ("likelihood", "likelihood_norm")] == [acc, acc_norm]
    found = {figure.name: figure.value for figure in score("likelihood", [one]).scores}
    assert (found["acc"], found["acc_norm"]) == (acc, acc_norm)


@pytest.mark.parametrize("metric", ["likelihood", "likelihood_norm"])
def test_eval_scores_by_the_metric_of_the_recipe(model: Any, tmp_path: Path, metric: str) -> None:
    found = dehvf_kit.evaluate(model, {"metric": metric}, output=tmp_path / "said.jsonl")
    assert [one.prediction for one in found.predictions] == [one.likeliest(metric) for one in found.predictions]
    assert found.scores.headline.value == sum(one.right for one in found.predictions) / 6
    assert {figure.name for figure in found.scores.scores} == {"all", "acc", "acc_norm"}
    assert found.scores.facts["all"] == found.scores.facts["acc" if metric == "likelihood" else "acc_norm"]
    rows = [json.loads(line) for line in (tmp_path / "said.jsonl").read_text().splitlines()]
    assert [list(row["likelihoods"]) for row in rows] == [SETS[n % 3] for n in range(6)]


def test_scienceqa_by_likelihood_has_its_nine_columns(world: Path, model: Any) -> None:
    folder = scienceqa(world / "sqa")
    data = dehvf_kit.load_recipe(recipe(world, f"{{type: scienceqa, path: {folder}, metric: likelihood}}")).data
    found = dehvf_kit.evaluate(model, data.model_dump(exclude_unset=True), allow_prompt_mismatch=True)
    assert all(set(one.likelihoods) == {f"The answer is {letter}." for letter in "ABC"} for one in found.predictions)
    assert [one.prediction for one in found.predictions] == [one.likeliest("likelihood") for one in found.predictions]
    right = sum(one.prediction == one.answer for one in found.predictions)
    assert found.scores.headline.value == right / 6 and len(found.scores.scores) == 9
    with pytest.raises(RecipeError, match="metric=likelihood scores answers that stand first, and format=QCM-LEA"):
        dehvf_kit.load_recipe(recipe(world, f"{{type: scienceqa, path: {folder}, metric: likelihood, format: QCM-LEA}}"))


def test_an_evaluation_that_was_ended_goes_on(world: Path, tmp_path: Path) -> None:
    kept = KeptAnswers(tmp_path / "kept")
    sample = ChoiceSample("1", "q", "a", choices=("a", "b"))
    (tmp_path / "kept").write_text(json.dumps({"place": 0, "text": json.dumps({"a": -2.0, "b": -1.0}), "cut": 0}) + "\n")
    kept = KeptAnswers(tmp_path / "kept")
    (found,) = choose(None, [sample], "likelihood", kept=kept)  # no model is asked
    assert found.prediction == "b" and found.likelihoods == {"a": -2.0, "b": -1.0}


def test_sums_that_are_not_finite_are_refused(world: Path, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model.decoder.lm_head, "weight", torch.nn.Parameter(model.decoder.lm_head.weight * torch.nan))
    with pytest.raises(DataError, match="sample '0': the log-likelihood of a choice is not finite"):
        choose(model, ChoicesDataConfig(train="", test=str(world / "test.jsonl")).samples("test"), "likelihood")


GOOD = {"question": "q", "choices": ["a", "b"], "answer": "a"}


@pytest.mark.parametrize(
    ("change", "settings", "answer"),
    [
        ({}, {}, "a"),
        ({"choices": '["a", "b"]'}, {}, "a"),
        ({"answer": 1}, {"answer_is": "index"}, "b"),
        ({"answer": "B"}, {"answer_is": "letter"}, "b"),
        ({"choices": [1, 2], "answer": 2}, {}, "2"),
        ({"options": ["x", "y"], "answer": "y"}, {"columns": {"choices": "options"}}, "y"),
    ],
)
def test_rows(tmp_path: Path, change: dict[str, Any], settings: dict[str, Any], answer: str) -> None:
    file = tmp_path / "test.jsonl"
    file.write_text(json.dumps({**GOOD, **change}))
    (sample,) = ChoicesDataConfig(train="", test=str(file), text_only=True, **settings).samples("test")
    assert sample.answer == answer and len(sample.choices) == 2


@pytest.mark.parametrize(
    ("change", "settings", "message"),
    [
        ({"answer": "c"}, {}, "'answer' is none of the 2 choices, given 'c'; data.answer_is=text wants its text"),
        ({"answer": 1}, {}, "given 1; data.answer_is=text"),
        ({"answer": 2}, {"answer_is": "index"}, "data.answer_is=index wants its number from 0"),
        ({"answer": "C"}, {"answer_is": "letter"}, "data.answer_is=letter wants its letter from A"),
        ({"answer": None}, {}, "is none of the 2 choices"),
        ({"choices": None}, {}, "'choices' wants a list of two texts or more, given None; set data.columns"),
        ({"choices": ["a"]}, {}, "a list of two texts or more"),
        ({"choices": ["a", " "]}, {}, "a list of two texts or more"),
        ({"choices": ["a", "a "]}, {}, "has a choice twice"),
        ({"choices": "a, b"}, {}, "a list of two texts or more"),
        ({"choices": {"text": ["a", "b"]}}, {}, "a list of two texts or more"),
    ],
)
def test_rows_that_are_refused(tmp_path: Path, change: dict[str, Any], settings: dict[str, Any], message: str) -> None:
    file = tmp_path / "test.jsonl"
    file.write_text(json.dumps({**GOOD, **change}))
    with pytest.raises(DataError, match=message):
        ChoicesDataConfig(train="", test=str(file), text_only=True, **settings).samples("test")
