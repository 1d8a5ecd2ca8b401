"""A timm vision transformer as a vision tower: any model of timm's vision_transformer, eva, deit and beit modules.

The blocks are read by hooks, as those of every encoder, so models count that refuse timm's own
`forward_intermediates(return_prefix_tokens=True)`. Source: Wightman, PyTorch Image Models, doi:10.5281/zenodo.4414861.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import timm
import torch
from pydantic import Field, field_validator
from timm.data import resolve_data_config
from torch import nn
from transformers import PretrainedConfig

from dehvf_kit.api import DehvfError, Source, VisionError, VisionSpec
from dehvf_kit.backbones.base import TowerConfig, first_line, torch_dtype
from dehvf_kit.backbones.ffn.overrides import register_ffn_override
from dehvf_kit.backbones.vision.config import RESAMPLE, RESCALE, ImageConfig, OwnImages
from dehvf_kit.backbones.vision.tower import VisionTower, pair
from dehvf_kit.errors import did_you_mean
from dehvf_kit.utils.atomic import is_file

FAMILIES = ("vision_transformer", "eva", "deit", "beit")
# Blocks whose FFN is not one module: a child that tells them -> where x goes in, where FFN(x) comes out, and why.
FUSED = {
    "mlp_out_proj": ("in_proj", "mlp_out_proj", "one matrix feeds attention and FFN"),
    "in_proj": ("in_proj", "out_proj", "one matrix feeds attention and FFN, one sums them"),
    "mlp_channels": ("mlp_channels", "mlp_channels", "one FFN mixes patches, the other one channels"),
    "ffns": ("ffns.0.mlp", "ffns.0.mlp", "several FFNs side by side; the first stands for the block"),
}
EMBEDDINGS = ("patch_embed", "embeds", "stem", "pixel_embed")
"""What timm's models call the module that cuts an image into patches."""
MEANINGLESS = ("revision", "config", "attn_implementation", "trust_remote_code")


class TimmVisionConfig(TowerConfig):
    """A vision transformer of timm (ViT, EVA, DeiT, BEiT and their like), by timm's name."""

    role: ClassVar[str] = "vision"
    type: Literal["timm"] = "timm"
    model: str = Field("", description="timm's name, for example vit_base_patch16_224 or vit_small_patch14_dinov2.lvd142m")
    checkpoint: str | None = Field(None, description="a local file with the weights (safetensors, or a state dict)")
    settings: dict[str, Any] = Field(default_factory=dict, description="further keywords of timm.create_model")
    image: ImageConfig = Field(default_factory=ImageConfig, description="size and normalisation of its images")
    apply_post_norm: bool = Field(True, description="pass every layer through the encoder's own final norm (choice)")

    @field_validator(*MEANINGLESS)
    @classmethod
    def _only_transformers(cls, value: Any) -> Any:
        if value:
            raise ValueError("means nothing to a timm model; leave it out")
        return value

    @field_validator("image", mode="before")
    @classmethod
    def _image(cls, value: Any) -> Any:
        return {} if value is None else value

    def spec(self, sources: Mapping[str, Source]) -> VisionSpec:
        """Sizes of the encoder, from its name alone. Raises: DehvfError for a name timm has not."""
        return self.tower(self.meta(sources)).spec

    def meta(self, sources: Mapping[str, Source]) -> nn.Module:
        """The encoder on the meta device: all its modules, none of its weights."""
        with torch.device("meta"):
            return self.create()

    def load(self, sources: Mapping[str, Source]) -> nn.Module:
        """The encoder with its weights: from `checkpoint`, the hub's cache, or the hub where `download: true`.

        timm resamples position embeddings to `image.size`. Raises: DehvfError where the weights are not on this machine.
        """
        dtype = torch_dtype(self.dtype)
        model = self.create(pretrained=True, pretrained_cfg_overlay={"file": str(self._weights())})
        return model if dtype == "auto" else model.to(dtype)

    def own_images(self, sources: Mapping[str, Source]) -> OwnImages | None:
        """How timm prepares images for weights of this name; None for a name that timm has not."""
        if not timm.is_model(self.model):
            return None
        tag = timm.get_pretrained_cfg(self.model)
        own = resolve_data_config(pretrained_cfg=None if tag is None else tag.to_dict())
        _, height, width = own["input_size"]
        facts: dict[str, Any] = {"rescale": RESCALE, "mean": tuple(own["mean"]), "std": tuple(own["std"])}
        if own["interpolation"] in RESAMPLE:
            facts["resample"] = own["interpolation"]
        further = [] if own["crop_mode"] in ("center", "squash") else [f"crop_mode {own['crop_mode']}"]
        if height == width and not further:
            resize = "squash" if own["crop_mode"] == "squash" else "crop"
            facts |= {"size": height, "resize": resize, "resize_to": math.floor(height / own["crop_pct"])}
        return OwnImages(facts, f"timm config {tag.architecture}.{tag.tag}" if tag is not None else "timm config", tuple(further))

    def tower(self, model: nn.Module) -> VisionTower:
        """The kit's view of an encoder that is in memory."""
        return VisionTower(model, self.image.size, self.apply_post_norm)

    def create(self, **keywords: Any) -> nn.Module:
        """The encoder with random weights; `keywords` go over `settings`. Raises: DehvfError where timm refuses."""
        name = self.model.partition(".")[0]
        if not timm.is_model(self.model):
            known = timm.list_models()
            raise DehvfError(f"timm has no model '{self.model}'{did_you_mean(name, known)} timm.list_models() has all")
        given = {"num_classes": 0, "img_size": self.image.size, **self.settings, **keywords}
        try:
            try:
                model = timm.create_model(self.model, **given)
            except TypeError as error:  # a network of any size: what it is decides
                if "img_size" not in str(error):
                    raise
                model = timm.create_model(self.model, **{name: value for name, value in given.items() if name != "img_size"})
        except (TypeError, ValueError, AssertionError, RuntimeError) as error:
            raise DehvfError(f"timm cannot build '{self.model}': {first_line(error)}") from error
        return described(model, self.model)

    def _weights(self) -> Path:
        """The file with the weights, fetched only where `download: true`."""
        if self.checkpoint is not None:
            file = Path(self.checkpoint).expanduser()
            if not is_file(file):
                raise DehvfError(f"vision.checkpoint: there is no file '{file}'")
            return file
        from huggingface_hub import hf_hub_download, try_to_load_from_cache
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

        known = timm.get_pretrained_cfg(self.model) if timm.is_model_pretrained(self.model) else None
        place = getattr(known, "hf_hub_id", None)
        if not place:
            raise DehvfError(f"timm knows no weights on the hub for '{self.model}'; give a file as vision.checkpoint")
        for file in ("model.safetensors", "pytorch_model.bin"):
            found = try_to_load_from_cache(place, file)
            if isinstance(found, str):
                return Path(found)
        if self.download:
            try:
                return Path(hf_hub_download(place, "model.safetensors"))
            except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
                raise DehvfError(f"'{place}' cannot be fetched from the hub: {first_line(error)}") from error
        raise DehvfError(
            f"the weights of '{self.model}' ({place}) are not on this machine; give a file as vision.checkpoint, or allow "
            "the download with vision.download=true"
        )


