"""Learned queries before an image's tokens in a small transformer, and a projector whose output is normed: LLaMA-Adapter V2's.

Source: LLaMA-Adapter V2, arXiv:2304.15010, as its released multimodal model computes it (OpenGVLab/LLaMA-Adapter 521a09d).
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from dehvf_kit.api import BuildContext, ComponentConfig, Cost
from dehvf_kit_baselines.readers import QueryReaderConfig, image_tokens, places_of


class QueryTransformerReaderConfig(QueryReaderConfig):
    """Queries and one vision layer's tokens, mapped and normed, pass transformer blocks; the queries come out as patches."""

    type: Literal["query_transformer"] = "query_transformer"
    num_queries: int = Field(10, ge=1, description="learned queries, which are the patches that come out")
    hidden_size: int = Field(768, ge=1, description="width of queries and blocks")
    num_blocks: int = Field(8, ge=1, description="blocks")
    num_heads: int = Field(16, ge=1, description="heads of their attention")
    expansion: int = Field(4, ge=1, description="width of their feed-forward networks, in hidden sizes")

    def num_params(self, context: BuildContext) -> dict[str, int]:
        width = self.hidden_size
        block = 4 * (width + 1) * width + 2 * self.expansion * width * width + (self.expansion + 1) * width + 4 * width
        read = (self.width_in(context) + 1) * width + 2 * width
        return {"input": read, "queries": self.num_queries * width, "blocks": self.num_blocks * block}

    def cost(self, context: BuildContext) -> Cost:
        width, tokens = self.hidden_size, self.tokens_in(context)
        every = tokens + self.num_queries
        block = 2 * every * (4 + 2 * self.expansion) * width * width + 4 * every * every * width
        return Cost(per_image=2 * tokens * self.width_in(context) * width + self.num_blocks * block)

    def build(self, context: BuildContext) -> QueryTransformer:
        (place,) = places_of(context, [self.layer])
        sizes = self.num_queries, self.hidden_size, self.num_blocks, self.num_heads, self.expansion
        return QueryTransformer(place, self.width_in(context), *sizes)


class QueryTransformer(nn.Module):
    """Shapes: patches [batch, layer, patch, width], globals [batch, layer, width] -> [batch, 1, query, hidden_size].

    x = [queries ; LN(W [global ; patches])]; blocks x += Attn(LN x), x += W2 GELU(W1 LN x), with biases; the queries' rows of x.
    Queries start as N(0, 1), maps as torch makes them.
    """

    def __init__(self, place: int, vision: int, queries: int, width: int, blocks: int, heads: int, expansion: int) -> None:
        super().__init__()
        self.place = place
        self.input, self.norm = nn.Linear(vision, width), nn.LayerNorm(width)
        self.queries = nn.Parameter(torch.randn(queries, width))
        kind = {"dropout": 0.0, "activation": "gelu", "batch_first": True, "norm_first": True}
        self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(width, heads, expansion * width, **kind) for _ in range(blocks))

    def forward(self, patches: Tensor, globals: Tensor | None = None) -> Tensor:
        image = image_tokens(self.place, patches, globals)
        image = self.norm(self.input(image.to(self.input.weight.dtype)))
        x = torch.cat([self.queries.expand(len(image), -1, -1), image], 1)
        for block in self.blocks:
            x = block(x)
        return x[:, None, : len(self.queries)]


class NormedLinearConfig(ComponentConfig):
    """LN(W x): an image's tokens in the decoder's width, normed, as `gated_prefix` adds them to its prompts."""

    role: ClassVar[str] = "projector"
    takes: ClassVar[tuple[str, ...]] = ("patches: batch layer patch vision_hidden",)
    gives: ClassVar[tuple[str, ...]] = ("tokens: batch layer patch decoder_hidden",)
    type: Literal["normed_linear"] = "normed_linear"

    def num_params(self, context: BuildContext) -> dict[str, int]:
        hidden = context.decoder.hidden_size
        return {"linear": (context.size("vision_hidden") + 1) * hidden, "norm": 2 * hidden}

    def cost(self, context: BuildContext) -> Cost:
        tokens = (context.axes.get("layer") or 0) * (context.axes.get("patch") or 0)
        return Cost(per_image=2 * tokens * context.size("vision_hidden") * context.decoder.hidden_size)

    def build(self, context: BuildContext) -> NormedLinear:
        return NormedLinear(context.size("vision_hidden"), context.decoder.hidden_size)


class NormedLinear(nn.Module):
    """Shapes: patches [batch, layer, patch, vision_hidden] -> [batch, layer, patch, decoder_hidden]."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(width, hidden), nn.LayerNorm(hidden)

    def forward(self, patches: Tensor) -> Tensor:
        return self.norm(self.linear(patches.to(self.linear.weight.dtype)))
