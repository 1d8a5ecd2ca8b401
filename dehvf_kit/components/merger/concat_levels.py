"""Several vision encoders read as one: their groups joined member by member, on one grid and one width.

No source: this is the kit's own extension of DEHVF to more than one encoder.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from einops import rearrange
from pydantic import Field
from torch import Tensor, nn

from dehvf_kit.api.config import MAX_SIZE, BuildContext, ComponentConfig, ConfigMismatchError
from dehvf_kit.api.shapes import Cost, GroupLayers
from dehvf_kit.components.base import product_dtype
from dehvf_kit.errors import ShapeError


class ConcatLevelsMergerConfig(ComponentConfig):
    """Group g of the result holds group g of every encoder; a linear map per encoder brings all to `hidden_size`.

    Patch grids that differ are resampled (bilinear) to the largest one. All encoders need the same number of groups and
    a square grid of known size.
    """

    role: ClassVar[str] = "merger"
    takes: ClassVar[tuple[str, ...]] = (
        "patches*: batch layer patch vision_hidden",
        "members*: batch group member vision_hidden",
        "levels*: group member",
    )
    gives: ClassVar[tuple[str, ...]] = (
        "patches: batch layer patch vision_hidden",
        "members: batch group member vision_hidden",
        "levels: group member",
    )
    type: Literal["concat_levels"] = "concat_levels"
    hidden_size: int = Field(256, ge=1, le=MAX_SIZE, description="common width of the merged features")

    def resolve(self, context: BuildContext) -> dict[str, int | None]:
        counts = {port: len(wires) for port, wires in context.wires.items()}
        if len(set(counts.values())) > 1:
            raise ConfigMismatchError(
                f"ports have different numbers of wires: {counts}; name one node per encoder in each", "inputs"
            )
        orders = {port: [" and ".join(names) for names in found] for port, found in context.encoders.items()}
        if len({tuple(names) for names in orders.values()}) > 1:
            given = "; ".join(f"{port} from {', '.join(names)}" for port, names in orders.items())
            raise ConfigMismatchError(f"ports name the encoders in different orders: {given}; list them in one order", "inputs")
        for members, levels in zip(context.wires["members"], context.wires["levels"], strict=True):
            sizes = [(wire["group"], wire["member"]) for wire in (members, levels)]
            if sizes[0] != sizes[1]:
                raise ConfigMismatchError(
                    f"members come in groups and members {sizes[0]} but levels in {sizes[1]}; wire both to one grouper", "inputs"
                )
        groups = {wire["group"] for wire in context.wires["levels"]}
        if len(groups) > 1:
            raise ConfigMismatchError(
                f"encoders are cut into different numbers of groups: {sorted(groups)}; give all the same", "inputs"
            )
        for wire in context.wires["patches"]:
            patches = wire["patch"]
            if patches is None or math.isqrt(patches) ** 2 != patches:
                raise ConfigMismatchError(f"needs square patch grids of known size; one encoder yields {patches} patches", "inputs")
        return {
            "layer": sum(wire["layer"] or 0 for wire in context.wires["patches"]),
            "patch": max(wire["patch"] or 0 for wire in context.wires["patches"]),
            "group": groups.pop(),
            "member": sum(wire["member"] or 0 for wire in context.wires["levels"]),
            "vision_hidden": self.hidden_size,
        }

    def num_params(self, context: BuildContext) -> dict[str, int]:
        widths = [wire["vision_hidden"] or 0 for wire in context.wires["patches"]]
        return {"maps": sum((width + 1) * self.hidden_size for width in widths)}

    def cost(self, context: BuildContext) -> Cost:
        per_image = 0
        for patches, members in zip(context.wires["patches"], context.wires["members"], strict=True):
            tokens = (patches["layer"] or 0) * (patches["patch"] or 0) + (members["group"] or 0) * (members["member"] or 0)
            per_image += 2 * tokens * (patches["vision_hidden"] or 0) * self.hidden_size
        return Cost(per_image=per_image)

    def build(self, context: BuildContext) -> ConcatLevelsMerger:
        patches = [wire["patch"] or 0 for wire in context.wires["patches"]]
        return ConcatLevelsMerger([wire["vision_hidden"] or 0 for wire in context.wires["patches"]], self.hidden_size, max(patches))


class ConcatLevelsMerger(nn.Module):
    """Shapes, one list entry an encoder: patches [batch, layer, patch, vision_hidden], members
    [batch, group, member, vision_hidden], levels -> merged patches, members and levels, layers and members joined.

    Cost: one linear map per encoder on every patch of every layer. Raises: ShapeError for a grid that is not square.
    """

    def __init__(self, vision_hidden_sizes: list[int], hidden_size: int, num_patches: int) -> None:
        super().__init__()
        self.maps = nn.ModuleList(nn.Linear(width, hidden_size) for width in vision_hidden_sizes)
        self.num_patches = num_patches

    def forward(
        self, patches: list[Tensor], members: list[Tensor], levels: list[GroupLayers]
    ) -> tuple[Tensor, Tensor, GroupLayers]:
        dtype = product_dtype(self.maps[0].weight)
        merged = torch.cat(
            [self._resample(project(tensor.to(dtype))) for project, tensor in zip(self.maps, patches, strict=True)], dim=1
        )
        tokens = torch.cat([project(tensor.to(dtype)) for project, tensor in zip(self.maps, members, strict=True)], dim=2)
        offsets = [0]
        for tensor in patches[:-1]:
            offsets.append(offsets[-1] + tensor.shape[1])
        joined = GroupLayers(
            index=torch.cat([level.index + offset for level, offset in zip(levels, offsets, strict=True)], dim=1),
            mask=torch.cat([level.mask for level in levels], dim=1),
            group_of_layer=levels[0].group_of_layer,
            place=levels[0].place,
            largest=levels[0].largest,
            full=all(level.full for level in levels),
        )
        return merged, tokens, joined

    def _resample(self, patches: Tensor) -> Tensor:
        batch, layer, patch, _ = patches.shape
        if patch == self.num_patches:
            return patches
        side, target = math.isqrt(patch), math.isqrt(self.num_patches)
        if side * side != patch:
            raise ShapeError(f"merger: {patch} patches are no square grid; give square images")
        grid = rearrange(patches, "batch layer (row column) hidden -> (batch layer) hidden row column", row=side)
        grid = nn.functional.interpolate(grid, size=(target, target), mode="bilinear", align_corners=False)
        return rearrange(grid, "(batch layer) hidden row column -> batch layer (row column) hidden", batch=batch, layer=layer)
