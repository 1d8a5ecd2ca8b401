"""Small trained maps beside the feed-forward network of every vision block.

Source: DEHVF, experimental setup ("we add parallel adapters to the visual encoder's FFN"); MemVP's vision adapter.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from dehvf_kit.api.components import VisionComponent
from dehvf_kit.api.config import MAX_SIZE, BuildContext, ComponentConfig
from dehvf_kit.api.shapes import Cost
from dehvf_kit.backbones.ffn.memory_hooks import FfnHooks, hook_ffns
from dehvf_kit.backbones.ffn.sites import ffn_sites
from dehvf_kit.errors import VisionError


class ParallelVisionAdapterConfig(ComponentConfig):
    """y = FFN(x) + scale * B(dropout(GELU(A x))) in every vision block, no biases, B starts at zero."""

    role: ClassVar[str] = "vision_adapter"
    takes: ClassVar[tuple[str, ...]] = ("tower: layer vision_hidden",)
    attaches: ClassVar[str] = "vision"
    type: Literal["parallel"] = "parallel"
    bottleneck_size: int = Field(12, ge=1, le=MAX_SIZE, description="width of A's output")
    scale: float = Field(0.1, gt=0, description="scale of the adapter's output")
    dropout: float = Field(0.1, ge=0, lt=1, description="dropout inside the adapter, in training")

    def num_params(self, context: BuildContext) -> dict[str, int]:
        layers, width = (context.vision.num_layers, context.vision.hidden_size) if context.vision else (0, 0)
        return {"maps": layers * 2 * width * self.bottleneck_size}

    def cost(self, context: BuildContext) -> Cost:
        if context.vision is None:
            return Cost()
        tokens = (context.vision.num_patches or 0) + 1
        return Cost(per_image=4 * context.vision.num_layers * tokens * context.vision.hidden_size * self.bottleneck_size)

    def build(self, context: BuildContext) -> ParallelVisionAdapter:
        if context.vision is None:
            raise VisionError("a vision adapter needs a vision encoder to attach to")
        return ParallelVisionAdapter(
            context.vision.num_layers,
            hidden_size=context.vision.hidden_size,
            bottleneck_size=self.bottleneck_size,
            scale=self.scale,
            dropout=self.dropout,
        )


class ParallelVisionAdapter(VisionComponent):
    """One pair A [code, hidden], B [hidden, code] a vision block, on the same normed input as the block's FFN.

    Shapes at each block: [image, token, hidden] -> the same. Cost: 4 * token * hidden * code FLOPs a block and image.
    Initialisation, as in MemVP: A Xavier-uniform, B zero, so that the untrained adapter changes nothing.
    Source: DEHVF, experimental setup; exact GELU as in MemVP.
    """

    def __init__(
        self, num_layers: int, hidden_size: int, bottleneck_size: int = 12, scale: float = 0.1, dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.empty(num_layers, bottleneck_size, hidden_size))
        self.up = nn.Parameter(torch.zeros(num_layers, hidden_size, bottleneck_size))
        for matrix in self.down.unbind(0):
            nn.init.xavier_uniform_(matrix.data)
        self.scale, self.dropout = scale, dropout

    def hook(self, tower: nn.Module) -> Iterator[FfnHooks]:
        """Hook the FFN of every vision block. Raises: VisionError if the blocks are not the ones it was built for."""
        sites = ffn_sites(tower)
        if len(sites) != len(self.down) or any(site.hidden_size != self.down.shape[-1] for site in sites):
            widths = sorted({site.hidden_size for site in sites})
            raise VisionError(
                f"vision adapter built for {len(self.down)} blocks of width {self.down.shape[-1]}, "
                f"but the tower has {len(sites)} feed-forward networks of width {widths}"
            )
        yield hook_ffns(tower, sites, self._delta)

    def _delta(self, index: int, x: Tensor) -> Tensor:
        inner = F.gelu(F.linear(x, self.down[index].to(x.dtype)))
        inner = F.dropout(inner, self.dropout, self.training)
        return self.scale * F.linear(inner, self.up[index].to(x.dtype))
