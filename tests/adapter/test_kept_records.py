"""A checkpoint is digested once: its record is found again while its files are the same, and only then."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from helpers import tiny_decoder
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from dehvf_kit.adapter import base_weights
from dehvf_kit.adapter.base_weights import compare, record


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DEHVF_KIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(base_weights, "STARTED", 2**63)
    tiny_decoder().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def load(folder: Path, dtype: torch.dtype = torch.float32):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).requires_grad_(False)


def kept(folder: Path, monkeypatch: pytest.MonkeyPatch, model=None) -> tuple[dict[str, str], bool]:
    """A record, and whether it was computed for that."""
    computed = []
    with monkeypatch.context() as patch:
        patch.setattr(base_weights, "record", lambda model: computed.append(model) or record(model))
        found = base_weights.kept_record(load(folder) if model is None else model)
    return found, bool(computed)


def test_the_second_time_reads_no_weight(folder, monkeypatch):
    first, computed = kept(folder, monkeypatch)
    assert computed and first == record(load(folder))
    assert kept(folder, monkeypatch) == (first, False)
    assert kept(folder, monkeypatch, load(folder, torch.bfloat16))[1], "another dtype has another record"


def test_a_changed_file_is_read_again(folder, monkeypatch):
    first, _ = kept(folder, monkeypatch)
    file = folder / "model.safetensors"
    times = file.stat()
    weights = load_file(file)
    weights["model.norm.weight"][5] += 1
    save_file(weights, file, {"format": "pt"})
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))  # as a copy with its times, of the same size, does
    assert file.stat().st_size == times.st_size
    second, computed = kept(folder, monkeypatch)
    assert computed and compare(first, second).other == ["model.norm.weight"]


def test_a_file_that_changed_since_the_start_is_not_kept(folder, monkeypatch):
    monkeypatch.setattr(base_weights, "STARTED", 0)
    assert [kept(folder, monkeypatch)[1] for _ in range(2)] == [True, True]


def test_a_model_with_trained_weights_is_not_kept(folder, monkeypatch):
    kept(folder, monkeypatch)
    model = load(folder)
    model.lm_head.weight.requires_grad = True
    assert kept(folder, monkeypatch, model)[1]


@pytest.mark.parametrize("damage", [b"", b"{", b"{}", b'{"lm_head.weight": "float32=1"}', b"[1]", b"\xff\xfe"])
def test_a_damaged_record_is_made_anew(folder, monkeypatch, damage):
    first, _ = kept(folder, monkeypatch)
    (file,) = (folder.parent / "cache" / "bases").iterdir()
    file.write_bytes(damage)
    assert kept(folder, monkeypatch) == (first, True)
    assert kept(folder, monkeypatch) == (first, False)


def test_a_cache_that_cannot_be_written_keeps_nothing(folder, monkeypatch):
    (folder.parent / "cache").write_text("a file")
    assert [kept(folder, monkeypatch)[1] for _ in range(2)] == [True, True]


def test_a_model_without_files_is_read(folder, monkeypatch):
    assert kept(folder, monkeypatch, tiny_decoder().requires_grad_(False))[1]
    assert not (folder.parent / "cache").exists()
