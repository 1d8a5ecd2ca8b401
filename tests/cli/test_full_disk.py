"""A full disk: one line that names the place, nothing half-written, whoever writes."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest
from cli.commands import Command
from helpers import raw_recipe

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
