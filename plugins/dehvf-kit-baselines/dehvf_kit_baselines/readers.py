"""Readers: which tokens of the encoder a method takes, handed on as the patches of one layer, so that a projector fits."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from dehvf_kit.api import BuildContext, ComponentConfig, ConfigMismatchError


class PatchTokensReaderConfig(ComponentConfig):
    """The patch tokens of one vision layer, as LLaVA reads the penultimate one."""

    role: ClassVar[str] = "reader"
    takes: ClassVar[tuple[str, ...]] = ("patches: batch layer patch vision_hidden",)
    gives: ClassVar[tuple[str, ...]] = ("patches: batch layer patch vision_hidden",)
    type: Literal["patch_tokens"] = "patch_tokens"
    layer: int = Field(-2, description="vision layer: 0 is the first block, -1 the last")

    def vision_layers(self, num_layers: int) -> tuple[int, ...]:
        return (self.layer % num_layers,)

    def resolve(self, context: BuildContext) -> dict[str, int | None]:
        check_layer(context, self.layer)
        return {"layer": 1}

    def build(self, context: BuildContext) -> Reader:
        return Reader(places_of(context, [self.layer]))


class GlobalTokensReaderConfig(ComponentConfig):
    """The global (class) tokens of vision layers spread evenly up to the last, as LaVIN reads every fourth of CLIP's 24."""

    role: ClassVar[str] = "reader"
    takes: ClassVar[tuple[str, ...]] = ("globals: batch layer vision_hidden",)
    gives: ClassVar[tuple[str, ...]] = ("patches: batch layer patch vision_hidden",)
    type: Literal["global_tokens"] = "global_tokens"
    num_tokens: int = Field(6, ge=1, description="layers read, of which the deepest is the last; 1: the last alone")
    layer: int | None = Field(None, description="the one vision layer read, 0 the first block; null: as num_tokens says")

    def chosen(self, num_layers: int) -> list[int]:
        """0-based layers after blocks round(L / n), round(2 L / n), ..., L: 3, 7, ..., 23 of 24 for six."""
        if self.layer is not None:
            return [self.layer % num_layers]
        return [round((place + 1) * num_layers / self.num_tokens) - 1 for place in range(self.num_tokens)]

    def vision_layers(self, num_layers: int) -> tuple[int, ...]:
        return tuple(self.chosen(num_layers))

    def resolve(self, context: BuildContext) -> dict[str, int | None]:
        if self.layer is not None:
            check_layer(context, self.layer)
            if self.num_tokens != 1:
                raise ConfigMismatchError(f"one layer named, {self.num_tokens} tokens asked for; set num_tokens to 1", "layer")
        if context.vision is not None and self.num_tokens > context.vision.num_layers:
            raise ConfigMismatchError(
                f"{self.num_tokens} tokens from {context.vision.num_layers} vision layers; use as many at most", "num_tokens"
            )
        return {"layer": 1, "patch": self.num_tokens}

    def build(self, context: BuildContext) -> Reader:
        num_layers = context.vision.num_layers if context.vision else context.size("layer")
        return Reader(places_of(context, self.chosen(num_layers)))


class QueryReaderConfig(ComponentConfig):
    """What readers with learned queries share: one vision layer's tokens go in, the queries come out as patches."""

    role: ClassVar[str] = "reader"
    takes: ClassVar[tuple[str, ...]] = ("patches: batch layer patch vision_hidden", "globals?: batch layer vision_hidden")
    gives: ClassVar[tuple[str, ...]] = ("patches: batch layer patch vision_hidden",)
    layer: int = Field(-1, description="vision layer: 0 is the first block, -1 the last")
    num_queries: int = Field(32, ge=1, description="learned queries, which are the patches that come out")
    hidden_size: int = Field(768, ge=1, description="width of the queries")
    num_heads: int = Field(12, ge=1, description="heads of their attention")

    def vision_layers(self, num_layers: int) -> tuple[int, ...]:
        return (self.layer % num_layers,)

    def resolve(self, context: BuildContext) -> dict[str, int | None]:
        check_layer(context, self.layer)
        if self.hidden_size % self.num_heads:
            raise ConfigMismatchError(f"{self.num_heads} heads do not divide {self.hidden_size}", "num_heads")
        return {"layer": 1, "patch": self.num_queries, "vision_hidden": self.hidden_size}

    def width_in(self, context: BuildContext) -> int:
        """Width of the encoder's tokens (`context.axes` has that of the queries once this node is resolved)."""
        return context.wires["patches"][0]["vision_hidden"] or 0

    def tokens_in(self, context: BuildContext) -> int:
        """Tokens of one image."""
        return (context.wires["patches"][0].get("patch") or 0) + ("globals" in context.wires)


def image_tokens(place: int, patches: Tensor, globals: Tensor | None) -> Tensor:
    """One layer's tokens [batch, token, width], the global one first where it is given."""
    image = patches[:, place]
    return image if globals is None else torch.cat([globals[:, place, None], image], 1)


class Reader(nn.Module):
    """Shapes: patches [batch, layer, patch, vision_hidden] -> the layer at `places[0]` alone [batch, 1, patch, vision_hidden];
    globals [batch, layer, vision_hidden] -> those at `places` as one layer's patches [batch, 1, places, vision_hidden].
    """

    def __init__(self, places: list[int]) -> None:
        super().__init__()
        self.places = places

    def forward(self, patches: Tensor | None = None, globals: Tensor | None = None) -> Tensor:
        return patches[:, self.places] if patches is not None else globals[:, self.places].unsqueeze(1)


def check_layer(context: BuildContext, layer: int) -> None:
    count = context.vision.num_layers if context.vision else None
    if count is not None and not -count <= layer < count:
        raise ConfigMismatchError(f"there is no vision layer {layer} of {count}; use {-count} to {count - 1}", "layer")


def places_of(context: BuildContext, layers: list[int]) -> list[int]:
    """Positions of vision layers along the `layer` axis, which holds those that are read."""
    if context.vision is None:
        raise ConfigMismatchError("a reader reads one encoder; name it under `inputs:`")
    return [context.layers.index(layer % context.vision.num_layers) for layer in layers]
