"""Flamingo's gated cross-attention: between a decoder's layers the text attends to the image, behind gates that start closed.

Source: Flamingo, arXiv:2204.14198; OpenFlamingo (655f693). Where xformers is installed, Otter's public code drops the mask of this
attention, so that all text sees all images; here a row sees its own image alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from dehvf_kit import hook_layers, layer_sites
from dehvf_kit.api import BuildContext, ComponentConfig, ConfigMismatchError, Cost, DecoderComponent, ShapeError
from dehvf_kit.backbones.ffn.memory_hooks import FfnHooks
from dehvf_kit_baselines.perceiver import attend


class GatedCrossAttentionConfig(ComponentConfig):
    """x += tanh(g) * Attn(LN x; image), x += tanh(g') * FFN(LN x) before every n-th decoder layer; both gates start at 0."""

    role: ClassVar[str] = "decoder_adapter"
    takes: ClassVar[tuple[str, ...]] = ("patches?: batch layer patch vision_hidden", "has_image?: batch")
    attaches: ClassVar[str] = "decoder"
    type: Literal["gated_cross_attention"] = "gated_cross_attention"
    every: int = Field(4, ge=1, description="before layers numbered every, 2 * every, ... (the first is 1)")
    num_heads: int = Field(8, ge=1, description="heads of the attention")
    head_size: int = Field(64, ge=1, description="width of a head")
    feed_forward: bool = Field(True, description="whether a feed-forward network follows, as in Flamingo")
    expansion: int = Field(4, ge=1, description="its width, in widths of the decoder")
    without_image: Literal["unchanged", "feed_forward"] = Field(
        "unchanged", description="rows without image: left as they are (choice), or through the feed-forward network as published"
    )

    def chosen(self, context: BuildContext) -> list[int]:
        """0-based decoder layers that a block stands before."""
        return [layer for layer in range(context.decoder.num_layers) if (layer + 1) % self.every == 0]

    def resolve(self, context: BuildContext) -> dict[str, int | None]:
        if "patches" not in context.wires:
            raise ConfigMismatchError("needs an image's tokens; add a reader, or wire an encoder's patches to it", "inputs")
        if not self.chosen(context):
            most = context.decoder.num_layers
            raise ConfigMismatchError(f"no layer of {most} is the {self.every}th; use {most} or less", "every")
        return {}

    def num_params(self, context: BuildContext) -> dict[str, int]:
        hidden, width, inner = context.decoder.hidden_size, context.size("vision_hidden"), self.num_heads * self.head_size
        blocks = len(self.chosen(context))
        attention = 2 * hidden + 2 * hidden * inner + 2 * width * inner + 1
        ffn = 2 * hidden + 2 * self.expansion * hidden * hidden + 1
        return {"attention": blocks * attention, "feed_forward": blocks * ffn if self.feed_forward else 0}

    def cost(self, context: BuildContext) -> Cost:
        hidden, width, inner = context.decoder.hidden_size, context.size("vision_hidden"), self.num_heads * self.head_size
        tokens = (context.axes.get("layer") or 0) * (context.axes.get("patch") or 0)
        blocks = len(self.chosen(context))
        ffn = 4 * self.expansion * hidden * hidden if self.feed_forward else 0
        per_token = 4 * hidden * inner + 4 * tokens * inner + ffn
        return Cost(per_image=blocks * 4 * tokens * width * inner, per_token=blocks * per_token)

    def build(self, context: BuildContext) -> GatedCrossAttention:
        spec, expansion = context.decoder, self.expansion if self.feed_forward else 0
        sizes = spec.hidden_size, context.size("vision_hidden"), self.num_heads, self.head_size, expansion
        blocks = {layer: GatedBlock(*sizes) for layer in self.chosen(context)}
        return GatedCrossAttention(blocks, spec.num_layers, self.without_image == "feed_forward")


class Media:
    """A batch's image tokens as keys and values of each block, and which rows have an image (None: all of them, or none)."""

    def __init__(self, keys_values: list[tuple[Tensor, Tensor]], has_image: Tensor | None) -> None:
        self.keys_values, self.has_image = keys_values, has_image


class GatedBlock(nn.Module):
    """Attention to an image and a feed-forward network, each behind a gate of its own. LayerNorm, no biases; gates 0."""

    def __init__(self, hidden: int, width: int, num_heads: int, head_size: int, expansion: int) -> None:
        super().__init__()
        inner = num_heads * head_size
        self.num_heads = num_heads
        self.norm = nn.LayerNorm(hidden)
        self.query = nn.Linear(hidden, inner, bias=False)
        self.key_value = nn.Linear(width, 2 * inner, bias=False)
        self.output = nn.Linear(inner, hidden, bias=False)
        self.gate = nn.Parameter(torch.zeros(1))
        self.ffn: nn.ModuleDict | None = None
        if expansion:
            parts = {"norm": nn.LayerNorm(hidden), "up": nn.Linear(hidden, expansion * hidden, bias=False)}
            self.ffn = nn.ModuleDict({**parts, "down": nn.Linear(expansion * hidden, hidden, bias=False)})
            self.ffn_gate = nn.Parameter(torch.zeros(1))

    def attended(self, x: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """tanh(g) * Attn(LN x; image). Shapes: x [batch, token, hidden], keys and values [batch, image token, inner] -> x's."""
        queries = linear(self.query, norm(self.norm, x))
        found = attend(queries, keys.to(queries), values.to(queries), self.num_heads)
        return self.gate.tanh().to(x) * linear(self.output, found)

    def fed(self, x: Tensor) -> Tensor | None:
        """tanh(g') * FFN(LN x), or None without a feed-forward network."""
        if self.ffn is None:
            return None
        inner = F.gelu(linear(self.ffn["up"], norm(self.ffn["norm"], x)))
        return self.ffn_gate.tanh().to(x) * linear(self.ffn["down"], inner)


class GatedCrossAttention(DecoderComponent):
    """forward: patches [batch, layer, patch, vision_hidden] and has_image [batch] -> the batch's `Media`.

    Cost: 4 * hidden * inner + 4 * image tokens * inner FLOPs a token and block, and the feed-forward network's.
    Raises: ShapeError for rows that are no multiple of the batch.
    """

    def __init__(self, blocks: dict[int, GatedBlock], num_layers: int, ffn_without_image: bool = False) -> None:
        super().__init__()
        self.layers, self.num_layers, self.ffn_without_image = list(blocks), num_layers, ffn_without_image
        self.blocks = nn.ModuleList(blocks.values())

    def hook(self, decoder: nn.Module) -> Iterator[FfnHooks]:
        """Hook the layers that have a block. Raises: DecoderError for a decoder without one residual stream."""
        sites = layer_sites(decoder)
        yield hook_layers(decoder, [sites[layer] for layer in self.layers], "before", self._delta)

    def forward(self, patches: Tensor | None = None, has_image: Tensor | None = None) -> Media | None:
        if patches is None:
            return Media([], None) if self.ffn_without_image else None
        media = patches.flatten(1, 2)
        pairs = [linear(block.key_value, media.to(block.key_value.weight.dtype)).chunk(2, -1) for block in self.blocks]
        return Media([(keys, values) for keys, values in pairs], has_image)

    def _delta(self, index: int, x: Tensor) -> Tensor | None:
        media, block = self.memory, self.blocks[index]
        if media is None:
            return None
        if not media.keys_values:
            return block.fed(x)
        keys, values = media.keys_values[index]
        batch = keys.shape[0]
        if x.shape[0] % batch:
            raise ShapeError(f"{x.shape[0]} rows of text for {batch} samples (rows may only be repeated whole, as beams are)")
        rows = x.reshape(batch, -1, x.shape[-1])
        seen = None if media.has_image is None else media.has_image.to(x.device)[:, None, None]
        added = block.attended(rows, keys, values)
        added = added if seen is None else added.where(seen, 0.0)
        fed = block.fed(rows + added)
        if fed is not None:
            added = added + (fed if seen is None or self.ffn_without_image else fed.where(seen, 0.0))
        return added.reshape(x.shape)


def linear(module: nn.Linear, x: Tensor) -> Tensor:
    """A linear map in the dtype of its input."""
    return F.linear(x, module.weight.to(x.dtype), None if module.bias is None else module.bias.to(x.dtype))


def norm(module: nn.LayerNorm, x: Tensor) -> Tensor:
    """A layer norm in the dtype of its input."""
    return F.layer_norm(x, module.normalized_shape, module.weight.to(x.dtype), module.bias.to(x.dtype), module.eps)
