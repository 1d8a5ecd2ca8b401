"""CLIP's encoder with its own frozen projection into the space it shares with text: global features of 512 or 768 numbers.

LLaMA-Adapter reads CLIP's global features. That they have 512 numbers (ViT-B) is our inference: it makes the published
1.8M parameters, which neither 768 nor 1024 would.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from dehvf_kit.api import DehvfError, Source, VisionError
from dehvf_kit.backbones.base import require_local, torch_dtype, vision_config
from dehvf_kit.backbones.vision.config import HfVisionConfig
from dehvf_kit.backbones.vision.tower import VisionTower

if TYPE_CHECKING:
    from transformers import CLIPVisionModelWithProjection


class ClipProjectionVisionConfig(HfVisionConfig):
    """A CLIP encoder whose tokens pass its final norm and its own projection; the last global token is CLIP's embedding."""

    type: Literal["clip_projection"] = "clip_projection"

    def meta(self, sources: Mapping[str, Source]) -> CLIPVisionModelWithProjection:
        from transformers import CLIPVisionModelWithProjection

        with torch.device("meta"):
            return CLIPVisionModelWithProjection._from_config(self._clip_config(sources))

    def load(self, sources: Mapping[str, Source]) -> CLIPVisionModelWithProjection:
        from transformers import CLIPVisionModelWithProjection

        location = self.location(sources)
        require_local(location, self.download)
        arguments = {name: value for name, value in self.hub_arguments().items() if name != "trust_remote_code"}
        try:
            return CLIPVisionModelWithProjection.from_pretrained(
                location, dtype=torch_dtype(self.dtype), attn_implementation=self.attn_implementation, **arguments
            )
        except OSError as error:
            raise DehvfError(
                f"vision encoder '{self.model}' is not on this machine; give a local folder, or allow the download with "
                "vision.download=true"
            ) from error

    def _clip_config(self, sources: Mapping[str, Source]) -> Any:
        config = vision_config(self.hf_config(sources))
        if config.model_type != "clip_vision_model":
            raise DehvfError(f"type clip_projection is for CLIP; '{config.model_type}' has no projection of its own")
        return config

    def tower(self, model: nn.Module) -> VisionTower:
        return ProjectedTower(model, self.image.size, self.apply_post_norm)


class ProjectedTower(VisionTower):
    """Features [image, layer, 1 + patch, projection] instead of [..., hidden]; `spec.hidden_size` is the projection's width."""

    def __init__(self, model: nn.Module, image_size: int, apply_post_norm: bool = True) -> None:
        super().__init__(model, image_size, apply_post_norm)
        if not hasattr(model, "visual_projection"):
            raise VisionError(f"{type(model).__name__} has no visual_projection; use CLIPVisionModelWithProjection")
        self._inside = self.spec
        self.spec = replace(self.spec, hidden_size=model.visual_projection.out_features)

    def forward(self, pixel_values: Tensor) -> Tensor:
        outside, self.spec = self.spec, self._inside  # the encoder's own width, while it is read
        try:
            features = super().forward(pixel_values)
        finally:
            self.spec = outside
        return self.model.visual_projection(features)
