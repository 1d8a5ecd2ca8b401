"""Every code block of the documentation runs, or says above itself why not; every command in it exists."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from documentation.blocks import ROOT, SHELLS, Block, blocks, pages
from documentation.sandbox import Sandbox
from typer.main import get_command

from dehvf_kit.backbones.ffn.overrides import FFN_OVERRIDES
from dehvf_kit.backbones.vision.overrides import VISION_OVERRIDES
from dehvf_kit.cli.main import app

ALL = [block for page in pages() for block in blocks(page)]
# Languages that say nothing to run.
SILENT = ("text", "json")
# Blocks whose names come from the text around them: what a reader would have by then.
GIVEN = {
    "README.md": "from dehvf_kit.testing import tiny_decoder\nimport torch\ndecoder = tiny_decoder('llama')\n"
    "tokens = torch.tensor([[3, 1, 4]])\n"
    "keys = values = [torch.zeros(1, 2, s.hidden_size) for s in __import__('dehvf_kit').ffn_sites(decoder)]\n"
}
# What a reader of a page has done before.
BEFORE = {"docs/report.md": ["train", "recipes/smollm2_dinov2_easyvqa.yaml", "--output", "runs/mine"]}


def has(page: Path, demo: bool) -> bool:
    """Whether a page has blocks to run, with the demo's models or without."""
    return any(runnable(block, demo) for block in blocks(page))


def runnable(block: Block, demo: bool) -> bool:
    if block.language in SILENT or block.mark == "not run" or only_make(block):
        return False
    return block.demo == demo or (demo and not block.demo)


def only_make(block: Block) -> bool:
    return block.language in SHELLS and all(words[0] == "make" for words in block.commands())


@mock.patch.dict(FFN_OVERRIDES)
@mock.patch.dict(VISION_OVERRIDES)
def run_page(page: Path, folder: Path, demo: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    sandbox = Sandbox(folder)
    monkeypatch.syspath_prepend(folder)
    exec(GIVEN.get(page.relative_to(ROOT).as_posix(), ""), sandbox.names)
    if demo and (words := BEFORE.get(page.relative_to(ROOT).as_posix())):
        assert sandbox.command(words) == 0
    for block in blocks(page):
        if demo and block.language in SHELLS and ["make", "demo"] in block.commands():
            assert sandbox.command(["demo", "--output", "runs/demo"]) == 0
        if runnable(block, demo):
            sandbox.run(block)


@pytest.mark.nightly
@pytest.mark.usefixtures("own_plugins")
@pytest.mark.parametrize("page", [page for page in pages() if has(page, False)], ids=lambda p: str(p.relative_to(ROOT)))
def test_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_page(page, tmp_path, False, monkeypatch)


@pytest.mark.demo
@pytest.mark.usefixtures("own_plugins")
@pytest.mark.parametrize(
    "page", [page for page in pages() if any(block.demo for block in blocks(page))], ids=lambda p: str(p.relative_to(ROOT))
)
def test_blocks_run_with_the_demos_models(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_page(page, tmp_path, True, monkeypatch)


@cache
def loaded(name: str) -> Any:
    """A command of the kit or of an installed plugin with its parameters; None where there is none."""
    group: Any = get_command(app)
    command = group.get_command(group.context_class(group), name)
    return command.load() if hasattr(command, "load") else command


@pytest.mark.parametrize("block", [block for block in ALL if block.language in SHELLS], ids=str)
def test_commands_exist(block: Block) -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for words in block.commands():
        if words[0] == "make":
            assert set(words[1:]) <= set(targets), f"{block}: make {words[1:]}"
        if words[0] != "dehvf-kit":
            continue
        verb, *rest = [word for word in words[1:] if word != "--plugin" and not word.endswith(".py")]
        command = loaded(verb)
        if hasattr(command, "commands"):
            command = command.commands[rest[0]]
        known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)} | {"--help"}
        assert {word for word in rest if re.match(r"--?[a-z]", word)} <= known, f"{block}: {words}"
        files = [word for word in rest if word.startswith(("recipes/", "plugins/", "docs/"))]
        assert all((ROOT / file).exists() for file in files), f"{block}: {files}"


@pytest.mark.parametrize("page", pages(), ids=lambda p: str(p.relative_to(ROOT)))
def test_commands_in_the_text_exist(page: Path) -> None:
    named = re.findall(r"`dehvf-kit ([a-z][\w-]*)", page.read_text(encoding="utf-8"))
    missing = [name for name in named if loaded(name) is None]
    assert not missing, f"{page}: {missing}"


def test_marks_are_known_and_say_why() -> None:
    for block in ALL:
        assert block.mark != "runs" or block.note == "demo", block
        assert not block.mark or block.note, block
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages())
    assert len(re.findall(r"^ *<!-- (?:runs|not run|fails):", text, re.MULTILINE)) == sum(bool(block.mark) for block in ALL)


def test_toml_can_be_read() -> None:
    import tomllib

    for block in ALL:
        if block.language == "toml":
            assert tomllib.loads(block.text), block


def test_no_block_is_forgotten() -> None:
    for page in pages():
        fences = re.findall(r"^ *```", page.read_text(encoding="utf-8"), re.MULTILINE)
        assert len(fences) == 2 * len(blocks(page)), f"{page}: a block without a language, or within another"
    assert {block.language for block in ALL} <= {*SHELLS, *SILENT, "python", "yaml", "toml"}
