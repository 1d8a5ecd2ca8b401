"""Position embeddings of the memory slots, shared by all decoder layers.

Source: DEHVF, equations 10 and 11; method of MemVP.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from dehvf_kit.api.config import MAX_SIZE, BuildContext, ComponentConfig


class LearnedPositionConfig(ComponentConfig):
    """p_K and p_V, one learned vector per memory slot for keys and for values: p_K ~ N(0, 0.02), p_V = 0."""

    role: ClassVar[str] = "position"
    gives: ClassVar[tuple[str, ...]] = ("position_keys: slot decoder_hidden", "position_values: slot decoder_hidden")
    type: Literal["learned"] = "learned"
    num_slots: int = Field(320, ge=1, le=MAX_SIZE, description="memory slots S in every FFN; at least the number of patches")
    key_std: float = Field(0.02, ge=0, description="standard deviation of the initial p_K")

    def resolve(self, context: BuildContext) -> dict[str, int | None]:
        return {"slot": self.num_slots}

    def num_params(self, context: BuildContext) -> dict[str, int]:
        size = self.num_slots * context.decoder.hidden_size
        return {"keys": size, "values": size}

    def build(self, context: BuildContext) -> LearnedPosition:
        return LearnedPosition(self.num_slots, context.decoder.hidden_size, self.key_std)


class LearnedPosition(nn.Module):
    """Shapes: nothing -> two tables [slot, decoder_hidden]. Cost: none.

    Initialisation: keys N(0, key_std), values zero (MemVP). Source: DEHVF, equations 10 and 11.
    """

    def __init__(self, num_slots: int, decoder_hidden_size: int, key_std: float = 0.02) -> None:
        super().__init__()
        self.keys = nn.Parameter(key_std * torch.randn(num_slots, decoder_hidden_size))
        self.values = nn.Parameter(torch.zeros(num_slots, decoder_hidden_size))

    def forward(self) -> tuple[Tensor, Tensor]:
        return self.keys, self.values
