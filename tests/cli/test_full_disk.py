"""A full disk: one line that names the place, nothing half-written, whoever writes."""

from __future__ import annotations

import errno
import json
import re
import shutil
from pathlib import Path

import pytest
from cli.commands import Command, at_most
from dehvf_kit_report.page import MARK
from helpers import raw_recipe

import dehvf_kit
from dehvf_kit.errors import DehvfError
from dehvf_kit.utils import atomic

FULL = OSError(errno.ENOSPC, "No space left on device", "somewhere/file.bin")


def fail(*_: object, **__: object) -> None:
    raise FULL


def test_a_writer_that_knows_nothing_of_it_ends_in_one_line(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dehvf_kit.recipe.recipe.load_recipe", fail)
    (tmp_path / "recipe.yaml").write_text(json.dumps(raw_recipe()))
    ended = command("show", tmp_path / "recipe.yaml")
    assert ended.code == 1
    assert ended.err.splitlines()[-1] == (
        "somewhere/file.bin: cannot be written: No space left on device; make room and run the command again"
    )


@pytest.mark.parametrize("content", ["new", lambda path: path.write_text("new")])
def test_an_older_file_stays_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content) -> None:
    (tmp_path / "file").write_text("old")
    monkeypatch.setattr(atomic, "sync", fail)
    with pytest.raises(DehvfError, match="file: cannot be written: No space left on device"):
        atomic.write_output(tmp_path / "file", content)
    assert [(one.name, one.read_text()) for one in tmp_path.iterdir()] == [("file", "old")]


def test_a_new_plugin_is_not_left_in_halves(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.move", fail)
    ended = command("new-plugin", "my-fuser", "--kind", "component", "--output", tmp_path)
    assert ended.code == 1 and "cannot be written: No space left on device" in ended.err
    assert list(tmp_path.iterdir()) == []


def files(folder: Path) -> dict[str, bytes]:
    found = (one for one in folder.rglob("*") if one.is_file() and one.name != ".lock")
    return {str(one.relative_to(folder)): one.read_bytes() for one in found}


@pytest.fixture(scope="module")
def made(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter, and a finished run of two steps, to be copied."""
    folder = tmp_path_factory.mktemp("made")
    recipe = dehvf_kit.load_recipe(world / "tiny.yaml", ["training.max_steps=2", "training.save_steps=1"])
    dehvf_kit.train(recipe, folder / "run")
    return folder


WRITING = {
    "build": "build RECIPE -o new",
    "build over another": "build RECIPE training.seed=7 -o adapter --overwrite",
    "train": "train RECIPE training.max_steps=2 training.save_steps=1 -o new",
    "resume": "train RECIPE training.max_steps=2 training.save_steps=1 -o run --resume",
    "cache": "cache RECIPE training.cache_folder=CACHE",
    "eval --output": "eval adapter -o new.jsonl",
    "eval --results": "eval adapter --results new.json",
    "eval --store": "eval adapter --store",
    "verify": "verify adapter --questions 2 --batch 2 --new-tokens 1",
    "init": "init --decoder WORLD/decoder --vision WORLD/vision --data none -o new.yaml",
    "new-plugin": "new-plugin my-fuser --kind component -o .",
    "graph": "graph RECIPE -o new.svg",
    "report": "report run --maps 1 --limit 2 -o old.html",
    "probe": "probe RECIPE -o new.json --heat-map new.png",
    "compare": "compare RECIPE training.max_steps=1 --seeds 1 -o new",
}
"""What is run on a disk of a size: `new` is not there yet, what is `old` or an adapter or a run stays as it was."""


# By the largest file: the commands that end there.
ENDS_LATER = {
    1500: set(WRITING) - {"init", "eval --results"},
    20000: {"build", "build over another", "train", "resume", "report", "probe", "compare"},
}


@pytest.mark.parametrize("size", [pytest.param(0, marks=pytest.mark.nightly), 1500, pytest.param(20000, marks=pytest.mark.nightly)])
@pytest.mark.parametrize("case", [pytest.param(case, marks=[pytest.mark.nightly] if case == "compare" else []) for case in WRITING])
def test_every_command(case: str, size: int, world: Path, made: Path, command: Command, tmp_path: Path, monkeypatch) -> None:
    place = tmp_path / "place"
    shutil.copytree(made / "run", place / "run")
    shutil.copytree(made / "run/adapter", place / "adapter")
    (place / "old.html").write_text(f"{MARK}, of another day")
    if case == "resume":
        shutil.rmtree(place / "run/adapter")
        shutil.rmtree(place / "run/checkpoints/checkpoint-2")
    monkeypatch.chdir(place)
    monkeypatch.setenv("DEHVF_KIT_CACHE", str(tmp_path / "kept"))
    before = files(place)
    words = {"RECIPE": world / "tiny.yaml", "WORLD": world, "CACHE": place / "cache"}
    given = re.sub("|".join(words), lambda found: str(words[found[0]]), WRITING[case]).split()
    with at_most(size):
        ended = command(*given)
    after = files(place)
    assert ended.code == 1 if size == 0 or case in ENDS_LATER[size] else ended.code == 0, ended.err
    assert not list(place.rglob(f"{atomic.UNFINISHED}*"))
    if ended.code == 1:
        assert {name: after.get(name) for name in before} == before
        last = ended.err.splitlines()[-1]
        assert "cannot be written: File too large; " in last and ("make room" in last or "name another folder" in last), ended.err
        assert "Traceback" not in ended.err
        ended = command(*(["train", *given[1:], "--resume"] if (place / "new/run.json").exists() else given))
        assert ended.code == 0 or "new.json: exists already" in ended.err, ended.err
