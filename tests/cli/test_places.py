"""Paths at which nobody can look end every command with a message: too long, links in a circle, below a file."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli.commands import Command

import dehvf_kit

COMMANDS = {
    "check": ["check", "PATH"],
    "show": ["show", "PATH"],
    "train": ["train", "PATH"],
    "train --output": ["train", "RECIPE", "--output", "PATH"],
    "train data": ["train", "RECIPE", "data.train=PATH", "--output", "NEW"],
    "check decoder": ["train", "RECIPE", "decoder.model=PATH", "--output", "NEW"],
    "check vision": ["train", "RECIPE", "vision.model=PATH", "--output", "NEW"],
    "cache": ["cache", "RECIPE", "training.cache_features=true", "training.cache_folder=PATH"],
    "build --output": ["build", "RECIPE", "--output", "PATH"],
    "eval": ["eval", "PATH"],
    "eval data": ["eval", "ADAPTER", "data.test=PATH"],
    "eval --output": ["eval", "ADAPTER", "--output", "PATH"],
    "eval --results": ["eval", "ADAPTER", "--results", "PATH"],
    "verify": ["verify", "PATH"],
    "generate image": ["generate", "PATH", "what ?", "--adapter", "ADAPTER"],
    "generate --adapter": ["generate", "IMAGE", "what ?", "--adapter", "PATH"],
    "report": ["report", "PATH"],
    "report --output": ["report", "ADAPTER", "--output", "PATH"],
    "prepare": ["prepare", "PATH"],
    "data": ["data", "PATH"],
    "graph": ["graph", "PATH"],
    "init --output": ["init", "--decoder", "PATH", "--output", "NEW"],
    "score": ["score", "coco", "--predictions", "PATH", "--references", "PATH"],
    "plugin": ["--plugin", "PATH", "list"],
}
PATHS = {
    "too long": lambda folder: folder / ("a" * 300),
    "too deep": lambda folder: folder.joinpath(*["a" * 200] * 25),
    "in a circle": lambda folder: folder / "circle" / "a",
    "below a file": lambda folder: folder / "file" / "a",
}


@pytest.fixture(scope="module")
def adapter(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("places") / "adapter"
    dehvf_kit.build(dehvf_kit.load_recipe(world / "tiny.yaml")).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", PATHS)
@pytest.mark.parametrize("case", COMMANDS)
def test_a_path_where_nobody_can_look(case: str, kind: str, world: Path, adapter: Path, tmp_path: Path, command: Command) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    words = {"RECIPE": world / "tiny.yaml", "ADAPTER": adapter, "IMAGE": world / "test0.png", "NEW": tmp_path / "new"}
    path = PATHS[kind](tmp_path)
    given = [str(words.get(word, word)).replace("PATH", str(path)) if word != "PATH" else str(path) for word in COMMANDS[case]]
    ended = command(*given)
    assert ended.code in (1, 2) and ended.err.strip(), ended.out
    assert "Traceback" not in ended.err
