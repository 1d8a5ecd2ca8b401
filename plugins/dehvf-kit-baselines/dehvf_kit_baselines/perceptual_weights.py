"""VLoRA: an image becomes low-rank weights, which are added to the decoder's own while its row is read.

Source: VLoRA, arXiv:2405.20339 (FeipengMa6/VLoRA 623aa52). There the whole decoder is trained afterwards; here it stays frozen. The
narrow normal distribution that its code means for queries and positions never reaches them: they start as N(0, 1), as here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from dehvf_kit import ffn_sites, hook_ffns, hook_maps, low_rank, map_sites
from dehvf_kit.api import BuildContext, ComponentConfig, ConfigMismatchError, Cost, DecoderComponent, DecoderError
from dehvf_kit.backbones.ffn.memory_hooks import FfnHooks
from dehvf_kit_baselines.attention_hooks import map_size
from dehvf_kit_baselines.perceiver import attend

Target = Literal["query", "key", "value", "output", "qkv", "ffn"]


class PerceptualWeightsConfig(ComponentConfig):
    """W x + alpha / rank * (x A) B^T at targets of every n-th layer: A made from each image, B learned, zero at first."""

    role: ClassVar[str] = "decoder_adapter"
    takes: ClassVar[tuple[str, ...]] = ("patches: batch layer patch vision_hidden", "has_image?: batch")
    attaches: ClassVar[str] = "decoder"
    strength: ClassVar[str] = "alpha"
    type: Literal["perceptual_weights"] = "perceptual_weights"
    rank: int = Field(64, ge=1, description="rank of an image's weights")
    alpha: float = Field(64.0, gt=0, description="the update is scaled by alpha / rank")
    every: int = Field(4, ge=1, description="layers numbered every, 2 * every, ... (the first is 1)")
    targets: tuple[Target, ...] = Field(
        ("query", "key", "value", "output", "ffn"),
        min_length=1,
        description="maps of the attention (qkv: one map of all three), and the whole FFN",
    )
    width: int = Field(512, ge=1, description="width of the generators")
    num_blocks: int = Field(8, ge=1, description="blocks of a generator")
    num_heads: int = Field(16, ge=1, description="its heads")

    def chosen(self, context: BuildContext) -> list[int]:
        """0-based decoder layers that have targets."""
        return [layer for layer in range(context.decoder.num_layers) if (layer + 1) % self.every == 0]

    def sizes(self, context: BuildContext) -> dict[str, tuple[int, int]]:
        """(in, out) of each target."""
        hidden = context.decoder.hidden_size
        return {name: (hidden, hidden) if name == "ffn" else map_size(context, name) for name in self.targets}

    def resolve(self, context: BuildContext) -> dict[str, int | None]:
        if len(self.sizes(context)) < len(self.targets):
            raise ConfigMismatchError("a map is named twice; name each once", "targets")
        if not self.chosen(context):
            most = context.decoder.num_layers
            raise ConfigMismatchError(f"no layer of {most} is the {self.every}th; use {most} or less", "every")
        if self.width % self.num_heads:
            raise ConfigMismatchError(f"{self.num_heads} heads do not divide {self.width}", "num_heads")
        context.size("patch")
        return {}

    def num_params(self, context: BuildContext) -> dict[str, int]:
        width, layers, sizes = self.width, len(self.chosen(context)), self.sizes(context).values()
        block = 8 * (width * width + width) + 8 * width * width + 5 * width + 6 * width
        each = layers * width + self.num_blocks * block + 2 * width
        tokens = context.size("layer") * context.size("patch")
        return {
            "image": context.size("vision_hidden") * width + width + tokens * width,
            "generators": len(self.targets) * each + sum((width + 1) * self.rank * size for size, _ in sizes),
            "learned": sum(layers * self.rank * size for _, size in sizes),
        }

    def cost(self, context: BuildContext) -> Cost:
        counts, layers = self.num_params(context), len(self.chosen(context))
        tokens = context.size("layer") * context.size("patch")
        read = (
            2
            * tokens
            * ((context.size("vision_hidden") + 1) * self.width + len(self.targets) * self.num_blocks * 2 * self.width**2)
        )
        per_token = 2 * layers * self.rank * sum(map(sum, self.sizes(context).values()))
        return Cost(per_image=read + 2 * layers * counts["generators"], per_token=per_token)

    def build(self, context: BuildContext) -> PerceptualWeights:
        image = Image(context.size("vision_hidden"), context.size("layer") * context.size("patch"), self.width)
        layers, sizes = self.chosen(context), self.sizes(context)
        make = {
            name: Generator(
                len(layers),
                width=self.width,
                blocks=self.num_blocks,
                heads=self.num_heads,
                inner=inner,
                outer=outer,
                rank=self.rank,
            )
            for name, (inner, outer) in sizes.items()
        }
        return PerceptualWeights(layers, image, make, self.alpha / self.rank)


class Image(nn.Module):
    """Shapes: patches [batch, layer, patch, vision_hidden] -> [batch, layer * patch, width], with learned positions ~ N(0, 1)."""

    def __init__(self, vision: int, tokens: int, width: int) -> None:
        super().__init__()
        self.map, self.positions = nn.Linear(vision, width), nn.Parameter(torch.randn(tokens, width))

    def forward(self, patches: Tensor) -> Tensor:
        return self.map(patches.flatten(1, 2).to(self.map.weight.dtype)) + self.positions


class Generator(nn.Module):
    """Shapes: an image's tokens [batch, token, width] -> A [batch, layer, in, rank]; `b` [layer, out, rank] starts at zero."""

    def __init__(self, layers: int, width: int, blocks: int, heads: int, inner: int, outer: int, rank: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(layers, width))
        self.blocks = nn.ModuleList(GeneratorBlock(width, heads) for _ in range(blocks))
        self.norm, self.output = nn.LayerNorm(width), nn.Linear(width, inner * rank)
        self.b = nn.Parameter(torch.zeros(layers, outer, rank))

    def forward(self, image: Tensor) -> Tensor:
        x = self.queries.expand(len(image), -1, -1)
        for block in self.blocks:
            x = block(x, image)
        return self.output(self.norm(x)).unflatten(-1, (-1, self.b.shape[-1]))


