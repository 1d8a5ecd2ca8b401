"""ScienceQA and COCO captions from their files to the benchmark's figures: prepare, look, train, eval, score."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from cli.commands import Command
from data.small_sets import coco, scienceqa
from evaluation.benchmarks import recipe, towers

import dehvf_kit
from dehvf_kit.data.encoding import EncodedSamples
from dehvf_kit.evaluation.answers import answer, prompts


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return towers(tmp_path_factory.mktemp("towers"))


@pytest.fixture
def trained(base: Path, tmp_path: Path, command: Command) -> Path:
    """A run of two steps on the small ScienceQA."""
    file = recipe(base, f"{{type: scienceqa, path: {scienceqa(tmp_path / 'sqa')}}}")
    ended = command("train", file, "--output", tmp_path / "run")
    assert ended.code == 0 and "2 steps" in ended.out
    return tmp_path / "run/adapter"


def test_scienceqa_from_files_to_columns(trained: Path, tmp_path: Path, command: Command) -> None:
    results = tmp_path / "results.json"
    ended = command("eval", trained, "--json", "--results", results, "--output", tmp_path / "answers.jsonl")
    assert ended.code == 0, ended.err
    found = json.loads(ended.out)
    assert found["columns"]["Avg"]["count"] == 6 and found["prompt_mismatch"] == []
    assert list(json.loads(results.read_text())["results"]) == ["13", "14", "15", "16", "17", "18"]
    rows = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert all(row["prediction"].startswith("The answer is") for row in rows)
    scored = command("score", "scienceqa", "--predictions", results, "--data", tmp_path / "sqa", "--json")
    assert json.loads(scored.out)["columns"] == found["columns"]
    limited = json.loads(command("eval", trained, "--json", "--limit", 2).out)
    assert limited["columns"]["Avg"]["count"] == 2
    val = json.loads(command("eval", trained, "data.test_split=val", "--json").out)
    assert val["columns"]["Avg"]["count"] == 4


def test_questions_are_asked_in_the_tokens_trained_on(base: Path, tmp_path: Path) -> None:
    found = dehvf_kit.load_recipe(recipe(base, f"{{type: scienceqa, path: {scienceqa(tmp_path / 'sqa')}}}"))
    model = dehvf_kit.build(found)
    samples = found.data.samples("train")
    trained = EncodedSamples(samples, model.processor, found.data.prompt, 512, images=False).tokens
    inputs, starts = prompts(model.processor, samples)
    for row, mask, start, (tokens, labels) in zip(
        inputs["input_ids"].tolist(), inputs["attention_mask"].tolist(), starts, trained, strict=True
    ):
        asked = [token for token, kept in zip(row, mask, strict=True) if kept]
        assert tokens[: len(asked)] == asked and len(tokens) == len(asked) + 3  # letter, full stop, end
        assert labels[len(asked) - len(start) : len(asked)] == start
    said = answer(model, samples, max_new_tokens=1)
    assert all(re.fullmatch(r"The answer is( \S+)?", one.prediction) for one in said)


@pytest.mark.nightly
def test_coco_from_files_to_metrics(base: Path, tmp_path: Path, command: Command) -> None:
    pytest.importorskip("pycocoevalcap", reason="needs the extra `eval`")
    if shutil.which("java") is None:
        pytest.skip("needs Java on the PATH for the PTB tokeniser and METEOR")
    folder = coco(tmp_path / "coco")
    data = f"{{type: coco_captions, annotations: {folder}/dataset_coco.json, images: {folder}, restval: true}}"
    file = recipe(base, data, steps=60)
    assert command("prepare", file).code == 0
    assert command("train", file, "--output", tmp_path / "run").code == 0
    results = tmp_path / "captions.json"
    ended = command("eval", tmp_path / "run/adapter", "--json", "--results", results)
    assert ended.code == 0, ended.err
    found = json.loads(ended.out)
    assert found["metrics"]["CIDEr"]["count"] == 3 and 0 < found["metrics"]["BLEU-1"]["value"] <= 1
    assert [set(row) for row in json.loads(results.read_text())] == [{"image_id", "caption"}] * 3
    scored = command("score", "coco", "--predictions", results, "--references", folder / "dataset_coco.json", "--json")
    assert json.loads(scored.out)["metrics"] == found["metrics"]


def test_training_stops_at_what_is_missing(base: Path, tmp_path: Path, command: Command) -> None:
    folder = scienceqa(tmp_path / "sqa", q1={"choices": []})
    (folder / "images/train/2/image.png").unlink()
    ended = command("train", recipe(base, f"{{type: scienceqa, path: {folder}}}"), "--output", tmp_path / "run")
    assert ended.code == 1 and not (tmp_path / "run").exists()
    for text in ("no choices: train/1", "missing image: 2 (", "dehvf-kit prepare lists all of it"):
        assert text in ended.err, text


def test_peek_shows_tokens_mask_and_picture(base: Path, tmp_path: Path, command: Command) -> None:
    file = recipe(base, f"{{type: scienceqa, path: {scienceqa(tmp_path / 'sqa')}}}")
    ended = command("data", file, "--peek", 2, "--json")
    found = json.loads(ended.out)
    first, second = found["peek"]
    assert found["samples"] == 8 and first["image"] is None
    assert second["image"]["size"] == [40, 40] and second["image"]["pixel_values"] == {"vision": [1, 3, 32, 32]}
    loss = [token["text"] for token in second["tokens"] if token["loss"]]
    assert loss == ["The", "answer", "is", "C", ".", "<eos>"]
    assert [token["loss"] for token in second["tokens"]].index(True) == len(second["tokens"]) - 6
    assert (second["asked_with"], second["cut"]) == ("The answer is", 0)
    assert json.loads(command("data", file, "training.max_length=10", "--json").out)["peek"][0]["cut"] > 0
    text = command("data", file, "--peek", 2).out
    assert "[The]·[answer]·[is]·[C]·[.]·[<eos>]" in text and "40x40; vision sees 32x32" in " ".join(text.split())
    assert f"prompt fingerprint {found['fingerprint']['hash']}" in text


def test_a_blind_graph_gets_no_picture(base: Path, tmp_path: Path, command: Command) -> None:
    file = recipe(base, f"{{type: scienceqa, path: {scienceqa(tmp_path / 'sqa')}}}")
    blind = [f"graph.{node}=null" for node in ("grouper", "layer_query", "projector", "fuser")]
    found = json.loads(command("data", file, *blind, "--peek", 2, "--json").out)
    assert [one["image"] for one in found["peek"]] == [None, None]


def test_in_a_chat_template_the_answer_stands_in_the_models_turn(base: Path, tmp_path: Path) -> None:
    data = f"{{type: scienceqa, path: {scienceqa(tmp_path / 'sqa')}, prompt: {{chat: true, question: '{{question}}'}}}}"
    found = dehvf_kit.load_recipe(recipe(base, data.replace("'}}", "', answer: '{answer}'}}")))
    model = dehvf_kit.build(found)
    model.processor.tokenizer.chat_template = (
        "{% for m in messages %}Question {{ m['content'] }} {% endfor %}{% if add_generation_prompt %}Response : {% endif %}"
    )
    samples = found.data.samples("train")[:2]
    trained = EncodedSamples(samples, model.processor, found.data.prompt, 512, images=False).tokens
    inputs, _ = prompts(model.processor, samples)
    text = model.processor.tokenizer.decode(trained[0][0])
    assert text.startswith("Question Question :") and text.endswith("Response : Response : The answer is B . <eos>")
    asked = inputs["input_ids"][0].tolist()
    asked = asked[inputs["attention_mask"][0].tolist().index(1) :]
    assert trained[0][0][: len(asked)] == asked


def test_another_prompt_is_refused_field_by_field(trained: Path, command: Command) -> None:
    words = ["data.captions=true", "data.format=QCM-LEA", "vision.image.normalisation=clip"]
    ended = command("eval", trained, *words)
    assert ended.code == 1 and ended.out == ""
    lines = [" ".join(line.split()) for line in ended.err.splitlines()]
    for text in (
        "text.captions trained false",
        "now true",
        'text.format trained "QCM-A"',
        'now "QCM-LEA"',
        'pictures.normalisation trained "imagenet"',
        'now "clip"',
    ):
        assert text in lines, text
    allowed = command("eval", trained, *words, "--allow-prompt-mismatch", "--json", "--limit", 2)
    assert allowed.code == 0, allowed.err
    assert {"field": "text.captions", "trained": False, "now": True} in json.loads(allowed.out)["prompt_mismatch"]


def test_adapters_of_before_and_altered_ones(trained: Path, command: Command) -> None:
    file = trained / "dehvf_config.json"
    config = json.loads(file.read_text())
    mark = config["prompt_fingerprint"]
    assert mark["text"]["format"] == "QCM-A" and mark["pictures"]["vision"]["size"] == 32 and len(mark["hash"]) == 12
    file.write_text(json.dumps({key: value for key, value in config.items() if key != "prompt_fingerprint"}))
    assert command("eval", trained, "--limit", 1).code == 0
    assert command("eval", trained, "--limit", 1, "data.captions=true").code == 1
    file.write_text(json.dumps({**config, "prompt_fingerprint": {**mark, "text": {}}}))
    ended = command("eval", trained)
    assert ended.code == 1 and "does not match its hash" in ended.err
