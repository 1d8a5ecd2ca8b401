"""Vision layers in runs of neighbours, one run a hierarchy group, the penultimate layer joined to each.

Source: DEHVF, equations 3 and 4.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from dehvf_kit.api.config import BuildContext, ConfigMismatchError
from dehvf_kit.api.shapes import MAX_LAYERS
from dehvf_kit.components.base import GrouperConfig, runs


class ContiguousGrouperConfig(GrouperConfig):
    """G runs of consecutive vision layers, each with the penultimate layer added; decoder layers cut the same way.

    Where a count does not divide by `num_groups`, the first runs are one layer longer and the places missing in the
    others are masked. The group that already holds the penultimate layer keeps it twice (**choice**), so that all
    groups have one size.
    """

    type: Literal["contiguous"] = "contiguous"
    num_groups: int = Field(4, ge=1, le=MAX_LAYERS, description="hierarchy groups G")
    add_penultimate: bool = Field(True, description="every group also holds the last vision layer but one")

    def members_of(self, num_layers: int) -> list[list[int]]:
        extra = [num_layers - 2] if self.add_penultimate else []
        return [run + extra for run in runs(num_layers, self.num_groups)]

    def check(self, context: BuildContext, num_layers: int) -> None:
        if self.num_groups > num_layers:
            raise ConfigMismatchError(
                f"{self.num_groups} groups for {num_layers} vision layers; use at most {num_layers}", "num_groups"
            )
        if self.num_groups > context.decoder.num_layers:
            raise ConfigMismatchError(
                f"{self.num_groups} groups for {context.decoder.num_layers} decoder layers; "
                f"use at most {context.decoder.num_layers}",
                "num_groups",
            )
        if self.add_penultimate and num_layers < 2:
            raise ConfigMismatchError(
                "a vision encoder of one layer has no penultimate layer; set add_penultimate: false", "add_penultimate"
            )
