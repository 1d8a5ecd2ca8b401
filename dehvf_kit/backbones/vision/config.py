"""A vision transformer in a recipe: where it comes from, how pictures are prepared for it, and the tower that reads it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, field_validator

from dehvf_kit.api.config import Settings
from dehvf_kit.api.registry import Source
from dehvf_kit.api.shapes import VisionSpec
from dehvf_kit.backbones.base import TowerConfig, first_line, not_loaded, require_local, torch_dtype
from dehvf_kit.backbones.known_specs import clip_vision_spec
from dehvf_kit.backbones.vision.classes import vision_class, vision_config
from dehvf_kit.errors import DehvfError

if TYPE_CHECKING:
    from torch import nn
    from transformers import BaseImageProcessor, PreTrainedModel

    from dehvf_kit.backbones.vision.tower import VisionTower

__all__ = ["MEAN_STD", "HfVisionConfig", "ImageConfig", "VisionTower", "vision_class", "vision_config"]

Normalisation = Literal["imagenet", "clip", "half"]
MEAN_STD: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}


class ImageConfig(Settings):
    """How a picture becomes pixel values: RGB, resized with bicubic interpolation, scaled to 0..1, normalised."""

    size: int = Field(224, ge=1, le=16384, description="side in pixels of the square the encoder sees")
    resize: Literal["squash", "crop"] = Field("squash", description="squash to a square, or resize and crop the middle")
    normalisation: Normalisation = Field("imagenet", description="mean and deviation: imagenet, clip or half")

    def processor(self) -> BaseImageProcessor:
        """A transformers image processor (PIL and numpy, no torchvision) with these settings."""
        from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

        mean, std = MEAN_STD[self.normalisation]
        square = {"height": self.size, "width": self.size}
        crop = self.resize == "crop"
        return CLIPImageProcessorPil(
            size={"shortest_edge": self.size} if crop else square,
            do_center_crop=crop,
            crop_size=square,
            image_mean=list(mean),
            image_std=list(std),
            resample=3,
        )


class HfVisionConfig(TowerConfig):
    """A transformers vision transformer: CLIP, SigLIP, ViT, DINOv2 and their like."""

    role: ClassVar[str] = "vision"
    type: Literal["hf"] = "hf"
    image: ImageConfig = Field(default_factory=ImageConfig, description="size and normalisation of its pictures")
    apply_post_norm: bool = Field(True, description="pass every layer through the encoder's own final norm (choice)")

    @field_validator("image", mode="before")
    @classmethod
    def _image(cls, value: Any) -> Any:
        return {} if value is None else value

    def spec(self, sources: Mapping[str, Source]) -> VisionSpec:
        """Sizes of the encoder, from its config alone."""
        from dehvf_kit.backbones.vision.overrides import described_types

        asked = self.trust_remote_code or "clip_vision_model" in described_types()
        known = None if asked else clip_vision_spec(self.config, self.image.size)
        return known or self.tower(self.meta(sources)).spec

    def meta(self, sources: Mapping[str, Source]) -> PreTrainedModel:
        """The encoder on the meta device."""
        import torch

        config = vision_config(self.hf_config(sources))
        try:
            with torch.device("meta"):
                return vision_class(config)._from_config(config)
        except DehvfError:
            raise
        except Exception as error:  # a config's values can fail anywhere in a family's constructor
            reason = first_line(error)
            raise DehvfError(f"transformers cannot build a '{config.model_type}' encoder: {reason}") from error

    def load(self, sources: Mapping[str, Source]) -> PreTrainedModel:
        """The encoder with its weights. Raises: DehvfError where they are not on this machine."""
        from dehvf_kit.backbones.vision.loading import load_encoder

        location = self.location(sources)
        require_local(location, self.download)
        try:
            config = vision_config(self.model_copy(update={"config": None}).hf_config(sources))
            return load_encoder(
                vision_class(config),
                location,
                config,
                dtype=torch_dtype(self.dtype),
                attn_implementation=self.attn_implementation,
                **{name: value for name, value in self.hub_arguments().items() if name != "trust_remote_code"},
            )
        except DehvfError:
            raise
        except Exception as error:  # whatever stands in the folder's files: a pickle, half a file, other shapes
            raise not_loaded(error, "vision encoder", "vision", self.model, location) from error

    def tower(self, model: nn.Module) -> VisionTower:
        """The kit's view of an encoder that is in memory."""
        from dehvf_kit.backbones.vision.tower import VisionTower

        return VisionTower(model, self.image.size, self.apply_post_norm)


def __getattr__(name: str) -> Any:
    """`VisionTower` from here too, imported when asked for: a recipe is read without it."""
    if name == "VisionTower":
        from dehvf_kit.backbones.vision.tower import VisionTower

        return VisionTower
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
