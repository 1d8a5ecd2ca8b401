"""The pooler alone, in a graph, and refused where it does not fit."""

from __future__ import annotations

import pytest
import torch
from dehvf_kit_pool import AveragePooler
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

import dehvf_kit
from dehvf_kit.recipe.plugin_manager import plugins

LLAMA = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 31}
CLIP = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}


def recipe(window: int = 2) -> dehvf_kit.Recipe:
    return dehvf_kit.parse_recipe(
        {
            "vision": {"config": {"model_type": "clip_vision_model", **CLIP}, "image": {"size": 32}},
            "decoder": {"config": {"model_type": "llama", **LLAMA}},
            "graph": {
                "pooler": {"type": "average", "window": window, "inputs": {"patches": "vision"}},
                "grouper": {"type": "listed", "groups": [[-2]]},
                "projector": {"type": "bottleneck_mlp", "bottleneck_size": 4, "inputs": {"patches": "pooler"}},
                "fuser": {"type": "mean"},
                "position": {"type": "learned", "num_slots": 6},
                "injector": {"type": "ffn_memory"},
            },
        }
    )


def test_installed_as_a_plugin() -> None:
    assert ("pooler", "average") in plugins().registry.configs
    assert plugins().origins["pool"].startswith("dehvf-kit-pool")


def test_windows_are_neighbours_in_the_picture() -> None:
    grid = torch.arange(16.0).view(1, 1, 16, 1)
    assert AveragePooler(4, 2)(grid).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]


def test_runs_in_a_graph_with_a_quarter_of_the_slots() -> None:
    model = dehvf_kit.build(
        recipe(), decoder=LlamaForCausalLM(LlamaConfig(**LLAMA)), vision=CLIPVisionModel(CLIPVisionConfig(**CLIP))
    )
    outputs = model.run_graph(2, pixel_values=torch.randn(2, 3, 32, 32))
    assert outputs["fuser"][0].shape == (2, 2, 1, 4, 4)
    assert torch.isfinite(model(input_ids=torch.tensor([[1, 2], [3, 4]]), pixel_values=torch.randn(2, 3, 32, 32)).logits).all()


def test_window_that_does_not_tile_is_refused() -> None:
    with pytest.raises(dehvf_kit.RecipeError, match="graph.pooler.window: windows of 3 x 3 do not tile a grid of 16 patches"):
        recipe(window=3)
