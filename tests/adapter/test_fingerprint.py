"""The prompt fingerprint notices whatever changes the tokens that are asked; adapters saved before it did are as they were."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from cli.commands import Command
from training.conftest import tokenizer, world  # noqa: F401 - fixtures

from dehvf_kit.adapter.fingerprint import KEY, digest

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


def test_a_template_that_is_not_used_changes_nothing(ground: Path, command: Command) -> None:
    assert command("train", ground / "plain.yaml", "--output", ground / "run").code == 0
    template(ground / "decoder")
    assert command("eval", ground / "run/adapter").code == 0


def test_an_adapter_saved_before_is_compared_by_what_it_knows(ground: Path, command: Command) -> None:
    assert command("train", ground / "chat.yaml", "--output", ground / "run").code == 0
    file = ground / "run/adapter/adapter_config.json"
    config = json.loads(file.read_text())
    del config[KEY]["tokens"]
    config[KEY]["hash"] = digest(config[KEY])
    file.write_text(json.dumps(config))
    template(ground / "decoder")
    assert command("eval", ground / "run/adapter").code == 0
