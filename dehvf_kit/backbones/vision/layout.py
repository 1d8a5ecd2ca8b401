"""Where an encoder keeps each patch among its tokens, found by changing patches and seeing which tokens change.

Class, register and detection tokens, window order, merge blocks, grids and packed rows need no names this way: before
the first block nothing has mixed tokens yet, so every token there depends on its own patch or on none.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from einops import repeat
from torch import Tensor, nn

from dehvf_kit.backbones.ffn.structure import is_norm, norm_width
from dehvf_kit.backbones.vision.overrides import VisionOverride
from dehvf_kit.errors import VisionError

# Where one of these arguments is taken, images are handed over as patches, laid out as the pattern says.
PACKED = {
    "grid_thw": "(image block mr mc) (c t h w)",
    "image_grid_thw": "(image block mr mc) (c t h w)",
    "spatial_shapes": "image (block mr mc) (h w c)",
    "pixel_position_ids": "image (block mr mc) (h w c)",
    "target_sizes": "1 c h (image block mr mc w)",
}

READABLE = (
    "the kit reads encoders whose blocks all keep one token a patch and one width (ViT, CLIP, SigLIP, DINOv2, ...); for "
    "others take such an encoder instead, or resample their levels to one grid in a vision plugin of your own"
)


class Enough(Exception):
    """Raised inside a hook when a pass has shown what it was run for; never leaves this package."""


@dataclass(frozen=True)
class TokenLayout:
    """Among one image's tokens: the place of each patch in row-major order, of the global token (None: there is
    none), and whether the encoder's states come as [token, image, hidden]. Numbers, as an export cannot look into tensors."""

    patches: tuple[int, ...]
    global_token: int | None
    tokens_first: bool

    def read(self, tokens: Tensor) -> Tensor:
        """Tokens [image, token, hidden] -> [image, 1 + patch, hidden]: the global token, or the patches' mean, first."""
        start, count = self.patches[0], len(self.patches)
        if self.patches == tuple(range(start, start + count)):
            patches = tokens[:, start : start + count]
        else:
            patches = tokens[:, torch.tensor(self.patches, device=tokens.device)]
        place = self.global_token
        first = patches.mean(1, keepdim=True) if place is None else tokens[:, place : place + 1]
        return torch.cat([first, patches], dim=1)


def first_tensor(value: Any) -> Tensor | None:
    """The states in what a block takes or gives: a tensor, or the first one of a tuple or mapping."""
    if isinstance(value, Tensor):
        return value
    values = value.values() if isinstance(value, dict) else value if isinstance(value, (tuple, list)) else ()
    return next((found for part in values if (found := first_tensor(part)) is not None), None)


def token_rows(states: Any, images: int, width: int, tokens_first: bool = False) -> Tensor:
    """A block's states as [image, token, hidden]: from sequences, grids of either channel order, windows, packed rows.

    Raises: VisionError where they do not divide into `images` equal parts of that width.
    """
    states = first_tensor(states)
    if states is None:
        raise VisionError("a block yields no tensor")
    if states.ndim == 4 and states.shape[-1] != width and states.shape[1] == width:
        states = states.permute(0, 2, 3, 1)
    if states.shape[-1] != width or states.numel() % (images * width):
        raise VisionError(f"a block yields {tuple(states.shape)} for {images} images, where the width is {width}")
    if tokens_first:
        states = states.transpose(0, 1)
    return states.reshape(images, -1, width)


@torch.no_grad()
def find_layout(
    run: Callable[[Tensor], None], first_block: nn.Module, width: int, like: Tensor, patch_size: tuple[int, int], name: str
) -> TokenLayout:
    """Run an encoder on images that differ in known patches, up to its first block, and read who changed.

    Two images a binary digit of the patch number: in one the patches with a 1 there are changed, in the other those
    with a 0. A token belongs to the patch whose digits are those it reacts to more. `like`: pixels of the size, dtype
    and device meant. Cost: 2 + 2 log2(patches) images through the patch embedding, once an image size.
    Raises: VisionError where tokens and patches are not one to one.
    """
    rows, columns = like.shape[-2] // patch_size[0], like.shape[-1] // patch_size[1]
    count = rows * columns
    digits = max(1, (count - 1).bit_length())
    numbers = torch.arange(count, device=like.device)
    changed = [torch.zeros_like(numbers), torch.ones_like(numbers)]
    for digit in range(digits):
        changed += [numbers >> digit & 1, 1 - (numbers >> digit & 1)]

    def states_of_images() -> Tensor | None:
        marked = _marked_images(torch.stack(changed), rows, columns, like, patch_size)
        return first_tensor(_input_of(run, first_block, marked))

    states = states_of_images()
    if states is None:
        raise VisionError(f"{name}: its first block takes no tensor")
    images = len(changed)
    if states.ndim == 3 and states.shape[0] == images == states.shape[1]:
        changed.append(changed[1])
        images += 1
        states = states_of_images()
    tokens_first = states is not None and states.ndim == 3 and states.shape[0] != images and states.shape[1] == images
    try:
        tokens = token_rows(states, images, width, tokens_first).float()
    except VisionError as error:
        raise VisionError(f"{name}: before its blocks, {error}; {READABLE}") from error
    moved = (tokens - tokens[:1]).norm(dim=-1)
    reacts = moved[1] > 1e-3 * moved[1].max()
    code = torch.zeros_like(reacts, dtype=torch.long)
    for digit in range(digits):
        code |= (moved[2 + 2 * digit] > moved[3 + 2 * digit]).long() << digit
    places, found = reacts.nonzero().squeeze(1), code[reacts]
    if not torch.equal(found.sort().values, numbers):
        if len(places) == count:
            raise VisionError(
                f"{name}: before its first block, {type(first_block).__name__}, tokens depend on pixels of several patches, so "
                f"which is whose cannot be told; mix patches in blocks alone, all of them in one nn.ModuleList; {READABLE}"
            )
        raise VisionError(
            f"{name}: {len(places)} of {len(reacts)} tokens show pixels, for a grid of {rows} x {columns} patches; {READABLE}"
        )
    others = (~reacts).nonzero().squeeze(1).tolist()
    return TokenLayout(tuple(places[found.argsort()].tolist()), others[0] if others else None, tokens_first)


