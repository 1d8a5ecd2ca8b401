"""Encoders that take an image as patches that are cut already."""

from __future__ import annotations

import inspect

from einops import repeat
from torch import Tensor, nn

from dehvf_kit.backbones.vision.overrides import VisionOverride

# Where one of these arguments is taken, images are handed over as patches, laid out as the pattern says.
PACKED = {
    "grid_thw": "(image block mr mc) (c t h w)",
    "image_grid_thw": "(image block mr mc) (c t h w)",
    "spatial_shapes": "image (block mr mc) (h w c)",
    "pixel_position_ids": "image (block mr mc) (h w c)",
    "target_sizes": "1 c h (image block mr mc w)",
}


def packing(model: nn.Module, override: VisionOverride) -> tuple[str, int] | None:
    """How an encoder takes patches: the einops pattern, and how many are on a side of a block; None: whole images."""
    takes = inspect.signature(model.forward).parameters
    packed = next((name for name in PACKED if name in takes), None)
    pattern = override.pixels or (PACKED[packed] if packed else None)
    if pattern is None:
        return None
    own = getattr(getattr(model, "config", None), "spatial_merge_size", None) if packed else None
    return pattern, override.merge or own or 1


def packed_patches(model: nn.Module, pixels: Tensor, patch_size: tuple[int, int], merge: int, pattern: str) -> Tensor:
    """Images [image, 3, height, width], sides multiples of a block's, as patches in the layout of `pattern`.

    A still image fills every frame `t` of a patch.
    """
    height, width = patch_size
    frames = _frames(model, pixels.shape[1] * height * width)
    rows = pixels.shape[-2] // (height * merge)
    cut = pixels.reshape(len(pixels), -1, rows, merge, height, pixels.shape[-1] // (width * merge), merge, width)
    cut = cut.permute(0, 2, 5, 3, 6, 1, 4, 7).flatten(1, 2)
    times = {"t": frames} if "t" in pattern.replace("(", " ").replace(")", " ").split() else {}
    return repeat(cut, f"image block mr mc c h w -> {pattern}", **times)


def _frames(model: nn.Module, pixels_of_patch: int) -> int:
    """How many frames the patch embedding, the first matrix or convolution of an encoder, reads at once."""
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)) and isinstance(weight, Tensor):
            reads = weight.numel() // weight.shape[0]
            if reads % pixels_of_patch == 0:
                return max(1, reads // pixels_of_patch)
    return 1
