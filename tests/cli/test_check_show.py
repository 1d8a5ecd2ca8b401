"""`check` and `show`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from cli.commands import Command
from helpers import raw_recipe

from dehvf_kit.errors import DehvfError
from dehvf_kit.recipe.recipe import load_recipe

RECIPES = Path(__file__).parents[2] / "recipes"


def test_check_says_what_a_good_recipe_makes(command: Command, recipe: Path) -> None:
    ended = command("check", recipe)
    assert (ended.code, ended.err) == (0, "Checking tiny.yaml ...\n")
    assert ended.out.startswith("tiny.yaml: ok: 7 components join clip_vision_model (8 x 24) to llama (4 x 32); ")
    assert len(ended.out.splitlines()) == 2 and ended.out.splitlines()[1].startswith(
        "vision: images 32 x 32 (squash), bicubic, times 1/255"
    )


def test_check_notes_a_warmup_longer_than_the_run(command: Command, recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"image": "a.png", "question": "q", "answer": "a"}\n' * 40)
    given = (f"data.train={tmp_path}/a.jsonl", "training.batch_size=4", "training.warmup_epochs=2", "training.max_steps=10")
    ended = command("check", recipe, "data.type=jsonl", *given)
    assert ended.code == 0 and "note: training.warmup_epochs=2 makes 20 steps and the run has 10" in ended.err
    facts = json.loads(command("check", recipe, "data.type=stream", "data.size=400", *given, "--json").out)
    assert "makes 200 steps" in facts["notes"][0]
    ended = command("check", recipe, "data.type=stream", "data.size=400", *given, "data.columns.image=img")
    assert ended.code == 1 and "1 x no sample has an image" in ended.err, "the beginning of a stream is read"


def test_check_lists_every_fault_at_once(command: Command, recipe: Path) -> None:
    ended = command("check", recipe, "graph.fuser.type=crossattention", "graph.grouper.num_groups=0", "traning.seed=1")
    _, *lines = ended.err.splitlines()
    assert (ended.code, ended.out, len(lines)) == (1, "", 3)
    assert "tiny.yaml: traning: unknown section; did you mean 'training'?" in lines[0]
    assert any("graph.fuser.type: " in line and "did you mean 'cross_attention'?" in line for line in lines)
    assert any("graph.grouper.num_groups: given 0" in line for line in lines)


def test_check_wants_both_configs(command: Command, recipe: Path) -> None:
    """`load_recipe` lets a missing config pass (modules may be handed over); `check` does not."""
    overrides = ["decoder.config=null", "decoder.model=nobody/nothing"]
    load_recipe(recipe, overrides)
    ended = command("check", recipe, *overrides)
    assert ended.code == 1
    assert ended.err.splitlines()[1].startswith("tiny.yaml: decoder: no config of 'nobody/nothing' on this machine")


@pytest.mark.parametrize("name", ["llama7b_clip.yaml", "two_encoders.yaml", "ablations/penultimate_only_13b.yaml"])
def test_show_prints_a_recipe_that_loads_as_the_same(command: Command, tmp_path: Path, name: str) -> None:
    ended = command("show", RECIPES / name, "training.seed=3")
    shown = tmp_path / "shown.yaml"
    shown.write_text(ended.out)
    expected = load_recipe(RECIPES / name, ["training.seed=3"]).resolved()
    assert load_recipe(shown).resolved() == expected
    assert expected["training"]["seed"] == 3
    assert "extends" not in yaml.safe_load(ended.out)


def test_show_fills_in_every_default(command: Command, recipe: Path) -> None:
    shown = yaml.safe_load(command("show", recipe).out)
    assert shown["generation"]["num_beams"] == 1
    assert shown["training"]["betas"] == [0.9, 0.95]
    assert shown["graph"]["fuser"]["attention_backend"] == "auto"
    assert shown["vision"]["apply_post_norm"] is True


def test_show_as_json_is_the_same_data(command: Command, recipe: Path) -> None:
    assert json.loads(command("show", recipe, "--json").out) == yaml.safe_load(command("show", recipe).out)


def test_show_repeats_shared_settings_without_aliases(command: Command, recipe: Path) -> None:
    sections = raw_recipe()
    tower = sections["vision"]
    del sections["graph"]["vision_adapter"]
    sections["vision"] = {"left": tower, "right": tower}
    sections["graph"]["grouper"]["inputs"] = {"globals": "left"}
    sections["graph"]["projector"]["inputs"] = {"patches": "left"}
    recipe.write_text(json.dumps(sections))
    ended = command("show", recipe)
    assert ended.code == 0 and "&id" not in ended.out


def test_an_override_that_is_none_is_a_fault(command: Command, recipe: Path) -> None:
    ended = command("show", recipe, "training.seed")
    assert ended.code == 1 and "key=value" in ended.err
    with pytest.raises(DehvfError):
        load_recipe(recipe, ["training.seed"])


def test_check_tells_both_outcomes_as_json(command: Command, recipe: Path) -> None:
    facts = json.loads(command("check", recipe, "--json").out)
    assert facts["sound"] and facts["decoder"]["num_layers"] == 4 and facts["trainable_parameters"] > 0
    ended = command("check", recipe, "graph.fuser.type=nothing", "--json")
    facts = json.loads(ended.out)
    assert ended.code == 1 and not facts["sound"]
    assert [fault["path"] for fault in facts["faults"]] == ["graph.fuser.type"]


def test_every_command_that_prints_facts_has_json() -> None:
    from typer.main import get_command

    from dehvf_kit.cli.main import app

    group = get_command(app)
    for name in group.list_commands(None):
        if name in ("chat", "serve"):  # they serve until they are ended
            continue
        verb = group.commands[name].load()
        for one in getattr(verb, "commands", {name: verb}).values():
            assert "--json" in {option for parameter in one.params for option in parameter.opts}, name


def test_check_names_training_data_without_images(command: Command, tmp_path: Path, recipe: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"question": "what ?", "answer": "red"}\n')
    words = ("check", recipe, "data.type=jsonl", f"data.train={tmp_path / 'a.jsonl'}")
    ended = command(*words)
    assert ended.code == 1 and "data: 1 x no sample has an image" in ended.err
    assert command(*words, "data.text_only=true").code == 0
