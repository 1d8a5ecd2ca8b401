"""DeepStack: further tokens of an image are added, level by level, to its tokens of the input between the first decoder layers.

Sources: DeepStack, arXiv:2406.04334 (MengLcool/DeepStack-VL 3aab69b): sub-grids of a finer map, before layers 1, 2, ..., without
parameters of its own; Qwen3-VL (transformers qwen3_vl): other vision layers, each through its own merger, after layers 0, 1, 2.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from dehvf_kit import hook_layers, layer_sites
from dehvf_kit.api import BuildContext, ComponentConfig, ConfigMismatchError, Cost, DecoderComponent, Readout, ShapeError
from dehvf_kit.backbones.ffn.memory_hooks import FfnHooks
from dehvf_kit_baselines.readers import check_layer, places_of


class StackedTokensConfig(ComponentConfig):
    """Level k of an image's tokens is added where they stand in the input, before or after decoder layer first + k * step.

    The levels are a projector's codes, whose layers they then are, or come from `mergers`. Nothing is added to text, nor to rows
    without image.
    """

    role: ClassVar[str] = "decoder_adapter"
    takes: ClassVar[tuple[str, ...]] = (
        "codes?: batch layer patch code",
        "readout?: code decoder_hidden",
        "levels?: batch level visual_token decoder_hidden",
        "has_image?: batch",
    )
    attaches: ClassVar[str] = "decoder"
    type: Literal["stacked_tokens"] = "stacked_tokens"
    where: Literal["before", "after"] = Field("before", description="before (DeepStack) or after (Qwen3-VL) each decoder layer")
    first: int = Field(1, ge=0, description="decoder layer of the first level, 0 the first layer: 1 in DeepStack, 0 in Qwen3-VL")
    step: int = Field(1, ge=1, description="decoder layers from one level to the next")

    skip: int = Field(0, ge=0, description="levels that are not added: the first, where the input has them")

    def count(self, context: BuildContext) -> int:
        """Levels that come in."""
        return context.size("level" if "levels" in context.wires else "layer")

    def layers(self, context: BuildContext) -> list[int]:
        """Decoder layer of each level."""
        return [self.first + level * self.step for level in range(self.count(context) - self.skip)]

    def resolve(self, context: BuildContext) -> dict[str, int | None]:
        if "levels" not in context.wires and not {"codes", "readout"} <= set(context.wires):
            raise ConfigMismatchError("needs an image's codes and readout; add a projector", "inputs")
        if self.skip >= self.count(context):
            raise ConfigMismatchError(f"{self.skip} of {self.count(context)} levels left out; none is left", "skip")
        last = self.layers(context)[-1]
        if last >= context.decoder.num_layers:
            raise ConfigMismatchError(f"the last level is for decoder layer {last}, of {context.decoder.num_layers}", "first")
        return {}

    def cost(self, context: BuildContext) -> Cost:
        width = (context.axes.get("code") or 0) * context.decoder.hidden_size
        return Cost(
            per_image=0 if "levels" in context.wires else 2 * context.size("layer") * (context.axes.get("patch") or 0) * width
        )

    def build(self, context: BuildContext) -> StackedTokens:
        return StackedTokens(self.layers(context), self.where, self.skip)


class StackedTokens(DecoderComponent):
    """forward: codes [batch, level, token, code] and a readout -> the levels [batch, level, token, decoder_hidden].

    Raises: ShapeError for more tokens in the input than a level has.
    """

    def __init__(self, layers: list[int], where: Literal["before", "after"], skip: int = 0) -> None:
        super().__init__()
        self.layers, self.where, self.skip = layers, where, skip

    def hook(self, decoder: nn.Module) -> Iterator[FfnHooks]:
        """Hook the levels' layers. Raises: DecoderError for a decoder without one residual stream."""
        sites = layer_sites(decoder)
        yield hook_layers(decoder, [sites[layer] for layer in self.layers], self.where, self._delta)

    def forward(
        self,
        codes: Tensor | None = None,
        readout: Readout | None = None,
        levels: Tensor | None = None,
        has_image: Tensor | None = None,
    ) -> Tensor | None:
        if levels is None and (codes is None or readout is None):
            return None
        levels = F.linear(readout.activation(codes), readout.weight, readout.bias) if levels is None else levels
        return levels if has_image is None else levels.where(has_image.to(levels.device)[:, None, None, None], 0.0)

    def _delta(self, index: int, x: Tensor) -> Tensor | None:
        if self.memory is None or self.places is None:
            return None
        level, places = self.memory[:, self.skip + index].to(x), self.places.to(x.device)
        if not places.is_meta and int(places.max()) >= level.shape[1]:
            raise ShapeError(f"{int(places.max()) + 1} tokens of an image in the input; a level has {level.shape[1]}")
        level = level.repeat_interleave(x.shape[0] // level.shape[0], 0)
        added = level.gather(1, places.clamp(min=0)[..., None].expand(-1, -1, x.shape[-1]))
        return added.where((places >= 0)[..., None], 0.0)


class SubgridsReaderConfig(ComponentConfig):
    """One vision layer's patches cut into n x n sub-grids, every n-th patch of a row and column: DeepStack's finer map."""

    role: ClassVar[str] = "reader"
    takes: ClassVar[tuple[str, ...]] = ("patches: batch layer patch vision_hidden",)
    gives: ClassVar[tuple[str, ...]] = ("patches: batch layer patch vision_hidden",)
    type: Literal["subgrids"] = "subgrids"
    layer: int = Field(-2, description="vision layer: 0 is the first block, -1 the last")
    side: int = Field(2, ge=1, description="n: as many levels as its square")
    whole: bool = Field(True, description="before them a level of the means over n x n patches, for the input")

    def vision_layers(self, num_layers: int) -> tuple[int, ...]:
        return (self.layer % num_layers,)

    def resolve(self, context: BuildContext) -> dict[str, int | None]:
        check_layer(context, self.layer)
        patches = context.size("patch")
        grid = round(patches**0.5)
        if grid * grid != patches or grid % self.side:
            raise ConfigMismatchError(f"{patches} patches cannot be cut into {self.side} x {self.side} sub-grids", "side")
        return {"layer": self.side**2 + self.whole, "patch": patches // self.side**2}

    def build(self, context: BuildContext) -> Subgrids:
        return Subgrids(places_of(context, [self.layer])[0], self.side, self.whole)


class Subgrids(nn.Module):
    """Shapes: patches [batch, layer, patch, width], in row order -> [batch, (1 +) side^2, patch / side^2, width]."""

    def __init__(self, place: int, side: int, whole: bool) -> None:
        super().__init__()
        self.place, self.side, self.whole = place, side, whole

    def forward(self, patches: Tensor) -> Tensor:
        chosen = patches[:, self.place]
        grid = chosen.unflatten(1, (round(chosen.shape[1] ** 0.5), -1))
        parts = [grid[:, y :: self.side, x :: self.side].flatten(1, 2) for y in range(self.side) for x in range(self.side)]
        levels = torch.stack(parts, 1)
        return torch.cat([levels.mean(1, keepdim=True), levels], 1) if self.whole else levels


class MergersConfig(ComponentConfig):
    """Qwen3-VL's mergers: of each vision layer named, four neighbouring patches joined, LayerNorm, two linear maps with GELU."""

    role: ClassVar[str] = "projector"
    takes: ClassVar[tuple[str, ...]] = ("patches: batch layer patch vision_hidden",)
    gives: ClassVar[tuple[str, ...]] = ("levels: batch level visual_token decoder_hidden",)
    type: Literal["mergers"] = "mergers"
    layers: tuple[int, ...] = Field(
        (7, 15, 23),
        min_length=1,
        description="vision layers, 0 the first block; one merger for each. Qwen3-VL's encoder of 27 blocks is read at 8, 16, 24",
    )

    def vision_layers(self, num_layers: int) -> tuple[int, ...]:
        return tuple(sorted({layer % num_layers for layer in self.layers}))

    def resolve(self, context: BuildContext) -> dict[str, int | None]:
        for layer in self.layers:
            check_layer(context, layer)
        grid = round(context.size("patch") ** 0.5)
        if grid % 2 or grid * grid != context.size("patch"):
            raise ConfigMismatchError(f"{context.size('patch')} patches cannot be joined in fours", "layers")
        return {"level": len(self.layers), "visual_token": context.size("patch") // 4}

    def num_params(self, context: BuildContext) -> dict[str, int]:
        width, hidden = 4 * context.size("vision_hidden"), context.decoder.hidden_size
        return {"mergers": len(self.layers) * (2 * width + width * width + width + width * hidden + hidden)}

    def cost(self, context: BuildContext) -> Cost:
        return Cost(per_image=2 * self.num_params(context)["mergers"] * (context.axes.get("patch") or 0))

    def build(self, context: BuildContext) -> Mergers:
        places = places_of(context, list(self.layers))
        return Mergers(places, context.size("vision_hidden"), context.decoder.hidden_size)


class Mergers(nn.Module):
    """Shapes: patches [batch, layer, patch, width] -> [batch, level, patch / 4, decoder_hidden]."""

    def __init__(self, places: list[int], width: int, hidden: int) -> None:
        super().__init__()
        self.places = places
        self.norms = nn.ModuleList(nn.LayerNorm(4 * width, eps=1e-6) for _ in places)
        self.up = nn.ModuleList(nn.Linear(4 * width, 4 * width) for _ in places)
        self.down = nn.ModuleList(nn.Linear(4 * width, hidden) for _ in places)

    def forward(self, patches: Tensor) -> Tensor:
        levels = []
        for place, norm, up, down in zip(self.places, self.norms, self.up, self.down, strict=True):
            chosen = patches[:, place].to(up.weight.dtype)
            grid = chosen.unflatten(1, (round(chosen.shape[1] ** 0.5), -1))
            joined = torch.cat([grid[:, y::2, x::2] for y in (0, 1) for x in (0, 1)], -1).flatten(1, 2)
            levels.append(down(F.gelu(up(norm(joined)))))
        return torch.stack(levels, 1)
