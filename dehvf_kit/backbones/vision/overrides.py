"""How vision encoders are fed and read when auto-detection fails: one entry per `model_type`.

A plugin adds an entry for an encoder of its own with `register_vision_override`. Everything else is detected: the blocks
(`ffn_sites`), the tokens' order and the final norm (`layout.py`), the inputs by the names of the forward's arguments (`tower.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from dehvf_kit.backbones.ffn.overrides import register_ffn_override
from dehvf_kit.errors import VisionError

Arguments = Callable[[nn.Module, Tensor, tuple[int, int]], Mapping[str, Any]]


@dataclass(frozen=True)
class VisionOverride:
    """How encoders of one `model_type` (or class, where the config has none) are fed and read when auto-detection fails.

    `pixels`: what the encoder is given instead of [image, 3, height, width], as the right side of an einops pattern
    over the axes image, block, mr, mc (merge row and column inside a block of patches), c, t (frame), h, w (pixels of
    a patch), for example `"(image block mr mc) (c t h w)"`. `merge`: patches on a side of a block (None: the
    config's `spatial_merge_size` where patches are packed, else 1).
    `arguments`: called with (model, pixels [image, 3, height, width], (rows, columns) of the patch grid), returns
    further keywords of the forward, or other values for those the kit would pass. `settings`: config fields set for
    the time of a pass. `post_norm`: path of the final norm, or "" for none.
    """

    pixels: str | None = None
    merge: int | None = None
    arguments: Arguments | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    post_norm: str | None = None
    reason: str = ""


def _keep_every_patch(model: nn.Module, pixels: Tensor, grid: tuple[int, int]) -> Mapping[str, Any]:
    places = torch.arange(grid[0] * grid[1], device=pixels.device)
    return {"noise": places.expand(len(pixels), -1)}


def _grid_of_blocks(model: nn.Module, pixels: Tensor, grid: tuple[int, int]) -> Mapping[str, Any]:
    side = model.config.spatial_merge_size
    return {"image_grid_thw": torch.tensor([[1, grid[0] // side, grid[1] // side]] * len(pixels))}


def _one_tile(model: nn.Module, pixels: Tensor, grid: tuple[int, int]) -> Mapping[str, Any]:
    """The image in the first of the tiles the encoder always has; the others empty and masked."""
    tiles = pixels.new_zeros(len(pixels), 1, model.config.max_num_tiles, *pixels.shape[1:])
    tiles[:, 0, 0] = pixels
    mask = torch.zeros(len(pixels), 1, model.config.max_num_tiles, dtype=torch.long, device=pixels.device)
    mask[:, :, 0] = 1
    return {"pixel_values": tiles, "aspect_ratio_ids": torch.ones_like(mask[:, :, 0]), "aspect_ratio_mask": mask}


def _without_merger(model: nn.Module, pixels: Tensor, grid: tuple[int, int]) -> Mapping[str, Any]:
    return {"use_vit_merger": False}


_MINICPM = VisionOverride(
    arguments=_without_merger, reason="a merger between two blocks, which the family itself makes optional, is left out"
)
VISION_OVERRIDES: dict[str, VisionOverride] = {
    "vit_mae": VisionOverride(
        arguments=_keep_every_patch, settings={"mask_ratio": 0.0}, reason="drops and shuffles patches, also in evaluation"
    ),
    "gemma4_vision": VisionOverride(merge=1, reason="rows in image order, whatever the pooling"),
    "hunyuan_vl_vision": VisionOverride(merge=1, reason="rows in image order, though merged later"),
    "kimi_k25_vision": VisionOverride("(image block mr mc) c h w", merge=1, reason="patches as small images"),
    "paddleocr_vl_vision": VisionOverride("1 (image block mr mc) c h w", merge=1, reason="patches as small images, in image order"),
    "molmo2_vision": VisionOverride("image (block mr mc) (h w c)", reason="takes patches, not images"),
    "muse_glimmer_vision": VisionOverride("(image block mr mc) (t c h w)", reason="frames before channels in a row"),
    "muse_spark_vision": VisionOverride("(image block mr mc) (t c h w)", reason="frames before channels in a row"),
    "cosmos3_edge_vision": VisionOverride("(image block mr mc) (h w c t)", reason="channels last in a row"),
    "inkling2_vision": VisionOverride(
        "(image block) (mr h) (mc w) c", arguments=_grid_of_blocks, reason="takes blocks of patches as small images"
    ),
    "mllama_vision_model": VisionOverride(arguments=_one_tile, reason="an image is one of several tiles"),
    "minicpmv4_6_vision": _MINICPM,
    "minicpmv4_7_vision": _MINICPM,
    "minicpm_ocr_vision": _MINICPM,
}


def register_vision_override(
    model_type: str,
    *,
    pixels: str | None = None,
    merge: int | None = None,
    arguments: Arguments | None = None,
    settings: Mapping[str, Any] | None = None,
    post_norm: str | None = None,
    layers: str | tuple[str, ...] | None = None,
    reason: str = "",
) -> None:
    """Describe encoders of one `config.model_type`, or of one class without it, where auto-detection fails.

    The fields are those of `VisionOverride`.
    `layers`: the block lists meant, as for `register_ffn_override`, where an encoder has several.
    Raises: VisionError if the type has another description already, DecoderError if its `layers` have.
    """
    override = VisionOverride(
        pixels, merge=merge, arguments=arguments, settings=dict(settings or {}), post_norm=post_norm, reason=reason
    )
    known = VISION_OVERRIDES.get(model_type, override)
    if replace(known, reason="") != replace(override, reason=""):
        raise VisionError(
            f"register_vision_override: {model_type} is described already ({known}); "
            "remove one of the two plugins, or give your model a model_type of its own"
        )
    if layers is not None:
        register_ffn_override(model_type, layers=layers, reason=reason)
    VISION_OVERRIDES[model_type] = override
