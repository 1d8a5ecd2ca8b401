"""Reads a vision transformer block by block: per block its patch tokens in image order and one global token.

What the encoder's forward takes, pixels as they are or patches packed in rows, depends on the names of its arguments
(`grid_thw`, `spatial_shapes`, `target_sizes`, ...), or by `overrides.py` where auto-detection fails. Images of one call
have one size, so no padding is needed.
"""

from __future__ import annotations

import inspect
import itertools
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from dehvf_kit.api.shapes import VisionSpec
from dehvf_kit.backbones.attached import run_eagerly
from dehvf_kit.backbones.base import config_size, first_line, vision_config
from dehvf_kit.backbones.ffn.sites import ffn_sites
from dehvf_kit.backbones.vision.layout import (
    PACKED,
    READABLE,
    Enough,
    TokenLayout,
    count_tokens,
    find_layout,
    find_post_norm,
    in_evaluation,
    packed_patches,
    packing,
    token_rows,
)
from dehvf_kit.backbones.vision.overrides import VISION_OVERRIDES, VisionOverride
from dehvf_kit.errors import DecoderError, DehvfError, VisionError, listing

# Config fields that only encoders of clips have, and fields that hold one size per stage.
CLIPS = ("num_frames", "tubelet_size", "frames_per_clip")
STAGE_SIZES = ("hidden_sizes", "embed_dims", "embed_dim", "depths", "num_blocks", "in_channels")
CLASS_TOKENS = {"cls_token", "class_embedding", "class_token"}
REGISTER_TOKENS = {"reg_token", "register_tokens", "registers", "storage_tokens"}
# Arguments that the kit can fill in for `images` images of `rows` x `columns` patches.
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


