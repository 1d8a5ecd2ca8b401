"""Reader: Flamingo's Perceiver resampler, which turns any number of patches into a few learned latents.

Source: Flamingo, arXiv:2204.14198, as OpenFlamingo (mlfoundations/open_flamingo 655f693) computes it for one image.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from dehvf_kit.api import BuildContext, ComponentConfig, Cost


class PerceiverReaderConfig(ComponentConfig):
    """Learned latents that attend to an image's patches and themselves, block by block; they stand in the patches' place."""

    role: ClassVar[str] = "reader"
    takes: ClassVar[tuple[str, ...]] = ("patches: batch layer patch vision_hidden",)
    gives: ClassVar[tuple[str, ...]] = ("patches: batch layer patch vision_hidden",)
    type: Literal["perceiver"] = "perceiver"
    num_latents: int = Field(64, ge=1, description="latents, which are the patches that come out")
    num_blocks: int = Field(6, ge=1, description="blocks of attention and feed-forward network")
    num_heads: int = Field(8, ge=1, description="heads of the attention")
    head_size: int = Field(64, ge=1, description="width of a head")
    expansion: int = Field(4, ge=1, description="width of the feed-forward network, in widths of a patch")

    def resolve(self, context: BuildContext) -> dict[str, int | None]:
        return {"layer": 1, "patch": self.num_latents}

    def num_params(self, context: BuildContext) -> dict[str, int]:
        width, inner = context.size("vision_hidden"), self.num_heads * self.head_size
        block = 4 * width + 4 * width * inner + 2 * width + 2 * self.expansion * width * width
        return {"latents": self.num_latents * width, "blocks": self.num_blocks * block, "norm": 2 * width}

    def cost(self, context: BuildContext) -> Cost:
        width, inner, latents = context.size("vision_hidden"), self.num_heads * self.head_size, self.num_latents
        tokens = (context.axes.get("layer") or 0) * (context.axes.get("patch") or 0) + latents
        attention = 2 * latents * width * inner * 2 + 2 * tokens * width * 2 * inner + 4 * latents * tokens * inner
        return Cost(per_image=self.num_blocks * (attention + 4 * latents * self.expansion * width * width))

    def build(self, context: BuildContext) -> Perceiver:
        sizes = self.num_latents, self.num_blocks, self.num_heads, self.head_size, self.expansion
        return Perceiver(context.size("vision_hidden"), *sizes)


class Perceiver(nn.Module):
    """Shapes: patches [batch, layer, patch, vision_hidden] -> latents as one layer's patches [batch, 1, latent, vision_hidden].

    Each block: latents += Attn(q = LN latents, kv = [LN patches ; LN latents]); latents += W2 GELU(W1 LN latents); at the end LN.
    No biases but in the norms; latents start as N(0, 1), linear maps as torch makes them.
    """

    def __init__(self, width: int, num_latents: int, num_blocks: int, num_heads: int, head_size: int, expansion: int) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(num_latents, width))
        self.blocks = nn.ModuleList(PerceiverBlock(width, num_heads, head_size, expansion) for _ in range(num_blocks))
        self.norm = nn.LayerNorm(width)

    def forward(self, patches: Tensor) -> Tensor:
        media = patches.flatten(1, 2).to(self.latents.dtype)
        latents = self.latents.expand(media.shape[0], -1, -1)
        for block in self.blocks:
            latents = block(latents, media)
        return self.norm(latents)[:, None]


class PerceiverBlock(nn.Module):
    """One block of the resampler. Shapes: latents [batch, latent, width], media [batch, patch, width] -> latents."""

    def __init__(self, width: int, num_heads: int, head_size: int, expansion: int) -> None:
        super().__init__()
        inner = num_heads * head_size
        self.num_heads = num_heads
        self.media_norm, self.latent_norm, self.ffn_norm = (nn.LayerNorm(width) for _ in range(3))
        self.query = nn.Linear(width, inner, bias=False)
        self.key_value = nn.Linear(width, 2 * inner, bias=False)
        self.output = nn.Linear(inner, width, bias=False)
        self.up = nn.Linear(width, expansion * width, bias=False)
        self.down = nn.Linear(expansion * width, width, bias=False)

    def forward(self, latents: Tensor, media: Tensor) -> Tensor:
        normed = self.latent_norm(latents)
        keys, values = self.key_value(torch.cat([self.media_norm(media), normed], 1)).chunk(2, -1)
        latents = latents + self.output(attend(self.query(normed), keys, values, self.num_heads))
        return latents + self.down(F.gelu(self.up(self.ffn_norm(latents))))


def attend(queries: Tensor, keys: Tensor, values: Tensor, num_heads: int) -> Tensor:
    """softmax(q k^T / sqrt(head)) v in heads: queries [batch, query, inner], keys, values [batch, key, inner] -> queries' shape."""
    q, k, v = (x.unflatten(-1, (num_heads, -1)).transpose(1, 2) for x in (queries, keys, values))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
