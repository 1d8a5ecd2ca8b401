"""The plain mean of a group's vision layers: the ablation without adaptive weights, and MemVP with a single layer.

Source: DEHVF, Table 4.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor

from dehvf_kit.api.config import BuildContext
from dehvf_kit.api.shapes import Cost, GroupLayers, Unprojected
from dehvf_kit.components.base import Fuser, FuserConfig


class MeanFuserConfig(FuserConfig):
    """Equal weights for all members of a group, the same for keys and values; no parameters."""

    takes: ClassVar[tuple[str, ...]] = ("levels: group member", "codes: batch layer patch code")
    takes_unprojected: ClassVar[bool] = True
    type: Literal["mean"] = "mean"

    def resolve(self, context: BuildContext) -> dict[str, int | None]:
        return {"kv": 1}

    def cost(self, context: BuildContext) -> Cost:
        return Cost(per_image=self.mix_cost(context, 1))

    def build(self, context: BuildContext) -> MeanFuser:
        return MeanFuser()


class MeanFuser(Fuser):
    """alpha_i = 1 / members of the group.

    Shapes: codes [batch, layer, patch, code] -> fused [batch, decoder_layer, 1, patch, code] and weights
    [batch, decoder_layer, 1, member]. Cost: the mix. Source: DEHVF, Table 4 ("w/o adaptive weights").
    """

    def forward(self, levels: GroupLayers, codes: Tensor | Unprojected) -> tuple[Tensor, Tensor]:
        features = codes.patches if isinstance(codes, Unprojected) else codes
        share = levels.mask.to(features.dtype)
        share = (share / share.sum(-1, keepdim=True))[levels.group_of_layer]
        weights = share[None, :, None, :].expand(features.shape[0], -1, -1, -1)
        return self.mix(weights, codes, levels), weights
