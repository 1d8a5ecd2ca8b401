"""An adapter saved over another one: after a kill at any write or rename the folder loads as the old one or as the new one."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import randomise, tiny_decoder, tiny_model, tiny_recipe, tiny_vision
from tokenizers import Tokenizer
from tokenizers import models as tokenizer_models
from transformers import PreTrainedTokenizerFast

import dehvf_kit
from dehvf_kit.adapter.card import keep
from dehvf_kit.adapter.files import read_config, read_weights
from dehvf_kit.adapter.identity import base_identities
from dehvf_kit.errors import AdapterError
from dehvf_kit.utils import atomic

pytestmark = pytest.mark.usefixtures("builtins_alone")
EVENTS = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate")


def killed(work: Callable[[], object], folder: Path, at: int) -> bool:
    """Run work in a fork that ends as by SIGKILL at its `at`-th change below a folder; whether it came that far."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    seen = 0

    def watch(event: str, arguments: tuple) -> None:
        nonlocal seen
        if event in EVENTS and str(arguments[0]).startswith(str(folder)):
            seen += 1
            if seen == at:
                os._exit(9)

    sys.addaudithook(watch)
    try:
        work()
    except BaseException:
        os._exit(1)
    os._exit(0)


@pytest.fixture(scope="module")
def towers():
    return tiny_decoder(), tiny_vision()


@pytest.fixture
def models(towers):
    """An older model with a tokenizer, and a newer one without, whose weights are zero."""
    words = Tokenizer(tokenizer_models.WordLevel({"<pad>": 0, "<unk>": 1, "what": 2}, unk_token="<unk>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", unk_token="<unk>")
    old = dehvf_kit.build(tiny_recipe(), *towers, tokenizer=tokenizer)
    randomise(old.nodes)
    new = tiny_model()
    with torch.no_grad():
        for weight in new.trainable_parameters():
            weight.zero_()
    for model in (old, new):  # in a fork, torch's threads cannot be used
        model.bases = base_identities(model)
    yield old, new
    old.detach()


def state(folder: Path) -> tuple[bool, bool]:
    """(whether the weights are the new ones, whether a tokenizer is there); the folder must be read without an error."""
    config, weights = read_config(folder), read_weights(folder)
    new = not any(tensor.any() for tensor in weights.values())
    assert (config["tokenizer"] is None) == new
    assert (folder / "mine.txt").read_text() == "kept" and (folder / "notes" / "a").read_text() == "kept"
    assert (folder / "README.md").is_file() and json.loads((folder / "config.json").read_text())["model_type"] == "dehvf"
    return new, (folder / "tokenizer_config.json").exists() and (folder / "tokenizer.json").exists()


@pytest.mark.nightly
@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills are made in forks")
def test_a_kill_at_any_change_leaves_the_old_or_the_new_one(tmp_path, models):
    old, new = models
    sound = tmp_path / "sound"
    old.save_pretrained(sound)
    (sound / "notes").mkdir()
    for name in ("mine.txt", "notes/a"):
        (sound / name).write_text("kept")
    found, at = [], 0
    while True:
        at += 1
        folder = tmp_path / f"adapter{at}"
        shutil.copytree(sound, folder)
        if not killed(lambda folder=folder: new.save_pretrained(folder), folder, at):
            break
        if at % 2:  # a second kill, while the first one's work is finished
            killed(lambda folder=folder: read_config(folder), folder, 1 + at // 2 % 9)
        found.append(state(folder))
        if found[-1][0]:
            assert not (folder / atomic.PENDING).exists()
        new.save_pretrained(folder)
        assert state(folder) == (True, False)
        assert not [file.name for file in folder.iterdir() if file.name.startswith(".")]
        shutil.rmtree(folder)
    assert at > 20 and set(found) == {(False, True), (True, False)}
    assert found == sorted(found), "once the new one is whole it stays"


def test_a_full_disk_leaves_the_old_one_and_says_so(tmp_path, models, monkeypatch):
    old, new = models
    folder = tmp_path / "adapter"
    old.save_pretrained(folder)
    for name in ("mine.txt", "notes"):
        (folder / name).write_text("kept") if name.endswith("txt") else (folder / name).mkdir()
    (folder / "notes" / "a").write_text("kept")
    before = {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}
    real, calls = os.fsync, 0
    for at in range(1, 100):
        calls = 0

        def full(handle: int, at: int = at) -> None:
            nonlocal calls
            calls += 1
            if calls == at and not (folder / atomic.PENDING).exists():
                raise OSError(errno.ENOSPC, "No space left on device")
            real(handle)

        monkeypatch.setattr(os, "fsync", full)
        try:
            new.save_pretrained(folder)
        except AdapterError as error:
            assert "cannot be written: No space left on device" in str(error)
        else:
            break
        assert {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()} == before
        assert {file.name for file in folder.iterdir()} == {*before, "notes"}
    assert at > 5 and state(folder) == (True, False)


def test_a_folder_in_the_place_of_a_file_is_refused_before_anything_changes(tmp_path, models):
    old, new = models
    old.save_pretrained(tmp_path / "adapter")
    (tmp_path / "adapter" / "README.md").unlink()
    (tmp_path / "adapter" / "README.md").mkdir()
    with pytest.raises(AdapterError, match="cannot be written: Is a directory"):
        new.save_pretrained(tmp_path / "adapter")
    assert any(tensor.any() for tensor in read_weights(tmp_path / "adapter").values())


def test_scores_and_card_are_kept_together_or_not_at_all(tmp_path, models, monkeypatch):
    models[0].save_pretrained(tmp_path / "adapter")
    card = (tmp_path / "adapter" / "README.md").read_text()
    monkeypatch.setattr(atomic, "publish", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left")))
    with pytest.raises(AdapterError, match="cannot be written: No space left"):
        keep(tmp_path / "adapter", "scores", {"data": "d", "scores": {"all": {"value": 1, "low": 1, "high": 1, "count": 1}}})
    assert (tmp_path / "adapter" / "README.md").read_text() == card
    assert not (tmp_path / "adapter" / "measured.json").exists()


def test_an_interrupted_save_in_a_folder_that_cannot_be_written_is_named(tmp_path, models, monkeypatch):
    models[0].save_pretrained(tmp_path / "adapter")
    (tmp_path / "adapter" / atomic.PENDING).mkdir()
    (tmp_path / "adapter" / atomic.PENDING / "README.md").write_text("new")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(PermissionError(errno.EACCES, "Permission denied")))
    with pytest.raises(AdapterError, match="was interrupted, and cannot be finished: Permission denied; make it writable"):
        read_config(tmp_path / "adapter")
    monkeypatch.undo()
    read_config(tmp_path / "adapter")
    assert (tmp_path / "adapter" / "README.md").read_text() == "new"