class GeneratorBlock(nn.Module):
    """x += SelfAttn(LN x); x += CrossAttn(LN x; image); x += W2 GELU(W1 LN x). All maps have biases."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.own, self.seen = (nn.ModuleList(nn.Linear(width, width) for _ in range(4)) for _ in range(2))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor, image: Tensor) -> Tensor:
        normed = self.norms[0](x)
        query, key, value, output = self.own
        x = x + output(attend(query(normed), key(normed), value(normed), self.heads))
        query, key, value, output = self.seen
        x = x + output(attend(query(self.norms[1](x)), key(image), value(image), self.heads))
        return x + self.down(F.gelu(self.up(self.norms[2](x))))


class PerceptualWeights(DecoderComponent):
    """forward: patches and has_image [batch] -> A of each target [batch, layer, in, rank], zero in rows without image.

    Cost: 2 * rank * (in + out) FLOPs a token, target and layer. Raises: ShapeError for rows that are no multiple of the batch.
    """

    def __init__(self, layers: list[int], image: Image, generators: dict[str, Generator], scale: float) -> None:
        super().__init__()
        self.layers, self.image, self.generators, self.scale = layers, image, nn.ModuleDict(generators), scale

    def hook(self, decoder: nn.Module) -> Iterator[FfnHooks]:
        """Hook the targets. Raises: DecoderError for a decoder that has not one map of a role in each layer."""
        ffns = [site for site in ffn_sites(decoder) if site.layer_idx in self.layers]
        for name in self.generators:
            if name == "ffn":
                yield hook_ffns(decoder, ffns, lambda index, x: self._delta("ffn", index, x))
                continue
            sites = [site for site in map_sites(decoder) if site.role == name and site.layer_idx in self.layers]
            if [site.layer_idx for site in sites] != self.layers:
                raise DecoderError(
                    f"{type(decoder).__name__}: not one {name} map in each of the layers that have weights of an image"
                )
            yield hook_maps(decoder, sites, lambda index, x, name=name: self._delta(name, index, x))

    def forward(self, patches: Tensor, has_image: Tensor | None = None) -> dict[str, Tensor]:
        image = self.image(patches)
        made = {name: generator(image) for name, generator in self.generators.items()}
        if has_image is None:
            return made
        return {name: a.where(has_image.to(a.device)[:, None, None, None], 0.0) for name, a in made.items()}

    def _delta(self, name: str, index: int, x: Tensor) -> Tensor | None:
        if self.memory is None:
            return None
        return self.scale * low_rank(x, self.memory[name][:, index], self.generators[name].b[index])