def described(model: nn.Module, name: str) -> nn.Module:
    """A timm model with a `config` as transformers' encoders have one, read off its modules.

    Raises: VisionError for a model without blocks and patch embedding (a convolutional or hierarchical one).
    """
    body = getattr(model, "encoder", model)
    blocks = getattr(body, "blocks", None)
    embed = next((part for part in (getattr(body, child, None) for child in EMBEDDINGS) if hasattr(part, "patch_size")), None)
    if not isinstance(blocks, (nn.Sequential, nn.ModuleList)) or embed is None:
        raise VisionError(
            f"timm's {type(model).__name__} ({name}) is no plain vision transformer: it has no list of blocks behind a "
            f"patch embedding; take a model of {', '.join(FAMILIES)}, or any that timm.list_models(module=...) lists there"
        )
    native, grid = pair(getattr(embed, "img_size", None)), pair(getattr(embed, "grid_size", None))
    patch = pair(embed.patch_size) if native is None or grid is None else (native[0] // grid[0], native[1] // grid[1])
    kind = f"timm {name}"
    fused = next((child for child in FUSED if hasattr(blocks[0], child)), None)
    entry, last, reason = FUSED[fused] if fused else (None, None, "blocks after these hold the class token alone")
    register_ffn_override(kind, layers="encoder.blocks" if body is not model else "blocks", entry=entry, exit=last, reason=reason)
    attention = next((part for part in blocks[0].modules() if hasattr(part, "num_heads")), None)
    grown = next((part for part in blocks[0].modules() if isinstance(getattr(part, "fc1", None), nn.Linear)), None)
    model.config = PretrainedConfig(
        model_type=kind,
        hidden_size=model.embed_dim,
        num_hidden_layers=len(blocks),
        num_attention_heads=getattr(attention, "num_heads", None),
        intermediate_size=None if grown is None else grown.fc1.out_features,
        patch_size=patch,  # of a hybrid, `embed.patch_size` counts cells of the feature map before it
        image_size=native,
        num_channels=3,
    )
    return model
