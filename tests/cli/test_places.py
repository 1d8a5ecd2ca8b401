"""Paths at which nobody can look end every command with a message: too long, links in a circle, below a file."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer
from cli.commands import Command

import dehvf_kit
from dehvf_kit.cli.main import PLACES, app

COMMANDS = {
    "check": ["check", "PATH"],
    "show": ["show", "PATH"],
    "train": ["train", "PATH"],
    "train --output": ["train", "RECIPE", "--output", "PATH"],
    "train data": ["train", "RECIPE", "data.train=PATH", "--output", "NEW"],
    "train decoder": ["train", "RECIPE", "decoder.model=PATH", "--output", "NEW"],
    "train vision": ["train", "RECIPE", "vision.model=PATH", "--output", "NEW"],
    "check decoder": ["check", "RECIPE", "decoder.model=PATH"],
    "check vision": ["check", "RECIPE", "vision.model=PATH"],
    "check data": ["check", "RECIPE", "data.train=PATH"],
    "doctor": ["doctor", "PATH"],
    "doctor vision": ["doctor", "WORLD/decoder", "PATH"],
    "cache recipe": ["cache", "PATH"],
    "build": ["build", "PATH"],
    "plan": ["plan", "PATH"],
    "probe": ["probe", "PATH"],
    "probe --output": ["probe", "RECIPE", "--output", "PATH"],
    "probe --heat-map": ["probe", "RECIPE", "--heat-map", "PATH.png"],
    "compare": ["compare", "PATH"],
    "compare --output": ["compare", "RECIPE", "--output", "PATH"],
    "chat": ["chat", "PATH"],
    "chat two": ["chat", "ADAPTER", "PATH"],
    "import-memvp": ["import-memvp", "PATH", "--recipe", "RECIPE", "--output", "NEW"],
    "import-memvp --recipe": ["import-memvp", "RECIPE", "--recipe", "PATH", "--output", "NEW"],
    "import-memvp --output": ["import-memvp", "RECIPE", "--recipe", "RECIPE", "--output", "PATH"],
    "reproduce --runs": ["reproduce", "table1", "--runs", "PATH"],
    "reproduce --adapter": ["reproduce", "figure3", "--adapter", "PATH"],
    "reproduce --image": ["reproduce", "figure2", "--image", "PATH.png"],
    "new-plugin --output": ["new-plugin", "my-fuser", "--kind", "component", "--output", "PATH"],
    "init --vision": ["init", "--decoder", "WORLD/decoder", "--vision", "PATH", "--data", "none", "--output", "NEW"],
    "init --data": ["init", "--decoder", "WORLD/decoder", "--vision", "WORLD/vision", "--data", "PATH", "--output", "NEW"],
    "init -o": ["init", "--decoder", "WORLD/decoder", "--vision", "WORLD/vision", "--data", "none", "--output", "PATH"],
    "graph --output": ["graph", "RECIPE", "--output", "PATH"],
    "report --predictions": ["report", "ADAPTER", "--predictions", "PATH"],
    "demo --output": ["demo", "--output", "PATH"],
    "generate decoder": ["generate", "IMAGE", "what ?", "--adapter", "ADAPTER", "decoder.model=PATH"],
    "verify data": ["verify", "ADAPTER", "data.test=PATH"],
    "eval cache": ["eval", "ADAPTER", "training.cache_features=true", "training.cache_folder=PATH"],
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
    "export": ["export", "PATH"],
    "export --output": ["export", "ADAPTER", "--output", "PATH"],
    "serve": ["serve", "PATH"],
    "tune": ["tune", "PATH", "--search", "training.base_learning_rate=0.1,0.2"],
    "tune --output": ["tune", "RECIPE", "--output", "PATH"],
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


# Nothing is there, which is no fault: data on another machine, and no runs yet.
ALLOWED = {("check data", "below a file"), ("reproduce --runs", "below a file")}


@pytest.mark.parametrize(("case", "kind"), [(case, kind) for case in COMMANDS for kind in PATHS if (case, kind) not in ALLOWED])
def test_a_path_where_nobody_can_look(case: str, kind: str, world: Path, adapter: Path, tmp_path: Path, command: Command) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    words = {"RECIPE": world / "tiny.yaml", "ADAPTER": adapter, "IMAGE": world / "test0.png", "NEW": tmp_path / "new"}
    path = PATHS[kind](tmp_path)
    words |= {"WORLD": world, "PATH": path}
    given = [re.sub("|".join(words), lambda found: str(words[found[0]]), word) for word in COMMANDS[case]]
    ended = command(*given)
    assert ended.code in (1, 2) and ended.err.strip(), ended.out
    assert "Traceback" not in ended.err


def test_every_place_of_a_command_is_tried() -> None:
    """Every command has a line in the table above, and so has each of its options that names a file or folder."""
    group = typer.main.get_group(app)
    for name in group.list_commands(None):
        command = group.get_command(None, name).load()
        for one in getattr(command, "params", []):
            if PLACES.search(one.metavar or "") and one.opts[0].startswith("-") and not getattr(one, "hidden", False):
                cases = [words for words in COMMANDS.values() if words[0] == name]
                assert any(word in words for words in cases for word in one.opts), f"{name} {one.opts}"
        assert any(words[0] == name for words in COMMANDS.values()) or name in ("list", "support"), name
