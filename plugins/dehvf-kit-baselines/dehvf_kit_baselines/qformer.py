"""Reader: BLIP-2's Q-Former, a small BERT whose learned queries attend to an image in every second layer, from transformers.

Source: BLIP-2, arXiv:2301.12597 (salesforce/LAVIS 506965b); `Blip2QFormerModel`. Its query side has 105,162,240 parameters; the
188M that are published count the text side and the heads of its pre-training too. Published systems start from pre-trained
weights; here they start anew.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from dehvf_kit.api import BuildContext, Cost
from dehvf_kit_baselines.readers import QueryReaderConfig, image_tokens, places_of

if TYPE_CHECKING:
    from transformers.models.blip_2.modeling_blip_2 import Blip2QFormerModel


class QFormerReaderConfig(QueryReaderConfig):
    """Learned queries through a BERT that attends to one vision layer's tokens; the queries come out as patches."""

    type: Literal["qformer"] = "qformer"
    num_layers: int = Field(12, ge=1, description="layers")
    intermediate_size: int = Field(3072, ge=1, description="width of their feed-forward networks")
    every: int = Field(2, ge=1, description="layers 0, every, 2 * every, ... attend to the image")
    dropout: float = Field(0.1, ge=0, lt=1, description="dropout in training, as BERT has it")

    def model(self, context: BuildContext) -> Blip2QFormerModel:
        """transformers' module."""
        from transformers import Blip2QFormerConfig
        from transformers.models.blip_2.modeling_blip_2 import Blip2QFormerModel

        return Blip2QFormerModel(
            Blip2QFormerConfig(
                hidden_size=self.hidden_size,
                num_hidden_layers=self.num_layers,
                num_attention_heads=self.num_heads,
                intermediate_size=self.intermediate_size,
                cross_attention_frequency=self.every,
                encoder_hidden_size=self.width_in(context),
                hidden_dropout_prob=self.dropout,
                attention_probs_dropout_prob=self.dropout,
            )
        )

    def num_params(self, context: BuildContext) -> dict[str, int]:
        with torch.device("meta"):
            count = sum(weight.numel() for weight in self.model(context).parameters())
        return {"queries": self.num_queries * self.hidden_size, "qformer": count}

    def cost(self, context: BuildContext) -> Cost:
        width, queries, tokens = self.hidden_size, self.num_queries, self.tokens_in(context)
        layer = 8 * queries * width**2 + 4 * queries**2 * width + 4 * queries * width * self.intermediate_size
        seen = 4 * queries * width**2 + 4 * tokens * self.width_in(context) * width + 4 * queries * tokens * width
        return Cost(per_image=self.num_layers * layer + -(-self.num_layers // self.every) * seen)

    def build(self, context: BuildContext) -> QFormer:
        (place,) = places_of(context, [self.layer])
        return QFormer(place, self.num_queries, self.hidden_size, self.model(context))


class QFormer(nn.Module):
    """Shapes: patches [batch, layer, patch, width], globals [batch, layer, width] -> [batch, 1, query, hidden_size].

    Queries start as 0.02 N(0, 1), the rest as transformers makes it.
    """

    def __init__(self, place: int, queries: int, width: int, qformer: Blip2QFormerModel) -> None:
        super().__init__()
        self.place, self.qformer = place, qformer
        self.queries = nn.Parameter(0.02 * torch.randn(queries, width))

    def forward(self, patches: Tensor, globals: Tensor | None = None) -> Tensor:
        image = image_tokens(self.place, patches, globals)
        queries = self.queries.expand(len(image), -1, -1)
        return self.qformer(query_embeds=queries, encoder_hidden_states=image.to(queries.dtype)).last_hidden_state[:, None]
