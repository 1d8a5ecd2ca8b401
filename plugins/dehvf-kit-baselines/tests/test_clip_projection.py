"""CLIP's projected features: the last global token is CLIP's own image embedding."""

from __future__ import annotations

import pytest
import torch
from baseline_helpers import LLAMA, VIT, decoder, ids, pixels, tokenizer, worst
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

import dehvf_kit
from dehvf_kit.errors import DehvfError

CLIP = {**VIT, "intermediate_size": 48, "projection_dim": 10}


def recipe(model_type: str = "clip_vision_model") -> dehvf_kit.Recipe:
    return dehvf_kit.parse_recipe(
        {
            "vision": {"type": "clip_projection", "config": {"model_type": model_type, **CLIP}, "image": {"size": 32}},
            "decoder": {"config": {"model_type": "llama", **LLAMA}},
            "graph": {
                "reader": {"type": "global_tokens", "num_tokens": 1},
                "projector": {"type": "bottleneck_mlp", "bottleneck_size": 6, "inputs": {"patches": "reader"}},
                "decoder_adapter": {"type": "gated_prefix", "num_prompts": 2, "num_layers": 2},
            },
        }
    )


def test_the_global_token_is_clips_embedding() -> None:
    """No difference seen: the same maps on the same token, in a batch of another shape."""
    torch.manual_seed(1)
    clip = CLIPVisionModelWithProjection(CLIPVisionConfig(**CLIP)).eval()
    expected = clip(pixels()).image_embeds
    model = dehvf_kit.build(recipe(), decoder=decoder(), vision=clip, tokenizer=tokenizer())
    features = model.vision_features(pixels())
    assert features.shape == (3, 1, 17, 10)
    assert worst(features[:, 0, 0], expected) < 1e-5
    assert model.nodes.projector.fc1.in_features == 10
    assert torch.isfinite(model(input_ids=ids(), vision_features=features).logits).all()


def test_other_encoders_are_refused() -> None:
    with pytest.raises(DehvfError, match="type clip_projection is for CLIP; 'siglip_vision_model'"):
        recipe("siglip_vision_model").check()
