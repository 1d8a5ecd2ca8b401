"""A decoder's checkpoint holds all of its weights, or is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dehvf_kit.backbones.decoder import HfDecoderConfig
from dehvf_kit.errors import DehvfError
from dehvf_kit.testing import tiny_models


def save_without(model: torch.nn.Module, folder: Path, lacks: str) -> None:
    model.save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if name != lacks}
    assert len(kept) == len(weights) - 1
    save_file(kept, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("lacks", ["model.norm.weight", "model.layers.1.mlp.up_proj.weight", "lm_head.weight"])
def test_weights_that_would_be_left_random_are_an_error(tmp_path: Path, lacks: str) -> None:
    save_without(tiny_models.tiny_decoder("llama", tie_word_embeddings=False), tmp_path, lacks)
    with pytest.raises(DehvfError, match=f"lacks 1 weights of LlamaForCausalLM, for example {lacks}; .*build\\(decoder=...\\)"):
        HfDecoderConfig(model=str(tmp_path)).load({})


def test_a_tied_head_is_not_missing(tmp_path: Path) -> None:
    model = tiny_models.tiny_decoder("gpt2")
    model.save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    loaded = HfDecoderConfig(model=str(tmp_path)).load({})
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)
