"""The prompt fingerprint notices whatever changes the tokens that are asked; adapters saved before it did are as they were."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from cli.commands import Command
from training.conftest import tokenizer, world  # noqa: F401 - fixtures

import dehvf_kit
from dehvf_kit.adapter.identity import FINGERPRINT, differences, digest, fingerprint, saved_fingerprint
from dehvf_kit.data.samples import DataConfig, PromptConfig
from dehvf_kit.recipe.plugin_manager import plugins

TEMPLATE = "{% for m in messages %}what {{ m['content'] }} {% endfor %}{% if add_generation_prompt %}it{% endif %}"


@pytest.fixture
def ground(world: Path, tmp_path: Path) -> Path:  # noqa: F811 - the fixture
    """A decoder's folder of its own, with a chat template, and a recipe that uses it."""
    shutil.copytree(world / "decoder", tmp_path / "decoder")
    (tmp_path / "decoder/chat_template.jinja").write_text(TEMPLATE)
    for name, chat in (("chat", "true"), ("plain", "false")):
        (tmp_path / f"{name}.yaml").write_text(
            f"extends: {world}/tiny.yaml\ndecoder: {{model: {tmp_path}/decoder}}\n"
            f"training: {{max_steps: 2, warmup_epochs: 0, save_steps: 1}}\ndata: {{prompt: {{chat: {chat}}}}}\n"
        )
    return tmp_path


def template(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text(TEMPLATE.replace("what", "is"))


def start(folder: Path) -> None:
    """The tokenizer puts a token in front."""
    file = folder / "tokenizer.json"
    made = json.loads(file.read_text())
    added = {"id": "<unk>", "ids": [2], "tokens": ["<unk>"]}
    single = [{"SpecialToken": {"id": "<unk>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    made["post_processor"] = {
        "type": "TemplateProcessing", "single": single, "pair": [*single, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"<unk>": added},
    }  # fmt: skip
    file.write_text(json.dumps(made))


def end(folder: Path) -> None:
    file = folder / "tokenizer_config.json"
    file.write_text(file.read_text().replace('"eos_token": "<eos>"', '"eos_token": "white"'))


@pytest.mark.parametrize(("recipe", "change"), [("chat", template), ("plain", start), ("plain", end)])
def test_another_rendering_is_refused(recipe: str, change: Callable[[Path], None], ground: Path, command: Command) -> None:
    run = ground / "run"
    assert command("train", ground / f"{recipe}.yaml", "--output", run).code == 0
    adapter = run / "adapter"
    assert command("eval", adapter).code == 0
    change(ground / "decoder")
    ended = command("eval", adapter)
    assert ended.code == 1 and ("tokens." in ended.err or "trained with" in ended.err), ended.err
    if change is template:
        assert command("eval", adapter, "--allow-prompt-mismatch").code == 0
        shutil.rmtree(adapter)
        shutil.rmtree(run / "checkpoints/checkpoint-2", ignore_errors=True)
        ended = command("train", ground / f"{recipe}.yaml", "--output", run, "--resume")
        assert ended.code == 1 and "the run began under another prompt: tokens.chat_template" in ended.err, ended.err


# Fields of data sets that say which samples there are; every other one decides how a sample is asked.
WHICH = {
    "type", "metric", "on_bad_sample", "text_only", "path", "train", "test", "annotations",
    "images", "restval", "test_split", "train_split",
    "download", "revision", "columns", "size", "shuffle", "turns", "validation", "validation_seed", "prompt", "seed", "sizes",
    "sources", "weights", "stop", "answer_is",
    "canvas", "alone", "questions", "train_questions", "test_questions", "questions_per_image", "balanced", "questions_per_scene",
    "train_scenes", "test_scenes",
}  # fmt: skip


def kinds() -> list[type[DataConfig]]:
    return [kind for (role, _), kind in plugins().registry.configs.items() if role == "data" and issubclass(kind, DataConfig)]


def test_every_field_that_decides_what_is_asked_is_in_the_fingerprint():
    assert {name for kind in kinds() for name in set(kind.model_fields) - WHICH} >= {"question", "format", "captions", "response"}
    for kind in kinds():
        for name in set(kind.model_fields) - WHICH:
            one, other = (kind.model_construct(**{name: value}).prompt_facts() for value in ("one", "other"))
            assert one != other, f"{kind.__name__}.{name}"
        for name in ("question", "answer", "chat"):
            facts = [
                kind.model_construct(sources={}, prompt=PromptConfig.model_construct(**{name: value})).prompt_facts()
                for value in "ab"
            ]
            assert facts[0] != facts[1], f"{kind.__name__}.prompt.{name}"


def test_a_fact_that_was_not_recorded_is_that_of_the_adapters_own_recipe(ground: Path):
    recipe = dehvf_kit.load_recipe(ground / "plain.yaml")
    found = fingerprint(recipe)
    assert found["text"].pop("chat") is False
    saved = {FINGERPRINT: {**found, "hash": digest(found)}}
    assert differences(saved_fingerprint(saved, recipe, ""), fingerprint(recipe)) == []
    changed = dehvf_kit.load_recipe(ground / "chat.yaml")
    assert differences(saved_fingerprint(saved, recipe, ""), fingerprint(changed)) == [("text.chat", False, True)]


def test_a_template_that_is_not_used_changes_nothing(ground: Path, command: Command) -> None:
    assert command("train", ground / "plain.yaml", "--output", ground / "run").code == 0
    template(ground / "decoder")
    assert command("eval", ground / "run/adapter").code == 0


def test_an_adapter_saved_before_is_compared_by_what_it_knows(ground: Path, command: Command) -> None:
    assert command("train", ground / "chat.yaml", "--output", ground / "run").code == 0
    file = ground / "run/adapter/dehvf_config.json"
    config = json.loads(file.read_text())
    del config[FINGERPRINT]["tokens"]
    config[FINGERPRINT]["hash"] = digest(config[FINGERPRINT])
    file.write_text(json.dumps(config))
    template(ground / "decoder")
    assert command("eval", ground / "run/adapter").code == 0
