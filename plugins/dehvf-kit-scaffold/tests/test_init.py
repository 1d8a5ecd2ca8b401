"""A recipe from three answers: it passes `check`, and nothing that is there is touched."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from cli.commands import Command
from helpers import tiny_decoder, tiny_vision
from PIL import Image

from dehvf_kit.recipe.recipe import load_recipe


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Configs of a decoder and an encoder, a data file, and nothing else in the current folder."""
    monkeypatch.chdir(tmp_path)
    tiny_decoder().config.save_pretrained("decoder")
    tiny_vision("clip").config.save_pretrained("vision")
    Image.new("RGB", (8, 8)).save("a.png")
    row = {"id": "1", "image": "a.png", "question": "what?", "answer": "black"}
    Path("questions.jsonl").write_text(json.dumps(row) + "\n")
    return tmp_path


def ask(command: Command, *more: object, data: str = "questions.jsonl") -> object:
    return command("init", "--decoder", "./decoder", "--vision", "./vision", "--data", data, *more)


def test_the_recipe_passes_check(command: Command, models: Path) -> None:
    ended = ask(command, "-o", "mine.yaml")
    assert ended.code == 0, ended.err
    assert ended.out.startswith("mine.yaml: written and checked\n")
    assert command("check", "mine.yaml").code == 0
    recipe = load_recipe("mine.yaml")
    assert recipe.data.type == "jsonl" and recipe.name == "mine"
    assert recipe.vision["vision"].image.size == 32 and "no image processor of its own" in ended.err
    graph = recipe.check()
    assert graph.nodes["grouper"].config.num_groups == 4 and graph.nodes["position"].config.num_slots == 16


def test_a_test_split_is_held_out_where_the_data_have_none(command: Command, models: Path) -> None:
    rows = [{"id": str(n), "image": f"{n}.png", "question": "what?", "answer": "black"} for n in range(20)]
    Path("many.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ended = ask(command, "-o", "held.yaml", data="many.jsonl")
    assert ended.code == 0 and "data.validation=0.1" in ended.err
    data = load_recipe("held.yaml").data
    assert (data.validation, len(data.samples("train")), len(data.samples("test"))) == (0.1, 18, 2)
    assert ask(command, "-o", "own.yaml", "data.test=questions.jsonl", data="many.jsonl").code == 0
    assert load_recipe("own.yaml").data.validation == 0


@pytest.mark.parametrize(("kind", "normalisation"), [("ViTImageProcessor", "half"), ("CLIPImageProcessor", "clip")])
def test_images_are_prepared_as_the_encoders_own_processor_does(
    command: Command, models: Path, kind: str, normalisation: str
) -> None:
    settings = {"image_processor_type": kind, "size": {"height": 32, "width": 32}, "do_center_crop": False, "do_pad": True}
    Path("vision/preprocessor_config.json").write_text(json.dumps(settings))
    ended = ask(command, "-o", "mine.yaml")
    assert load_recipe("mine.yaml").vision["vision"].image.normalisation == normalisation
    assert "the kit does not: pad" in ended.err and "differs" not in ended.err
    checked = command("check", "mine.yaml")
    assert f"as its own {kind}" in checked.out and "32 x 32 (squash)" in checked.out
    checked = command("check", "mine.yaml", "vision.image.normalisation=imagenet", "vision.image.resample=box")
    assert f"vision.image: differs from the encoder's own {kind}:" in checked.err and "mean 0." in checked.err
    facts = json.loads(command("check", "mine.yaml", "vision.image.resample=box", "--json").out)["images"]["vision"]
    assert facts["resample"] == "box" and facts["own"]["resample"] in ("bicubic", "bilinear") and "differs" in facts["note"]


def test_fields_may_be_changed_at_once_and_told_as_json(command: Command, models: Path) -> None:
    facts = json.loads(ask(command, "training.epochs=2", "graph.fuser.num_blocks=1", "--json", data="none").out)
    assert facts["file"] == "decoder_vision.yaml" and "data" not in facts["recipe"]
    written = yaml.safe_load(Path(facts["file"]).read_text())
    assert written == facts["recipe"] and written["training"]["epochs"] == 2


def test_it_never_overwrites(command: Command, models: Path) -> None:
    Path("mine.yaml").write_text("mine")
    ended = ask(command, "-o", "mine.yaml")
    assert ended.code == 1 and "exists already" in ended.err and Path("mine.yaml").read_text() == "mine"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--decoder", "./nowhere", "--vision", "./vision", "--data", "none"], "nowhere"),
        (["--decoder", "./decoder", "--vision", "./decoder", "--data", "none"], "vision"),
        (["--decoder", "./decoder", "--vision", "./vision", "--data", "jsonll"], "did you mean 'jsonl'?"),
        (["--decoder", "./decoder", "--vision", "./vision", "--data", "jsonl"], "data"),
        (["--decoder", "./decoder", "--vision", "./vision"], "say --data"),
        (["--decoder", "./decoder", "--vision", "./vision", "--data", "none", "graph.fuser.type=x"], "graph.fuser.type"),
    ],
)
def test_mistakes_are_told_and_nothing_is_written(command: Command, models: Path, words: list[str], says: str) -> None:
    before = sorted(models.iterdir())
    ended = command("init", *words, "-o", "mine.yaml")
    assert ended.code == 1 and says in ended.err and "Traceback" not in ended.err
    assert sorted(models.iterdir()) == before


def test_a_closed_standard_input_is_nobody_to_ask(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", None)  # what Python makes of `<&-`
    ended = command("init")
    assert ended.code == 1 and ended.err.splitlines()[-1].startswith("init: nobody to ask here; say --decoder")
