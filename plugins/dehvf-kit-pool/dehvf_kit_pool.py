"""Fewer memory slots: neighbouring patches are averaged before they are projected.

A new role, `pooler`: no built-in component changes the number of patches. Pooling windows of 2 x 2 turns 256 patches of
CLIP ViT-L/14 into 64, and the memory of an image into a quarter.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

from einops import reduce
from pydantic import Field
from torch import Tensor, nn

from dehvf_kit.api import BuildContext, ComponentConfig, ConfigMismatchError, hookimpl


class AveragePoolerConfig(ComponentConfig):
    """Averages windows of `window` x `window` patches of a square grid, in every vision layer; no parameters."""

    role: ClassVar[str] = "pooler"
    takes: ClassVar[tuple[str, ...]] = ("patches: batch layer patch vision_hidden",)
    gives: ClassVar[tuple[str, ...]] = ("patches: batch layer patch vision_hidden",)
    type: Literal["average"] = "average"
    window: int = Field(2, ge=1, description="side of the window in patches; must divide the side of the grid")

    def resolve(self, context: BuildContext) -> dict[str, int | None]:
        patches = context.size("patch")
        side = math.isqrt(patches)
        if side * side != patches or side % self.window:
            raise ConfigMismatchError(f"windows of {self.window} x {self.window} do not tile a grid of {patches} patches", "window")
        return {"patch": patches // self.window**2}

    def build(self, context: BuildContext) -> AveragePooler:
        return AveragePooler(math.isqrt(context.size("patch")), self.window)


class AveragePooler(nn.Module):
    """Shapes: patches [batch, layer, patch, vision_hidden] -> [batch, layer, patch / window^2, vision_hidden]."""

    def __init__(self, side: int, window: int) -> None:
        super().__init__()
        self.side, self.window = side, window

    def forward(self, patches: Tensor) -> Tensor:
        pattern = "batch layer (row r column c) hidden -> batch layer (row column) hidden"
        return reduce(patches, pattern, "mean", row=self.side // self.window, r=self.window, c=self.window)


@hookimpl
def register_components(register) -> None:
    register(AveragePoolerConfig)
