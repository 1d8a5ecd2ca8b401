"""train, eval and generate as they are typed, and transformers' own pipeline on the adapter they leave."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

import dehvf_kit
from dehvf_kit.cli.main import app
from dehvf_kit.errors import AdapterError

RECIPE_CHANGES = ["training.epochs=50", "graph.injector.dropout=0"]


def say(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture(scope="module")
def run(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the tiny recipe, made by the train command."""
    folder = tmp_path_factory.mktemp("commands") / "run"
    result = say("train", world / "tiny.yaml", *RECIPE_CHANGES, "--output", folder)
    assert result.exit_code == 0, result.output
    assert "300 steps" in result.stdout and f"adapter in {folder / 'adapter'}" in result.stdout
    return folder


def test_eval_scores_and_keeps_every_answer(run: Path, tmp_path: Path) -> None:
    result = say("eval", run / "adapter", "--json", "--output", tmp_path / "answers.jsonl")
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert facts["all"] == {"accuracy": 1.0, "questions": 8, "low": pytest.approx(0.676, abs=1e-3), "high": 1.0}
    rows = [json.loads(line) for line in Path(facts["predictions"]).read_text().splitlines()]
    assert len(rows) == 8 and all(row["right"] for row in rows)
    again = say("eval", run / "adapter", "--output", tmp_path / "answers.jsonl")
    assert again.exit_code == 1 and "answers.jsonl: exists already" in again.stderr
    table = say("eval", run / "adapter", "--limit", 4)
    assert "100.0%" in table.stdout and "colour" in table.stdout