class VisionTower(nn.Module):
    """An encoder whose blocks can be read one by one; the encoder itself stays the user's module, unchanged.

    layers: the 0-based blocks that are read, shallow to deep; blocks after the deepest are not run. Where each patch is
    among the tokens, and which norm comes last, is found by running the encoder once (see `layout.py`).
    Source: DEHVF, equation 1.
    """

    def __init__(self, model: nn.Module, image_size: int, apply_post_norm: bool = True) -> None:
        super().__init__()
        self.model = model
        name = type(model).__name__
        config = vision_config(getattr(model, "config", None))
        if any(isinstance(getattr(config, field, None), (int, list, tuple)) for field in CLIPS):
            raise VisionError(f"{name} reads clips of frames, not single images; use an encoder of images")
        try:
            sites = ffn_sites(model)
        except DecoderError as error:
            levels = next((field for field in STAGE_SIZES if _differing(getattr(config, field, None))), None)
            if levels is not None:
                sizes = list(getattr(config, levels))
                raise VisionError(f"{name} is hierarchical: its config has {levels} = {sizes}; {READABLE}") from error
            found = str(error).partition(" Memory can only be added")[0]  # what follows is advice for decoders
            advice = "" if found == str(error) else " Put the blocks in one nn.ModuleList, such a module in each."
            raise VisionError(f"{name} is not a vision transformer the kit can read: {found}{advice}") from error
        widths = sorted({site.hidden_size for site in sites})
        if len(widths) > 1:
            raise VisionError(
                f"{name} is hierarchical: its blocks have widths {widths}, and their grids differ as well; {READABLE}"
            )
        paths = list(dict.fromkeys(site.layer_path for site in sites))
        self.blocks = [model.get_submodule(path) for path in paths]
        self.apply_post_norm = apply_post_norm
        self.override = VISION_OVERRIDES.get(override_key(model), VisionOverride())
        patch_size = pair(getattr(config, "patch_size", None)) or _patch_size(model)
        if patch_size is None:
            raise VisionError(f"{name}: its config names no patch_size, and it does not start with a patch embedding")
        self.patch_size: tuple[int, int] = patch_size
        if image_size < min(self.patch_size):
            raise VisionError(f"an image of {image_size} pixels is smaller than a patch of {self.patch_size} pixels")
        check_size(model, (image_size, image_size), self.patch_size, self.override)
        rows, columns = (image_size // side for side in self.patch_size)
        self.native_size = getattr(config, "image_size", None)
        self.layers: tuple[int, ...] = tuple(range(len(self.blocks)))
        self.number = next(_numbers)
        _towers[self.number] = self
        self._layouts: dict[tuple[int, int], TokenLayout] = {}
        self._post_norm: list[nn.Module | None] = []
        self.spec = VisionSpec(
            hidden_size=widths[0],
            num_layers=len(self.blocks),
            num_patches=rows * columns,
            image_size=image_size,
            intermediate_size=config_size(config, "intermediate_size"),
            model_type=getattr(config, "model_type", type(model).__name__),
        )

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Images [image, 3, height, width] -> features [image, layer, 1 + patch, vision_hidden], global token first.

        Patches come in row-major order of the image. The global token is the class token, or the mean of the patch
        tokens where the encoder has none. Raises: VisionError where a block does not yield one token a patch.
        """
        if torch.compiler.is_compiling() and not torch.compiler.is_exporting() and not torch.is_grad_enabled():
            return _encode(pixel_values, self.number)
        pixels = pixel_values.to(next(self.model.parameters()).dtype)
        check_size(self.model, (pixels.shape[-2], pixels.shape[-1]), self.patch_size, self.override)
        layout, norm = self.layout(pixels), self.post_norm(pixels)
        features = []
        for states in self._run(pixels):
            tokens = token_rows(states, pixels.shape[0], self.spec.hidden_size, layout.tokens_first)
            if tokens.shape[1] <= max(layout.patches):
                raise VisionError(
                    f"{type(self.model).__name__} is hierarchical: a block yields {tokens.shape[1]} tokens an image, "
                    f"fewer than the first takes; {READABLE}"
                )
            features.append(layout.read(tokens if norm is None else norm(tokens)))
        return torch.stack(features, dim=1)

    def layout(self, pixels: Tensor) -> TokenLayout:
        """Where each patch of images of this size is among the tokens; found once a size."""
        size = (pixels.shape[-2], pixels.shape[-1])
        if size not in self._layouts:
            name = type(self.model).__name__
            with in_evaluation(self.model):
                found = find_layout(self._pass, self.blocks[0], self.spec.hidden_size, pixels[:1], self.patch_size, name)
            if registers_alone(self.model):
                found = replace(found, global_token=None)
            self._layouts[size] = found
        return self._layouts[size]

    def assume_layout(self) -> None:
        """Take it that patches follow the prefix tokens in row-major order, for a tower without weights to look at."""
        size, count = self.spec.image_size, self.spec.num_patches
        prefix = self.num_prefix_tokens()
        places = tuple(range(prefix, prefix + count))
        self._layouts[size, size] = TokenLayout(places, 0 if prefix and not registers_alone(self.model) else None, False)

    def num_prefix_tokens(self) -> int:
        """Class, register and other tokens beside the patches, counted before the first block.

        An encoder of transformers that does not run on the meta device is read by its names instead.
        """
        try:
            with in_evaluation(self.model):
                tokens = count_tokens(self._pass, self.blocks[0], self.spec.hidden_size, self._black())
        except (VisionError, RuntimeError):
            if not hasattr(self.model, "config"):
                raise
            return named_prefix_tokens(self.model)
        return max(0, tokens - (self.spec.num_patches or 0))

    def run_blocks(self) -> None:
        """One black image through the encoder up to the end of its last block, for what is counted on the way."""

        def finish(*_: Any) -> None:
            raise Enough

        handle = self.blocks[-1].register_forward_hook(finish)
        try:
            with in_evaluation(self.model):
                self._pass(self._black())
        except Enough:
            pass
        finally:
            handle.remove()

    def _black(self) -> Tensor:
        return next(self.model.parameters()).new_zeros(1, 3, self.spec.image_size, self.spec.image_size)

    def post_norm(self, pixels: Tensor) -> nn.Module | None:
        """The encoder's own final norm, through which every layer passes, or None; found once."""
        if not self._post_norm:
            path = self.override.post_norm if self.apply_post_norm else ""
            if path is not None:
                found = self.model.get_submodule(path) if path else None
            else:
                with in_evaluation(self.model):
                    like = pixels.to(next(self.model.parameters()).dtype)
                    found = find_post_norm(self.model, self._pass, self.blocks, self.spec.hidden_size, like)
            self._post_norm.append(found)
        return self._post_norm[0]

    def _pass(self, pixels: Tensor) -> None:
        """Run the encoder. Raises: VisionError where it refuses these images."""
        given = model_arguments(self.model, pixels, self.patch_size, self.override)
        try:
            with settings_for_a_pass(self.model, self.override), run_eagerly():
                self.model(**given)
        except (Enough, DehvfError):
            raise
        except Exception as error:  # an encoder of a plugin fails in any way
            size = (pixels.shape[-2], pixels.shape[-1])
            if isinstance(error, RuntimeError) and (size == pair(self.native_size) or "memory" in str(error)):
                raise
            name = type(self.model).__name__
            if isinstance(error, (ValueError, AssertionError, RuntimeError)):
                raise VisionError(f"{name} refuses images of {size} pixels: {first_line(error)}") from error
            raise VisionError(
                f"{name} ends with {type(error).__name__} when it is given pixels [image, 3, height, width]: "
                f"{first_line(error)}; say what else to give in a plugin's hook "
                f"register_vision_overrides: register('{override_key(self.model)}', arguments=...)"
            ) from error

    def _run(self, pixels: Tensor) -> list[Any]:
        """Outputs of the blocks that are read; the pass ends with the deepest of them."""
        outputs: dict[int, Any] = {}

        def keep(layer: int) -> Any:
            def hook(module: nn.Module, args: tuple, output: Any) -> None:
                outputs[layer] = output
                if layer == last and not torch.compiler.is_exporting():  # which follows no exception and drops what is unused
                    raise Enough

            return hook

        last = max(self.layers)
        handles = [self.blocks[layer].register_forward_hook(keep(layer)) for layer in self.layers]
        try:
            self._pass(pixels)
        except Enough:
            pass
        finally:
            for handle in handles:
                handle.remove()
        return [outputs[layer] for layer in self.layers]


_numbers = itertools.count()
_towers: weakref.WeakValueDictionary[int, VisionTower] = weakref.WeakValueDictionary()


@torch.library.custom_op("dehvf_kit::encode", mutates_args=())
def _encode(pixels: Tensor, number: int) -> Tensor:
    """A frozen encoder as one operation, for a model that is compiled around it: hooks for one pass cannot be compiled."""
    return _towers[number](pixels)


@_encode.register_fake
def _encoded(pixels: Tensor, number: int) -> Tensor:
    tower = _towers[number]
    (height, width), (rows, columns) = pixels.shape[-2:], tower.patch_size
    like = next(tower.model.parameters())
    shape = len(pixels), len(tower.layers), 1 + (height // rows) * (width // columns), tower.spec.hidden_size
    return torch.empty(shape, dtype=like.dtype, device=like.device)


def _differing(sizes: Any) -> bool:
    """Whether a config's field lists several values that are not all one."""
    return isinstance(sizes, (list, tuple)) and len({str(size) for size in sizes}) > 1


def _patch_size(model: nn.Module) -> tuple[int, int] | None:
    """The kernel of the first convolution, where it is also its stride: a patch embedding."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            height, width = module.kernel_size
            return (height, width) if module.stride == module.kernel_size else None
    return None


def override_key(model: nn.Module) -> str:
    """What an encoder is described by: the `model_type` of its config, or the name of its class where it has none."""
    return getattr(vision_config(getattr(model, "config", None)), "model_type", "") or type(model).__name__


def registers_alone(model: nn.Module) -> bool:
    """Whether an encoder has register tokens and no class token, by the names of its weights; its global token is then a mean."""
    names = {name.rpartition(".")[2] for name, _ in model.named_parameters()}
    return bool(names & REGISTER_TOKENS) and not names & CLASS_TOKENS


def named_prefix_tokens(model: nn.Module) -> int:
    """Class and register tokens beside the patches, by the names of weights and config fields."""
    names = {name.rpartition(".")[2] for name, _ in model.named_parameters()}
    registers = getattr(vision_config(getattr(model, "config", None)), "num_register_tokens", 0) or 0
    return int(bool(names & CLASS_TOKENS)) + registers


def pair(size: Any) -> tuple[int, int] | None:
    """A size as (height, width); None for what is no size."""
    if isinstance(size, int) and not isinstance(size, bool):
        return size, size
    if isinstance(size, (list, tuple)) and len(size) == 2 and all(isinstance(side, int) for side in size):
        return size[0], size[1]
    return None


def check_size(model: nn.Module, size: tuple[int, int], patch_size: tuple[int, int], override: VisionOverride) -> None:
    """Refuse images of a (height, width) that cannot be cut. Raises: VisionError saying which can."""
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


def model_arguments(model: nn.Module, pixels: Tensor, patch_size: tuple[int, int], override: VisionOverride) -> dict[str, Any]:
    """The keywords of an encoder's forward for images [image, 3, height, width].

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
