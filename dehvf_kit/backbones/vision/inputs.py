"""Turns pictures into what a vision encoder's forward takes: pixels as they are, or patches packed in rows.

The names of the forward's arguments say what it needs (`grid_thw`, `spatial_shapes`, `target_sizes`, ...);
`vision_overrides` says what names cannot. Pictures of one call have one size, so no padding is ever made.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from einops import repeat
from torch import Tensor, nn

from dehvf_kit.backbones.vision.overrides import VisionOverride, override_key
from dehvf_kit.errors import VisionError, listing

# Where one of these arguments is taken, pictures are handed over as patches, laid out as the pattern says.
PACKED = {
    "grid_thw": "(image block mr mc) (c t h w)",
    "image_grid_thw": "(image block mr mc) (c t h w)",
    "spatial_shapes": "image (block mr mc) (h w c)",
    "pixel_position_ids": "image (block mr mc) (h w c)",
    "target_sizes": "1 c h (image block mr mc w)",
}
# Arguments that the kit can fill in for `images` pictures of `rows` x `columns` patches.
FILLED: dict[str, Callable[[int, int, int], Tensor]] = {
    "grid_thw": lambda images, rows, columns: torch.tensor([[1, rows, columns]] * images),
    "image_grid_thw": lambda images, rows, columns: torch.tensor([[1, rows, columns]] * images),
    "spatial_shapes": lambda images, rows, columns: torch.tensor([[rows, columns]] * images),
    "target_sizes": lambda images, rows, columns: torch.tensor([[rows, columns]] * images, dtype=torch.int32),
    "merge_sizes": lambda images, rows, columns: torch.ones(images, dtype=torch.long),
    "pixel_attention_mask": lambda images, rows, columns: torch.ones(images, rows * columns, dtype=torch.long),
    "pixel_position_ids": lambda images, rows, columns: (
        torch.stack(torch.meshgrid(torch.arange(columns), torch.arange(rows), indexing="xy"), -1)
        .reshape(1, -1, 2)
        .expand(images, -1, -1)
    ),
}


def pair(size: Any) -> tuple[int, int] | None:
    """A size as (height, width); None for what is no size."""
    if isinstance(size, int) and not isinstance(size, bool):
        return size, size
    if isinstance(size, (list, tuple)) and len(size) == 2 and all(isinstance(side, int) for side in size):
        return size[0], size[1]
    return None


def packing(model: nn.Module, override: VisionOverride) -> tuple[str, int] | None:
    """How an encoder takes patches: the einops pattern, and how many are on a side of a block; None: whole pictures."""
    takes = inspect.signature(model.forward).parameters
    packed = next((name for name in PACKED if name in takes), None)
    pattern = override.pixels or (PACKED[packed] if packed else None)
    if pattern is None:
        return None
    own = getattr(getattr(model, "config", None), "spatial_merge_size", None) if packed else None
    return pattern, override.merge or own or 1


def check_size(model: nn.Module, size: tuple[int, int], patch_size: tuple[int, int], override: VisionOverride) -> None:
    """Refuse pictures of a (height, width) that cannot be cut. Raises: VisionError saying which can."""
    height, width = patch_size
    if size[0] < height or size[1] < width:
        raise VisionError(f"an image of {size} pixels is smaller than a patch of {patch_size}")
    packed = packing(model, override)
    merge = packed[1] if packed else 1
    if packed and (size[0] % (height * merge) or size[1] % (width * merge)):
        raise VisionError(
            f"{type(model).__name__} wants image sides that are multiples of {height * merge} and {width * merge} "
            f"pixels (a patch of {height} x {width}, in blocks of {merge} x {merge}); given {size}"
        )


def model_arguments(
    model: nn.Module, pixels: Tensor, patch_size: tuple[int, int], override: VisionOverride
) -> dict[str, Any]:
    """The keywords of an encoder's forward for pictures [image, 3, height, width].

    Raises: VisionError where the forward needs something the kit does not know of, or the size does not fit.
    """
    size = (pixels.shape[-2], pixels.shape[-1])
    takes = inspect.signature(model.forward).parameters
    grid = (size[0] // patch_size[0], size[1] // patch_size[1])
    packed = packing(model, override)
    first = next(iter(takes))
    given: dict[str, Any] = {first: pixels}
    if packed is not None:
        given[first] = packed_patches(model, pixels, patch_size, packed[1], packed[0])
    if any(name in takes for name in PACKED):
        given |= {name: fill(len(pixels), *grid).to(pixels.device) for name, fill in FILLED.items() if name in takes}
    native = pair(getattr(getattr(model, "config", None), "image_size", None))
    if "interpolate_pos_encoding" in takes and native not in (None, size):
        given["interpolate_pos_encoding"] = True
    if override.arguments is not None:
        given |= override.arguments(model, pixels, grid)
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    missing = [name for name, p in takes.items() if p.default is p.empty and p.kind not in kinds and name not in given]
    if missing:
        raise VisionError(
            f"{type(model).__name__}: its forward also needs {listing(missing)}; say what to give in a plugin's hook "
            f"register_vision_overrides: register('{override_key(model)}', arguments=...)"
        )
    return given


def packed_patches(model: nn.Module, pixels: Tensor, patch_size: tuple[int, int], merge: int, pattern: str) -> Tensor:
    """Pictures [image, 3, height, width], sides multiples of a block's, as patches in the layout of `pattern`.

    A still picture fills every frame `t` of a patch.
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


@contextmanager
def settings_for_a_pass(model: nn.Module, override: VisionOverride) -> Iterator[None]:
    """Config fields set while an encoder runs, and set back after."""
    config = getattr(model, "config", None)
    before = {name: getattr(config, name) for name in override.settings}
    try:
        for name, value in override.settings.items():
            setattr(config, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(config, name, value)
