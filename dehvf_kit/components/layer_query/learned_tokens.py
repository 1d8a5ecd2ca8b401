"""Free learned queries, the ablation that drops the input embedding network.

Source: DEHVF, ablation study ("we replace hierarchical representations with learnable tokens").
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from dehvf_kit.api.config import MAX_SIZE, BuildContext, ComponentConfig


class LearnedTokensQueryConfig(ComponentConfig):
    """A free learned query per decoder layer and FFN projection, with no network behind it."""

    role: ClassVar[str] = "layer_query"
    gives: ClassVar[tuple[str, ...]] = ("queries: decoder_layer kv query",)
    type: Literal["learned_tokens"] = "learned_tokens"
    query_size: int = Field(64, ge=1, le=MAX_SIZE, description="width of the query; the fuser's hidden size")
    separate_kv: bool = Field(True, description="one query for keys and one for values")
    std: float = Field(0.02, gt=0, description="standard deviation of the initial tokens")

    def resolve(self, context: BuildContext) -> dict[str, int | None]:
        return {"kv": 2 if self.separate_kv else 1, "query": self.query_size}

    def num_params(self, context: BuildContext) -> dict[str, int]:
        return {"tokens": context.decoder.num_layers * (2 if self.separate_kv else 1) * self.query_size}

    def build(self, context: BuildContext) -> LearnedTokensQuery:
        return LearnedTokensQuery(context.decoder.num_layers, self.query_size, 2 if self.separate_kv else 1, self.std)


class LearnedTokensQuery(nn.Module):
    """Shapes: nothing -> [decoder_layer, kv, query]. Tokens start as N(0, std). Cost: none. Source: DEHVF, ablation study."""

    def __init__(self, num_decoder_layers: int, query_size: int = 64, num_kv: int = 2, std: float = 0.02) -> None:
        super().__init__()
        self.tokens = nn.Parameter(std * torch.randn(num_decoder_layers, num_kv, query_size))

    def forward(self) -> Tensor:
        return self.tokens
