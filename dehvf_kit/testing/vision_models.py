"""Tiny random vision encoders of any transformers architecture, and the list of those transformers knows.

Sizes shrink as for decoders (`tiny_models`); what only images have (patches, windows, grids) is set here by field
name. Nothing is downloaded.
"""

from __future__ import annotations

import importlib
import warnings
from typing import Any

import torch
from torch import nn
from transformers import CONFIG_MAPPING, AutoConfig, PretrainedConfig

from dehvf_kit.backbones.vision.config import vision_class
from dehvf_kit.errors import VisionError, did_you_mean
from dehvf_kit.testing.tiny_models import HEAD_DIM, HIDDEN_SIZE, NUM_HEADS, NUM_LAYERS, shrink_config

PATCH, GRID = 4, 6
IMAGE_FIELDS = ("patch_size", "image_size", "num_channels", "in_channels", "in_chans")
# Field name -> value, where a configuration has the field.
IMAGE_SIZES: dict[str, Any] = {
    "patch_size": PATCH,
    "image_size": PATCH * GRID,
    "max_image_size": PATCH * GRID,
    "num_patches": GRID * GRID,
    "num_image_patches": GRID * GRID,
    "num_position_embeddings": GRID * GRID,
    "num_hidden_layers": NUM_LAYERS,
    "num_layers": NUM_LAYERS,
    "depth": NUM_LAYERS,
    "fullatt_block_indexes": [1],
    "deepstack_visual_indexes": [0],
    "deepstack_layer_ids": [0],
    "intermediate_layers_indices": [0],
    "insert_layer_id": 0,
    "out_hidden_size": HIDDEN_SIZE,
    "hidden_size": HIDDEN_SIZE,
    "head_dim": HEAD_DIM,
    "num_heads": NUM_HEADS,
}
EXTRA_VISION_SETTINGS: dict[str, dict[str, Any]] = {
    "bridgetower_vision_model": {"hidden_size": 64},
    "llama4_vision_model": {"intermediate_size": 4 * HIDDEN_SIZE},
    "lw_detr_vit": {"image_size": 8 * PATCH, "num_windows": 4},
    "rf_detr_dinov2": {"image_size": 8 * PATCH, "num_windows": 2},
    "vitpose_backbone": {"part_features": 8, "num_experts": 1, "patch_size": (16, 16), "image_size": (96, 96)},
}
# Encoders that are no model of their own; the kit reads them when they are handed over (`model.vision_model`).
INNER_ENCODERS = {"idefics_vision": ("transformers.models.idefics.vision", "IdeficsVisionTransformer")}


def image_encoder_types() -> list[str]:
    """The model types in transformers whose default configuration speaks of images and not of text, one a class."""
    found: dict[type, str] = {}
    for model_type in CONFIG_MAPPING:
        config_class = CONFIG_MAPPING[model_type]
        try:
            fields = vars(config_class())
        except Exception:  # noqa: BLE001 - a configuration without defaults belongs to no encoder of its own
            continue
        if any(name in fields for name in IMAGE_FIELDS) and not hasattr(config_class(), "text_config"):
            found.setdefault(config_class, model_type)
    return list(found.values())


def tiny_vision_config(model_type: str, **settings: Any) -> PretrainedConfig:
    """A configuration of one architecture with 2 blocks 32 wide, patches of 4 pixels and a native grid of 6 x 6.

    Raises: VisionError for an unknown type; whatever the configuration class raises for sizes that it refuses.
    """
    if model_type not in CONFIG_MAPPING:
        near = did_you_mean(model_type, CONFIG_MAPPING)
        raise VisionError(f"tiny_vision_config: transformers has no model type '{model_type}'{near}")
    return shrink_vision_config(AutoConfig.for_model(model_type), **settings)


def shrink_vision_config(config: PretrainedConfig, **settings: Any) -> PretrainedConfig:
    """A tiny configuration of the same architecture and the same switches as a real one."""
    fields = vars(config)
    sizes = {name: value for name, value in IMAGE_SIZES.items() if fields.get(name) is not None}
    for name in ("patch_size", "image_size"):
        if isinstance(fields.get(name), (list, tuple)):
            sizes[name] = type(fields[name])([sizes[name]] * len(fields[name]))
    if isinstance(fields.get("window_size"), int) and fields["window_size"]:
        sizes["window_size"] = 4 * PATCH if "spatial_merge_size" in fields or fields["window_size"] > 64 else 2
    sizes |= EXTRA_VISION_SETTINGS.get(config.model_type, {})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return shrink_config(config, **{**sizes, **settings})


def tiny_vision(model_type: str, seed: int = 0, **settings: Any) -> nn.Module:
    """A tiny random vision encoder of one architecture, in evaluation mode, on the CPU, in float32.

    Weights are large enough for features to differ from patch to patch and layer to layer.

    Args: model_type, as transformers names it; seed of the weights; settings of its config.
    """
    config = tiny_vision_config(model_type, **settings)
    return random_vision(config, seed)


def build_vision(config: PretrainedConfig) -> nn.Module:
    """An encoder of a configuration with the weights its class starts with; also those only a larger model holds."""
    if config.model_type in INNER_ENCODERS:
        path, name = INNER_ENCODERS[config.model_type]
        return getattr(importlib.import_module(path), name)(config)
    return vision_class(config)._from_config(config)


@torch.no_grad()
def random_vision(config: PretrainedConfig, seed: int = 0) -> nn.Module:
    """A random encoder of a configuration; see `tiny_vision`."""
    torch.manual_seed(seed)
    model = build_vision(config).eval()
    for name, weight in model.named_parameters():
        if not weight.is_floating_point():
            continue
        if weight.ndim > 1 or not bool(weight.any()) or not bool(torch.isfinite(weight).all()):
            weight.normal_(std=0.1 if weight.ndim > 1 else 0.02)
        elif "gate" in name or "lambda" in name or "scale" in name:
            weight.fill_(0.5)
    for buffer in model.buffers():
        if buffer.is_floating_point() and not bool(torch.isfinite(buffer).all()):
            buffer.zero_()
    return model
