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
from dehvf_kit.api.registry import Registry
from dehvf_kit.data.jsonl import JsonlDataConfig
from dehvf_kit.data.samples import PromptConfig
from dehvf_kit.errors import DataError, RecipeError
from dehvf_kit.evaluation.kept_answers import KeptAnswers
from dehvf_kit.recipe import builtin_plugin
from dehvf_kit.recipe.parser import parse_data
from dehvf_kit.recipe.plugin_manager import plugins

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
    monkeypatch.setattr(model.decoder.lm_head.weight, "data", model.decoder.lm_head.weight * torch.nan)
    with pytest.raises(DataError, match="sample '0': the log-likelihood of a choice is not finite"):
        choose(model, ChoicesDataConfig(train="", test=str(world / "test.jsonl")).samples("test"), "likelihood")


def as_type(folder: Path, rows: Sequence[dict[str, Any]], kind: str) -> dict[str, Any]:
    """The data section of these rows in the form that a type reads."""
    found = []
    for row in rows:
        turns = [("user", row["question"]), ("assistant", row["answer"])]
        given = {"id": row["id"], "image": row.get("image"), "choices": row["choices"]}
        if kind == "messages":
            found.append(given | {"messages": [{"role": role, "content": text} for role, text in turns]})
        elif kind == "llava":
            found.append(given | {"conversations": [{"from": SPEAKERS[role], "value": text} for role, text in turns]})
        else:
            found.append(given | {"question": row["question"], "answer": row["answer"]})
    file = folder / f"{kind}.jsonl"
    file.write_text("".join(json.dumps({key: value for key, value in row.items() if value}) + "\n" for row in found))
    more = {"size": 6} if kind == "stream" else {"prompt": PromptConfig().model_dump()} if kind == "messages" else {}
    named = {"type": kind, "train": str(file), "test": str(file), **more}
    if kind != "mixture":
        return named
    named = {"type": "table", "train": str(file), "test": str(file)}
    return {"type": "mixture", "sources": {"a": named, "b": named}, "weights": {"a": 1, "b": 1}}


SPEAKERS = {"user": "human", "assistant": "gpt"}
TYPES = ["jsonl", "table", "stream", "messages", "llava", "mixture"]


@pytest.mark.parametrize("kind", TYPES)
def test_rows_of_every_type_are_chosen_among_as_those_of_choices(world: Path, model: Any, kind: str) -> None:
    rows = [json.loads(line) for line in (world / "test.jsonl").read_text().splitlines()]
    wanted = choose(model, ChoicesDataConfig(train="", test=str(world / "test.jsonl")).samples("test"), "likelihood")
    data = as_type(world, rows, kind) | {"metric": "likelihood"}
    found = dehvf_kit.evaluate(model, data, allow_prompt_mismatch=True)
    sums = [list(one.likelihoods.values()) for one in wanted] * (2 if kind == "mixture" else 1)
    # float32, in batches of another order
    assert [list(one.likelihoods.values()) for one in found.predictions] == [pytest.approx(one, abs=5e-5) for one in sums]
    assert found.scores.headline.value == score("likelihood", wanted).headline.value
    assert {"acc", "acc_norm"} < {one.name for one in found.scores.scores}


def test_earlier_answers_of_a_conversation_are_not_counted(world: Path, model: Any) -> None:
    turns = [("user", "q"), ("assistant", "red"), ("user", "and?"), ("assistant", "blue")]
    messages = [{"role": role, "content": text} for role, text in turns]
    (world / "two.jsonl").write_text(json.dumps({"messages": messages, "choices": NAMES}))
    data = {"type": "messages", "train": "", "test": str(world / "two.jsonl"), "text_only": True, "metric": "likelihood"}
    config = parse_data(data | {"prompt": {"chat": False, "targets": "last"}}, "test", plugins().registry)
    (one,) = choose(model, config.samples("test"), "likelihood")
    assert one.answer == "blue" and len(set(one.likelihoods.values())) == len(NAMES)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"type": "coco_captions", "metric": "likelihood"}, "metric"),
        ({"type": "easy_vqa", "metric": "likelihood"}, "metric=likelihood chooses among the `choices` of rows"),
        ({"type": "jsonl", "answer_is": "index"}, "answer_is=index is for rows with `choices`; set metric=likelihood"),
        ({"type": "scienceqa", "answer_is": "index"}, "ScienceQA has numbers, leave it out"),
        (
            {"type": "mixture", "metric": "likelihood", "sources": {"a": {"type": "easy_vqa"}, "b": {"type": "table"}}},
            "a: metric=likelihood chooses among",
        ),
    ],
)
def test_data_without_choices_is_refused_by_name(data: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        parse_data(data, "test", plugins().registry)


def test_choices_of_several_answers_are_refused(world: Path) -> None:
    turns = [{"from": SPEAKERS[role], "value": role} for role in ("user", "assistant") * 2]
    (world / "several.json").write_text(json.dumps([{"id": "1", "conversations": turns, "choices": ["assistant", "b"]}]))
    data = {"type": "llava", "test": str(world / "several.json"), "metric": "likelihood", "text_only": True}
    with pytest.raises(DataError, match="belong to one answer, the conversation has 2; set data.turns=first"):
        parse_data(data, "test", plugins().registry).samples("test")
    (sample,) = parse_data(data | {"turns": "first"}, "test", plugins().registry).samples("test")
    assert sample.choices == ("assistant", "b")


def test_a_missing_plugin_is_named(world: Path) -> None:
    bare = Registry()
    builtin_plugin.register_components(bare.register)
    with pytest.raises(RecipeError, match="data.metric: .*'choices' comes with the plugin dehvf-kit-benchmarks"):
        parse_data({"type": "jsonl", "metric": "likelihood"}, "test", bare)
    with pytest.raises(DataError, match="needs a plugin, which recipes load"):
        JsonlDataConfig(test=world / "test.jsonl", metric="likelihood").samples("test")


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
        ({"choices": None}, {}, r"missing column: choices \(no row has it. Columns: answer, question; set data.columns"),
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
