"""Adapters saved by dehvf-kit before its folders were rearranged (0.1.0 in development) load and answer as they did then."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import pixels, tiny_decoder, tiny_vision, tokens
from safetensors.torch import load_file
from torch import nn

import dehvf_kit

SAVED = Path(__file__).parent / "saved_by_0_1_0_dev"
SMALL_DINO = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}


def encoders(name: str) -> nn.Module | dict[str, nn.Module]:
    clip = tiny_vision()
    return clip if name == "one_encoder" else {"clip": clip, "dino": tiny_vision("dinov2", **SMALL_DINO)}


@pytest.mark.parametrize("name", ["one_encoder", "two_encoders"])
def test_an_old_adapter_answers_as_it_did(name: str, tmp_path: Path) -> None:
    model = dehvf_kit.load(SAVED / name, decoder=tiny_decoder(), vision=encoders(name))
    images = pixels() if name == "one_encoder" else {"clip": pixels(), "dino": pixels(size=28)}
    with torch.no_grad():
        logits = model(tokens(), pixel_values=images).logits
    then = load_file(SAVED / name / "logits.safetensors")["logits"]
    # Bit for bit where they were saved; another CPU's kernels sum in another order (worst of those measured here: 0).
    assert (logits - then).abs().max() <= 1e-6

    model.save_pretrained(tmp_path / "again")
    before, after = (load_file(folder / "adapter_model.safetensors") for folder in (SAVED / name, tmp_path / "again"))
    assert list(before) == list(after) and all(torch.equal(before[key], after[key]) for key in before)