@torch.no_grad()
def count_tokens(run: Callable[[Tensor], None], first_block: nn.Module, width: int, like: Tensor) -> int:
    """Tokens an image before the first block, read from shapes alone, so also on the meta device.

    like: pixels [1, 3, height, width]. Raises: VisionError where the first block takes no states of that width.
    """
    return token_rows(_input_of(run, first_block, like), 1, width).shape[1]


def _marked_images(changed: Tensor, rows: int, columns: int, like: Tensor, patch_size: tuple[int, int]) -> Tensor:
    """Images [image, 3, height, width]: black, with one pattern of noise in every patch marked in [image, patch]."""
    height, width = patch_size
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(3, height, width, generator=generator).to(like).repeat(1, rows, columns)
    mask = changed.view(-1, 1, rows, columns).to(like)
    mask = mask.repeat_interleave(height, dim=2).repeat_interleave(width, dim=3)
    images = like.new_zeros(len(changed), *like.shape[-3:])
    images[..., : rows * height, : columns * width] = mask * noise
    return images


def _input_of(run: Callable[[Tensor], None], block: nn.Module, pixels: Tensor) -> Any:
    taken: list[Any] = []

    def take(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        taken.append(args[0] if args else first_tensor(kwargs))
        raise Enough

    handle = block.register_forward_pre_hook(take, with_kwargs=True)
    try:
        run(pixels)
    except Enough:
        pass
    finally:
        handle.remove()
    return taken[0] if taken else None


@torch.no_grad()
def find_post_norm(
    model: nn.Module, run: Callable[[Tensor], None], blocks: Sequence[nn.Module], width: int, like: Tensor
) -> nn.Module | None:
    """The encoder's final norm: the first module with weights to run after the last block, if it is a norm.

    None where another module comes first (a neck, a pooling head), or none of that width, or one over maps whose channels are
    not the last axis, or over a mean of the tokens. Cost: one image.
    """
    inside = {id(part) for block in blocks for part in block.modules()}
    outside = [
        part
        for part in model.modules()
        if id(part) not in inside and (is_norm(part) or any(True for _ in part.parameters(recurse=False)))
    ]
    after: list[nn.Module] = []
    last: list[Any] = []

    def finish(module: nn.Module, args: tuple, output: Any) -> None:
        last[:] = [output]

    def note(module: nn.Module, args: tuple) -> None:
        if last:
            if isinstance(args[0], Tensor) and args[0].shape[-1] == width and _are_tokens(args[0], first_tensor(last[0])):
                after.append(module)
            raise Enough

    handles = [blocks[-1].register_forward_hook(finish)]
    # A module that only holds weights of its own beside children (a class token) is no step of the computation.
    steps = [part for part in outside if is_norm(part) or not any(True for _ in part.children())]
    handles += [part.register_forward_pre_hook(note) for part in steps]
    try:
        run(like[:1])
    except Enough:
        pass
    finally:
        for handle in handles:
            handle.remove()
    found = after[0] if after else None
    return found if found is not None and is_norm(found) and norm_width(found) == width else None


def _are_tokens(states: Tensor, output: Tensor | None) -> bool:
    """Whether states are several tokens, or one of a block's output (CLIP's class token) and no mean of them."""
    if output is None or states.is_meta or states.numel() > states.shape[-1]:
        return True
    tokens = output.reshape(-1, states.shape[-1]) if output.shape[-1] == states.shape[-1] else output.flatten(2)[0].mT
    return bool((tokens == states.reshape(1, -1)).all(-1).any())


@contextmanager
def in_evaluation(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while, each module's own mode set back after."""
    training = [module for module in model.modules() if module.training]
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True


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
