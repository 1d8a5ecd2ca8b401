"""A run whose disk is full says so once, leaves nothing half-written, and goes on where it was when there is room."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

import dehvf_kit
from dehvf_kit.adapter.files import read_weights
from dehvf_kit.errors import DehvfError
from dehvf_kit.training.run import train
from dehvf_kit.training.run_folder import RunFolder, training_errors
from dehvf_kit.utils import atomic


@pytest.mark.parametrize("place", ["run.json", "seal.json", "log.jsonl", "adapter_model.safetensors"])
def test_each_writer_of_a_run(place: str, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = dehvf_kit.load_recipe(world / "tiny.yaml", ["training.max_steps=4", "training.save_steps=2"])
    real = atomic.sync

    def sync(path: Path) -> None:
        if path.name.endswith(place):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path)

    monkeypatch.setattr(atomic, "sync", sync)
    with pytest.raises(DehvfError, match="No space left on device"):
        train(recipe, tmp_path / "run")
    assert not list(tmp_path.rglob(f"{atomic.UNFINISHED}*")) and not (tmp_path / "run/adapter").exists()
    monkeypatch.undo()
    train(recipe, tmp_path / "run", resume=(tmp_path / "run").exists())
    assert read_weights(tmp_path / "run/adapter")


def test_a_file_named_in_bytes(tmp_path: Path) -> None:
    """TensorBoard names its event file in bytes: no `b'...'` in the message."""
    missing = FileNotFoundError(errno.ENOENT, "No such file or directory", os.fsencode(tmp_path / "events"))
    with pytest.raises(DehvfError) as raised, training_errors(RunFolder(tmp_path, resume=False)):
        raise missing
    assert str(raised.value).startswith(f"{tmp_path / 'events'}: No such file")
