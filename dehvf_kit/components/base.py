"""What components share: the parents of groupers and fusers, and the dtype of a product.

Source: DEHVF, equations 3 and 4 (groups of vision layers) and 6 (the weighted sum of a group's layers).
"""

from __future__ import annotations

from typing import ClassVar

import torch
from einops import rearrange
from torch import Tensor, nn

from dehvf_kit.api.config import BuildContext, ComponentConfig
from dehvf_kit.api.shapes import GroupLayers, Unprojected


def runs(count: int, num_groups: int) -> list[list[int]]:
    """0 .. count-1 in `num_groups` runs of neighbours whose lengths differ by at most one, the longer ones first."""
    base, longer = divmod(count, num_groups)
    starts = [group * base + min(group, longer) for group in range(num_groups + 1)]
    return [list(range(starts[group], starts[group + 1])) for group in range(num_groups)]


class GrouperConfig(ComponentConfig):
    """Parent of the groupers: says which vision layers each group holds."""

    role: ClassVar[str] = "grouper"
    takes: ClassVar[tuple[str, ...]] = ("globals: batch layer vision_hidden",)
    gives: ClassVar[tuple[str, ...]] = ("members: batch group member vision_hidden", "levels: group member")

    def members_of(self, num_layers: int) -> list[list[int]]:
        """Members of each group as 0-based vision layers."""
        raise NotImplementedError(f"{type(self).__name__}.members_of")

    def check(self, context: BuildContext, num_layers: int) -> None:
        """Raises: ConfigMismatchError where these groups cannot be cut from `num_layers` vision layers or the decoder's layers."""

    def resolve(self, context: BuildContext) -> dict[str, int | None]:
        num_layers = context.vision.num_layers if context.vision else context.size("layer")
        self.check(context, num_layers)
        groups = self.members_of(num_layers)
        return {"group": len(groups), "member": max(len(group) for group in groups)}

    def vision_layers(self, num_layers: int) -> tuple[int, ...]:
        return tuple(sorted({layer for group in self.members_of(num_layers) for layer in group}))

    def build(self, context: BuildContext) -> Grouper:
        num_layers = context.vision.num_layers if context.vision else context.size("layer")
        place = {layer: position for position, layer in enumerate(context.layers or range(num_layers))}
        groups = [[place[layer] for layer in group] for group in self.members_of(num_layers)]
        return Grouper(groups, context.decoder.num_layers)


class Grouper(nn.Module):
    """Gathers the global tokens of each group's vision layers.

    Shapes: globals [batch, layer, vision_hidden] -> members [batch, group, member, vision_hidden] and the `GroupLayers` that
    say where each member came from. Groups shorter than the longest repeat their first member there, masked in `GroupLayers`.
    Cost: a gather. No parameters. Source: DEHVF, equations 3 and 4.
    """

    def __init__(self, groups: list[list[int]], num_decoder_layers: int) -> None:
        super().__init__()
        self.levels = GroupLayerTable(groups, [len(run) for run in runs(num_decoder_layers, len(groups))])

    def forward(self, globals: Tensor) -> tuple[Tensor, GroupLayers]:
        levels = self.levels()
        return globals[:, levels.index], levels


class GroupLayerTable(nn.Module):
    """A `GroupLayers` record that moves between devices with its module; not saved, since the recipe implies it.

    groups: positions along the `layer` axis of each group's members; readers: decoder layers of each group.
    """

    index: Tensor
    mask: Tensor
    group_of_layer: Tensor
    place: Tensor

    def __init__(self, groups: list[list[int]], readers: list[int]) -> None:
        super().__init__()
        self.groups, self.readers = groups, readers
        size = max(len(group) for group in groups)
        self.largest = max(readers)
        self.full = all(len(group) == size for group in groups)
        buffers = {
            "index": [group + [group[0]] * (size - len(group)) for group in groups],
            "mask": [[place < len(group) for place in range(size)] for group in groups],
            "group_of_layer": [group for group, count in enumerate(readers) for _ in range(count)],
            "place": [group * self.largest + within for group, count in enumerate(readers) for within in range(count)],
        }
        for name, rows in buffers.items():
            self.register_buffer(name, torch.tensor(rows), persistent=False)

    def forward(self) -> GroupLayers:
        return GroupLayers(
            self.index, mask=self.mask, group_of_layer=self.group_of_layer, place=self.place, largest=self.largest, full=self.full
        )


class FuserConfig(ComponentConfig):
    """Parent of the fusers: weights per decoder layer and kv (keys, values) over a group's vision layers, and the mix they give."""

    role: ClassVar[str] = "fuser"
    gives: ClassVar[tuple[str, ...]] = ("fused: batch decoder_layer kv patch code", "weights: batch decoder_layer kv member")

    def mix_cost(self, context: BuildContext, num_kv: int) -> int:
        """FLOPs an image of the weighted sum, and of the projection that follows where the codes come unprojected."""
        patches, layers, code = context.axes.get("patch") or 0, context.size("layer"), context.size("code")
        unprojected = context.axes.get("unprojected")
        a_mix = layers * (unprojected or code) + (unprojected or 0) * code
        return 2 * context.decoder.num_layers * num_kv * patches * a_mix


class Fuser(nn.Module):
    """Parent of the fusers' modules."""

    @staticmethod
    def mix(weights: Tensor, codes: Tensor | Unprojected, levels: GroupLayers) -> Tensor:
        """sum_i weights_i codes_i over each decoder layer's group, as one matrix product per image.

        Shapes: weights [batch or 1, decoder_layer, kv, member], codes [batch, layer, patch, code]
        -> [batch, decoder_layer, kv, patch, code]. Weights of members that are the same vision layer add up.
        Cost: 2 * decoder_layer * kv * layer * patch * code FLOPs an image.
        """
        if isinstance(codes, Unprojected):
            return codes.project(Fuser.mix(weights, codes.patches, levels))
        batch, num_layers, num_patches, _ = codes.shape
        place = levels.index[levels.group_of_layer]
        place = place[None, :, None, :].expand_as(weights)
        by_layer = weights.new_zeros(*weights.shape[:-1], num_layers).scatter_add(-1, place, weights)
        rows = rearrange(by_layer, "batch decoder_layer kv layer -> batch (decoder_layer kv) layer").to(codes.dtype)
        flat = rearrange(codes, "batch layer patch code -> batch layer (patch code)")
        if flat.element_size() < 4:
            flat = flat.contiguous()  # rows with gaps, the global tokens', are copied by each half-precision product
        mixed = torch.matmul(rows, flat)
        return rearrange(
            mixed,
            "batch (decoder_layer kv) (patch code) -> batch decoder_layer kv patch code",
            kv=weights.shape[2],
            patch=num_patches,
            batch=batch,
        )


def product_dtype(weight: Tensor) -> torch.dtype:
    """Autocast's dtype where it is on for the weight's device, else the weight's own."""
    device = weight.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return weight.dtype
