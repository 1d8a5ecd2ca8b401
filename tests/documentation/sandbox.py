"""A folder as a reader of the documentation has it, and how its blocks are run there, one page after the other."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from data.small_sets import picture, scienceqa
from documentation.blocks import ROOT, SHELLS, Block

from dehvf_kit.cli.main import app
from dehvf_kit.recipe.recipe import load_recipe

# Words of a command -> what is added, so that what takes hours takes seconds, and what asks is answered. The command itself
# stays as it stands.
SHRINK = ["training.max_steps=3", "training.warmup_epochs=0", "data.train_questions=40", "data.test_questions=12"]
SHRUNK = {
    "train": SHRINK,
    "cache": SHRINK,
    "compare": [*SHRINK, "--seeds", "1", "--rate-factors", "1,2", "--tune-fraction", "0.9"],
    "demo": ["--minutes", "0.1"],
    "init": ["--decoder", "smollm2-135m-instruct", "--vision", "dinov2-small", "--data", "easy_vqa"],
}


class Sandbox:
    """Runs the blocks of one page in order, in one folder and one Python namespace."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names: dict[str, Any] = {"__name__": "page"}
        shutil.copytree(ROOT / "recipes", folder / "recipes")
        shutil.copytree(ROOT / "plugins", folder / "plugins", ignore=shutil.ignore_patterns("tests", "__pycache__", "*.egg-info"))
        (folder / "docs").symlink_to(ROOT / "docs")
        (folder / "data").mkdir()
        scienceqa(folder / "data" / "scienceqa")
        picture(folder / "image.png")
        picture(folder / "images" / "1.png")
        turns = [{"from": "human", "value": "<image>\nWhat colour is it?"}, {"from": "gpt", "value": "Red."}]
        conversation = {"id": "1", "image": str(folder / "images" / "1.png"), "conversations": turns}
        (folder / "conversations.json").write_text(json.dumps([conversation]))
        asked = json.loads((folder / "data" / "scienceqa" / "pid_splits.json").read_text())["test"]
        (folder / "results.json").write_text(json.dumps({"results": dict.fromkeys(asked, 0)}))
        programs = folder / ".venv" / "bin"
        programs.mkdir(parents=True)
        for name, words in {"dehvf-kit": "-m dehvf_kit ", "python": ""}.items():
            program = programs / name
            program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {words}"$@"\n')
            program.chmod(program.stat().st_mode | stat.S_IXUSR)

    def run(self, block: Block) -> None:
        """Run it. Raises: whatever goes wrong in it, with its place."""
        try:
            with _chdir(self.folder):
                if block.language in SHELLS:
                    self._shell(block)
                elif block.language == "python":
                    self._python(block)
                elif block.language == "yaml":
                    self._yaml(block)
        except BaseException as error:
            raise AssertionError(f"{block}: {type(error).__name__}: {error}") from error

    def _shell(self, block: Block) -> None:
        """Plain commands of the kit run in this process, which has torch loaded; anything else is given to bash."""
        plain = not re.search(r"[|><$]|&&|^(?!dehvf-kit )", block.text.replace("\\\n", "").strip(), re.MULTILINE)
        if not plain:
            path = f"{self.folder / '.venv' / 'bin'}:{os.environ['PATH']}"
            subprocess.run(["bash", "-e", "-c", block.text], env={**os.environ, "PATH": path}, check=True)
            return
        for words in block.commands():
            ended = self.command(words[1:])
            assert ended == (1 if block.mark == "fails" else 0), f"{shlex.join(words)} ended with {ended}"

    def command(self, words: list[str]) -> int:
        """Run one command of the kit in the folder, shrunk. Returns its exit status."""
        with _chdir(self.folder):
            try:
                app([*words, *SHRUNK.get(words[0], [])])
            except SystemExit as ended:
                return int(ended.code or 0)
        return 0

    def _python(self, block: Block) -> None:
        """Blocks of a page share their names. One that begins with a file's name is kept as that file too."""
        if named := re.match(r"# (\w+\.py)\n", block.text):
            Path(named[1]).write_text(block.text)
        exec(compile(block.text, str(block), "exec"), self.names)

    def _yaml(self, block: Block) -> None:
        """A recipe, or sections that stand in place of the paper's, must be without fault."""
        given = yaml.safe_load(block.text)
        if "extends" not in given:
            given = yaml.safe_load(Path("recipes/llama7b_clip.yaml").read_text()) | given
        file = Path("recipes" if block.page.parent.name == "recipes" else ".") / "page.yaml"
        file.write_text(yaml.safe_dump(given))
        load_recipe(file).check()


@contextlib.contextmanager
def _chdir(folder: Path) -> Any:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
