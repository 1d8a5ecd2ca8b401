"""What all fusers share: their ports, and the weighted sum of vision layers.

Source: DEHVF, equation 6.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from einops import rearrange
from torch import Tensor, nn

from dehvf_kit.api.config import BuildContext, ComponentConfig
from dehvf_kit.api.shapes import GroupLayers, Unprojected


class FuserConfig(ComponentConfig):
    """Parent of the fusers: weights per decoder layer and role over a group's vision layers, and the mix they give."""

    role: ClassVar[str] = "fuser"
    gives: ClassVar[tuple[str, ...]] = (
        "fused: batch decoder_layer kv patch code",
        "weights: batch decoder_layer kv member",
    )

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
