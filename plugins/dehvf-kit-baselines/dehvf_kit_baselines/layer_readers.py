"""Readers that hand on several vision layers at once: joined by channel, one after the other, or one layer in several grids.

Sources: Dense Connector, arXiv:2405.13800 (HJYao00/DenseConnector 0f8936c); ViP-LLaVA, arXiv:2312.00784; ADEM-VL, arXiv:2410.17779.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from dehvf_kit.api import BuildContext, ComponentConfig, ConfigMismatchError
from dehvf_kit_baselines.readers import check_layer, places_of

PATCHES = ("patches: batch layer patch vision_hidden",)


class ChannelsReaderConfig(ComponentConfig):
    """Several vision layers, or means of several, joined by channel: Dense Connector's SCI and DCI, ViP-LLaVA with `norm`."""

    role: ClassVar[str] = "reader"
    takes: ClassVar[tuple[str, ...]] = PATCHES
    gives: ClassVar[tuple[str, ...]] = PATCHES
    type: Literal["channels"] = "channels"
    layers: tuple[tuple[int, ...], ...] = Field(
        ((-2,), (6,), (14,)), min_length=1, description="for each part, the vision layers whose mean it is; 0 is the first block"
    )
    norm: bool = Field(False, description="a learned layer norm over the joined channels")

    def vision_layers(self, num_layers: int) -> tuple[int, ...]:
        return tuple(sorted({layer % num_layers for part in self.layers for layer in part}))

    def resolve(self, context: BuildContext) -> dict[str, int | None]:
        for layer in (layer for part in self.layers for layer in part):
            check_layer(context, layer)
        if not all(self.layers):
            raise ConfigMismatchError("an empty part; name at least one vision layer in each", "layers")
        return {"layer": 1, "vision_hidden": self._width(context)}

    def num_params(self, context: BuildContext) -> dict[str, int]:
        return {"norm": 2 * self._width(context)} if self.norm else {}

    def build(self, context: BuildContext) -> Channels:
        return Channels([places_of(context, list(part)) for part in self.layers], self._width(context) if self.norm else 0)

    def _width(self, context: BuildContext) -> int:
        """Channels that come out, of those that come in (`context.axes` has the former once this node is resolved)."""
        return len(self.layers) * (context.wires["patches"][0]["vision_hidden"] or 0)


class Channels(nn.Module):
    """Shapes: patches [batch, layer, patch, width] -> [batch, 1, patch, parts * width], each part the mean of some layers."""

    def __init__(self, parts: list[list[int]], norm: int = 0) -> None:
        super().__init__()
        self.parts = parts
        self.norm = nn.LayerNorm(norm) if norm else None

    def forward(self, patches: Tensor) -> Tensor:
        joined = torch.cat([patches[:, part].mean(1) for part in self.parts], -1)[:, None]
        return joined if self.norm is None else self.norm(joined.to(self.norm.weight.dtype))


class TokenLevelsReaderConfig(ComponentConfig):
    """One vision layer whole, then others in means of neighbouring patches along the rows: Dense Connector's STI."""

    role: ClassVar[str] = "reader"
    takes: ClassVar[tuple[str, ...]] = PATCHES
    gives: ClassVar[tuple[str, ...]] = PATCHES
    type: Literal["token_levels"] = "token_levels"
    layer: int = Field(-2, description="vision layer whose patches come whole: 0 is the first block, -1 the last")
    pooled: tuple[int, ...] = Field((6, 14), min_length=1, description="vision layers that come in means")
    pool: int = Field(8, ge=1, description="patches in a mean")

    def vision_layers(self, num_layers: int) -> tuple[int, ...]:
        return tuple(sorted({layer % num_layers for layer in (self.layer, *self.pooled)}))

    def resolve(self, context: BuildContext) -> dict[str, int | None]:
        for layer in (self.layer, *self.pooled):
            check_layer(context, layer)
        patches = context.axes.get("patch")
        if patches is not None and patches % self.pool:
            raise ConfigMismatchError(f"{patches} patches cannot be cut into means of {self.pool}", "pool")
        return {"layer": 1, "patch": None if patches is None else patches + len(self.pooled) * patches // self.pool}

    def build(self, context: BuildContext) -> TokenLevels:
        return TokenLevels(places_of(context, [self.layer])[0], places_of(context, list(self.pooled)), self.pool)


class TokenLevels(nn.Module):
    """Shapes: patches [batch, layer, patch, width] -> [batch, 1, patch + pooled * patch / pool, width]."""

    def __init__(self, place: int, pooled: list[int], pool: int) -> None:
        super().__init__()
        self.place, self.pooled, self.pool = place, pooled, pool

    def forward(self, patches: Tensor) -> Tensor:
        means = patches[:, self.pooled].unflatten(2, (-1, self.pool)).mean(3).flatten(1, 2)
        return torch.cat([patches[:, self.place], means], 1)[:, None]


class GridsReaderConfig(ComponentConfig):
    """One vision layer's patches in square grids of several sizes, one after the other: ADEM-VL has 16 x 16, then 8 x 8."""

    role: ClassVar[str] = "reader"
    takes: ClassVar[tuple[str, ...]] = PATCHES
    gives: ClassVar[tuple[str, ...]] = PATCHES
    type: Literal["grids"] = "grids"
    layer: int = Field(-2, description="vision layer: 0 is the first block, -1 the last")
    sides: tuple[int, ...] = Field(
        (16, 8), min_length=1, description="side of each grid, in patches; the image's own, or a divisor"
    )

    def vision_layers(self, num_layers: int) -> tuple[int, ...]:
        return (self.layer % num_layers,)

    def resolve(self, context: BuildContext) -> dict[str, int | None]:
        check_layer(context, self.layer)
        patches = context.size("patch")
        side = math.isqrt(patches)
        wrong = [given for given in self.sides if given < 1 or side % given]
        if side * side != patches or wrong:
            raise ConfigMismatchError(f"{patches} patches ({side} a side) cannot be cut into grids of {list(self.sides)}", "sides")
        return {"layer": 1, "patch": sum(given * given for given in self.sides)}

    def build(self, context: BuildContext) -> Grids:
        return Grids(places_of(context, [self.layer])[0], list(self.sides))


class Grids(nn.Module):
    """Shapes: patches [batch, layer, patch, width], in row order -> means over equal squares [batch, 1, sum of side^2, width]."""

    def __init__(self, place: int, sides: list[int]) -> None:
        super().__init__()
        self.place, self.sides = place, sides

    def forward(self, patches: Tensor) -> Tensor:
        chosen = patches[:, self.place]
        grid = chosen.unflatten(1, (math.isqrt(chosen.shape[1]), -1)).permute(0, 3, 1, 2)
        pooled = [F.avg_pool2d(grid, grid.shape[-1] // side).flatten(2).mT for side in self.sides]
        return torch.cat(pooled, 1)[:, None]