def test_evaluate_from_python_does_what_eval_does(run: Path, world: Path, tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas", reason="not installed")
    found = dehvf_kit.evaluate(run, limit=3)
    assert [one.id for one in found.predictions] == ["test0", "test1", "test2"] and found.scores.headline.value == 1.0
    assert isinstance(found.to_pandas(), pandas.DataFrame) and list(found.to_pandas()["prediction"]) == ["red", "green", "blue"]
    model = dehvf_kit.load(run).train()
    assert dehvf_kit.evaluate(model, limit=3).predictions == found.predictions and model.training
    rows = [json.loads(line) for line in (world / "test.jsonl").read_text().splitlines()]
    wrong = [{**row, "image": str(world / row["image"]), "answer": "white"} for row in rows[:4]]
    (tmp_path / "wrong.jsonl").write_text("".join(json.dumps(row) + "\n" for row in wrong))
    for data in (tmp_path / "wrong.jsonl", {"test": str(tmp_path / "wrong.jsonl")}):
        assert dehvf_kit.evaluate(model, data).scores.facts["all"]["accuracy"] == 0.25
    with pytest.raises(AdapterError, match="trained on other prompts"):
        dehvf_kit.evaluate(model, {"prompt": {"question": "{question} !"}})
    other = dehvf_kit.evaluate(model, {"prompt": {"question": "{question} !"}}, limit=1, allow_prompt_mismatch=True)
    assert [one["field"] for one in other.prompt_mismatch] == ["text.question"]
    assert dehvf_kit.evaluate(model, limit=3).predictions == found.predictions, "the model's own prompt is back"
    with pytest.raises(AdapterError, match="for an adapter's folder"):
        dehvf_kit.evaluate(model, store=True)


def test_generate_answers(run: Path, world: Path) -> None:
    result = say("generate", world / "test1.png", "what colour is it ?", "--adapter", run / "adapter", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["answer"] == "green"
    assert say("generate", world / "test2.png", "what colour is it ?", "-a", run / "adapter").stdout == "blue\n"


def test_generate_takes_several_images(run: Path, world: Path) -> None:
    images = [world / "test1.png", world / "test2.png"]
    result = say("generate", *images, "what colour is it ?", "generation.max_new_tokens=1", "--adapter", run, "--json")
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert facts["images"] == list(map(str, images)) and facts["question"] == "what colour is it ?"
    model = dehvf_kit.load(run)
    inputs = model.processor(images=[[Image.open(image) for image in images]], text=["what colour is it ?"])
    said = model.generate(**inputs, max_new_tokens=1)[:, inputs["input_ids"].shape[1] :]
    assert facts["answer"] == model.processor.batch_decode(said, skip_special_tokens=True)[0].strip()


@pytest.mark.parametrize("words", [["eval", "--limit", 2], ["verify", "--questions", 2, "--no-store"]])
def test_the_folder_of_a_run_is_its_adapter(run: Path, words: list[str]) -> None:
    result = say(words[0], run, *words[1:], "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["adapter"] == str(run)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["generate", "{world}/test0.png", "nowhere.png", "what ?"], "there is no image 'nowhere.png'"),
        (["generate", "nowhere.png", "what ?"], "there is no image 'nowhere.png'"),
        (["generate", "{world}/tiny.yaml", "what ?", "-a", "{run}/adapter"], "tiny.yaml' cannot be read"),
        (["generate", "{world}/test0.png", "  "], "the question is empty"),
        (["generate", "{world}/test0.png", "what ?", "-a", "nowhere"], "nowhere: there is no such folder"),
        (["generate", "{world}/test0.png", "what ?", "-a", "{world}/test0.png"], "test0.png: is a file; an adapter is a folder"),
        (["train", "{world}/tiny.yaml", "--output", "{world}/test0.png"], "test0.png: is a file; name a folder"),
        (["train", "{world}/tiny.yaml", "--resume", "--output", "{world}/test0.png"], "test0.png: is a file; name a folder"),
        (["build", "{world}/tiny.yaml", "--output", "{world}/test0.png"], "a file is where a folder should be; name another place"),
        (["eval", "{world}"], "not an adapter of dehvf-kit"),
        (["eval", "{run}/adapter", "data.test=nowhere.jsonl"], "data.test: there is no file 'nowhere.jsonl'"),
        (["eval", "{run}/adapter", "data.tset=x"], "data.tset: unknown field; did you mean 'test'?"),
        (["train", "{world}/tiny.yaml", "--output", "{run}"], "holds a run already"),
        (["train", "{world}/tiny.yaml", "--resume", "--output", "nowhere"], "nowhere: holds no checkpoint to resume from"),
    ],
)
def test_mistakes_get_a_message_and_no_traceback(run: Path, world: Path, words: list[str], message: str) -> None:
    result = say(*(word.format(run=run, world=world) for word in words))
    assert result.exit_code == 1
    assert message in result.stderr and "Traceback" not in result.output


def test_pipeline_of_transformers_answers_from_the_folder(run: Path, world: Path) -> None:
    from transformers import pipeline

    ask = pipeline("image-text-to-text", model=str(run / "adapter"))
    (found,) = ask(images=str(world / "test3.png"), text="what colour is it ?", max_new_tokens=3)
    assert found["generated_text"].split()[-1] == "white"
    chat = [
        {
            "role": "user",
            "content": [{"type": "image", "path": str(world / "test0.png")}, {"type": "text", "text": "what colour is it ?"}],
        }
    ]
    (found,) = ask(text=chat, max_new_tokens=3, return_full_text=False)
    assert found["generated_text"].strip() == "red"


def test_moved_adapter_still_loads(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run / "adapter", tmp_path / "moved")
    assert dehvf_kit.load(tmp_path / "moved").num_trainable_parameters() > 0


@pytest.mark.parametrize("set_to", [{"WORLD_SIZE": "2"}, {"RANK": "x"}, {"WORLD_SIZE": ""}, {"LOCAL_RANK": "one"}])
def test_half_a_launch_is_named(set_to: dict, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in set_to.items():
        monkeypatch.setenv(name, value)
    result = say("train", world / "tiny.yaml", "--output", tmp_path / "run")
    assert result.exit_code == 1 and next(iter(set_to)) in result.output and "torchrun" in result.output, result.output
    assert not (tmp_path / "run").exists()
