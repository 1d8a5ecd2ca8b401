"""Embeddings of an image's number in its row, for rows of several images: the first, the second, and so on.

No source: this is the kit's own extension of DEHVF to several images; without it images share the slots' positions alone.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from dehvf_kit.api.config import MAX_SIZE, BuildContext, ComponentConfig


class ImageOrderConfig(ComponentConfig):
    """One learned vector per image number for keys and for values, added to every slot of that image; all zero at first."""

    role: ClassVar[str] = "position"
    gives: ClassVar[tuple[str, ...]] = ("order_keys: image decoder_hidden", "order_values: image decoder_hidden")
    type: Literal["image_order"] = "image_order"
    max_images: int = Field(8, ge=1, le=MAX_SIZE, description="images a row may have")

    def resolve(self, context: BuildContext) -> dict[str, int | None]:
        return {"image": self.max_images}

    def num_params(self, context: BuildContext) -> dict[str, int]:
        size = self.max_images * context.decoder.hidden_size
        return {"keys": size, "values": size}

    def build(self, context: BuildContext) -> ImageOrder:
        return ImageOrder(self.max_images, context.decoder.hidden_size)


class ImageOrder(nn.Module):
    """Shapes: nothing -> two tables [image, decoder_hidden]. Initialisation: zero. Cost: none."""

    def __init__(self, max_images: int, decoder_hidden_size: int) -> None:
        super().__init__()
        self.keys = nn.Parameter(torch.zeros(max_images, decoder_hidden_size))
        self.values = nn.Parameter(torch.zeros(max_images, decoder_hidden_size))

    def forward(self) -> tuple[Tensor, Tensor]:
        return self.keys, self.values
