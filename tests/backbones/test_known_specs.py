"""Sizes computed from a plain config are those of the model built on the meta device."""

from __future__ import annotations

from typing import Any

import pytest

from dehvf_kit.backbones.decoder import HfDecoderConfig, decoder_spec
from dehvf_kit.backbones.ffn import overrides
from dehvf_kit.backbones.known_specs import clip_vision_spec, llama_spec
from dehvf_kit.backbones.vision.config import HfVisionConfig
from dehvf_kit.recipe.recipe import load_recipe

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 48,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "vocab_size": 57,
}
CLIP: dict[str, Any] = {
    "model_type": "clip_vision_model",
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "patch_size": 7,
    "image_size": 28,
}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_key_value_heads": 2, "max_position_embeddings": 99, "rms_norm_eps": 1e-5},
        {"num_key_value_heads": 6, "num_hidden_layers": 1},
    ],
)
def test_llama(changes: dict[str, Any]) -> None:
    config = {**LLAMA, **changes}
    assert llama_spec(config) == decoder_spec(HfDecoderConfig(config=config).meta({}))


@pytest.mark.parametrize("changes", [{}, {"projection_dim": 5}, {"image_size": 30}, {"patch_size": 28}])
def test_clip(changes: dict[str, Any]) -> None:
    config = {**CLIP, **changes}
    tower = HfVisionConfig(config=config, image={"size": config["image_size"]})
    assert clip_vision_spec(config, config["image_size"]) == tower.tower(tower.meta({})).spec


def test_the_paper_recipe_is_known() -> None:
    recipe = load_recipe("recipes/llama7b_clip.yaml")
    assert llama_spec(recipe.decoder.config) == decoder_spec(recipe.decoder.meta({}))
    tower = recipe.vision["vision"]
    assert clip_vision_spec(tower.config, 224) == tower.tower(tower.meta({})).spec


@pytest.mark.parametrize(
    "changes",
    [
        {"tie_word_embeddings": True},
        {"hidden_act": "gelu"},
        {"model_type": "mistral"},
        {"num_attention_heads": 5},
        {"num_attention_heads": 16},  # heads of 3, which rotary positions cannot halve
        {"num_key_value_heads": 4},
        {"num_hidden_layers": 0},
        {"num_hidden_layers": 513},
        {"hidden_size": "48"},
        {"vocab_size": True},
        {"rms_norm_eps": 1},
    ],
)
def test_whatever_else_is_left_to_the_model_itself(changes: dict[str, Any]) -> None:
    assert llama_spec({**LLAMA, **changes}) is None


def test_a_missing_size_another_image_size_and_no_config_are_left_to_the_model_itself() -> None:
    assert llama_spec({name: value for name, value in LLAMA.items() if name != "vocab_size"}) is None
    assert llama_spec(None) is None and clip_vision_spec(None, 28) is None
    assert clip_vision_spec(CLIP, 35) is None
    assert clip_vision_spec({**CLIP, "patch_size": 29}, 28) is None


def test_a_family_that_a_plugin_describes_is_read_by_its_description(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(overrides.FFN_OVERRIDES, "llama", overrides.FfnOverride(layers=("model.layers",)))
    assert llama_spec(LLAMA) is None
