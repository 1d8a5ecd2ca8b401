"""Packed patches are those the families' own image processors make, order of rows and of pixels in a row included."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from dehvf_kit.backbones.vision.tower import VisionTower, model_arguments
from dehvf_kit.testing.vision_models import tiny_vision

PICTURES = torch.rand(2, 3, 24, 32, generator=torch.Generator().manual_seed(0))
UNTOUCHED = {"do_resize": False, "do_rescale": False, "do_normalize": False, "patch_size": 4}
MERGED = {**UNTOUCHED, "merge_size": 2}


@pytest.mark.parametrize(
    ("model_type", "processor", "settings"),
    [
        ("qwen2_vl_vision", "Qwen2VLImageProcessor", MERGED),
        ("qwen2_5_vl_vision", "Qwen2VLImageProcessor", MERGED),
        ("glm4v_vision", "Glm4vImageProcessor", MERGED),
        ("minimax_m3_vl_vision", "MiniMaxM3VLImageProcessor", MERGED),
        ("ernie4_5_vl_moe_vision", "Ernie4_5_VLMoeImageProcessor", MERGED),
        ("cosmos3_edge_vision", "Cosmos3EdgeImageProcessor", MERGED),
        ("hunyuan_vl_vision", "HunYuanVLImageProcessor", MERGED),
        ("muse_glimmer_vision", "MuseGlimmerImageProcessor", MERGED),
        ("kimi_k25_vision", "Kimi_K25ImageProcessor", MERGED),
        ("siglip2_vision_model", "Siglip2ImageProcessor", {**UNTOUCHED, "max_num_patches": 48}),
        ("gemma4_vision", "Gemma4ImageProcessor", UNTOUCHED),
    ],
)
def test_rows_are_the_processors_own(model_type: str, processor: str, settings: dict[str, Any]) -> None:
    pytest.importorskip("torchvision", reason="these image processors need torchvision")
    model = tiny_vision(model_type)
    tower = VisionTower(model, 24)
    given = model_arguments(model, PICTURES, tower.patch_size, tower.override)
    own = getattr(transformers, processor)(**settings)(list(PICTURES), return_tensors="pt", **settings)
    pixels, ours = own["pixel_values"], next(iter(given.values()))
    if model_type == "gemma4_vision":  # it pads to a fixed number of patches
        positions = given["pixel_position_ids"]
        assert torch.equal(own["image_position_ids"][:, : positions.shape[1]], positions)
        pixels = pixels[:, : ours.shape[1]]
    assert torch.equal(pixels, ours)
    for name, theirs in (("grid_thw", "image_grid_thw"), ("spatial_shapes", "spatial_shapes")):
        if name in given:
            assert torch.equal(given[name], own[theirs])
