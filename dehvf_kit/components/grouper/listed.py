"""Hierarchy groups written out by hand: `groups: [[-2]]` is the single penultimate layer that MemVP reads."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from dehvf_kit.api.config import BuildContext, ConfigMismatchError
from dehvf_kit.components.base import GrouperConfig


class ListedGrouperConfig(GrouperConfig):
    """Groups given as lists of vision layers (0 is the first block, -1 the last); decoder layers are cut into as many runs.

    Source: DEHVF, Table 4 ("w/o multi-features": the penultimate layer alone).
    """

    type: Literal["listed"] = "listed"
    groups: list[list[int]] = Field(min_length=1, description="vision layers of each group")

    def members_of(self, num_layers: int) -> list[list[int]]:
        return [[layer % num_layers for layer in group] for group in self.groups]

    def check(self, context: BuildContext, num_layers: int) -> None:
        for number, group in enumerate(self.groups):
            if not group:
                raise ConfigMismatchError(f"group {number} is empty; name at least one vision layer", "groups")
            for layer in group:
                if not -num_layers <= layer < num_layers:
                    raise ConfigMismatchError(
                        f"group {number} names vision layer {layer} of {num_layers}; use {-num_layers} to {num_layers - 1}",
                        "groups",
                    )
        if len(self.groups) > context.decoder.num_layers:
            most = context.decoder.num_layers
            raise ConfigMismatchError(f"{len(self.groups)} groups for {most} decoder layers; use at most {most}", "groups")
