"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dehvf_kit.utils import atomic


def fail(part: Path) -> None:
    part.write_text("half")
    raise OSError(28, "No space left on device")


def test_a_file_that_cannot_be_written_is_as_before(tmp_path: Path) -> None:
    target = atomic.write_text(tmp_path / "a.txt", "before")
    with pytest.raises(OSError, match="No space left"):
        atomic.write_file(target, fail)
    assert target.read_text() == "before" and os.listdir(tmp_path) == ["a.txt"]


def test_a_folder_appears_with_its_last_file(tmp_path: Path) -> None:
    target = tmp_path / "new" / "folder"
    with atomic.whole_folder(target) as part:
        (part / "a.txt").write_text("a")
        assert not target.exists()
    assert (target / "a.txt").read_text() == "a" and os.listdir(target.parent) == ["folder"]


def test_a_folder_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left"), atomic.whole_folder(tmp_path / "folder") as part:
        fail(part / "a.txt")
    assert os.listdir(tmp_path) == []


def test_a_folder_that_is_there_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine.txt").write_text("mine")
    with pytest.raises(OSError), atomic.whole_folder(tmp_path / "folder") as part:
        (part / "a.txt").write_text("a")
    assert os.listdir(tmp_path) == ["folder"] and os.listdir(tmp_path / "folder") == ["mine.txt"]


def test_removal_takes_the_name_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "a.txt").write_text("a")
    monkeypatch.setattr(atomic.shutil, "rmtree", lambda *_, **__: None)  # killed before the files are gone
    atomic.remove_folder(tmp_path / "old")
    monkeypatch.undo()
    (left,) = os.listdir(tmp_path)
    assert left.startswith(atomic.UNFINISHED)
    atomic.clean_up(tmp_path)
    assert os.listdir(tmp_path) == []
