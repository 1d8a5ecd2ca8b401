"""Layer queries: what each decoder layer asks of the vision layers.

Source: DEHVF, equation 2 ("input embedding network").
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from dehvf_kit.api.config import MAX_SIZE, BuildContext, ComponentConfig
from dehvf_kit.api.shapes import Cost
from dehvf_kit.ops.activations import ACTIVATIONS, ActivationName


class EmbeddingMlpQueryConfig(ComponentConfig):
    """One query per decoder layer and FFN projection: an MLP of a learned layer embedding and a learned key/value embedding.

    `separate_kv: false` is the ablation "keys/values same": no key/value embedding, one query a layer for both.
    The activation is not named by the paper: SiLU (**choice**).
    """

    role: ClassVar[str] = "layer_query"
    gives: ClassVar[tuple[str, ...]] = ("queries: decoder_layer kv query",)
    type: Literal["embedding_mlp"] = "embedding_mlp"
    embedding_size: int = Field(64, ge=1, le=MAX_SIZE, description="width of the layer and of the key/value embedding")
    query_size: int = Field(64, ge=1, le=MAX_SIZE, description="width of the query; the fuser's hidden size")
    separate_kv: bool = Field(True, description="one query for keys and one for values")
    activation: ActivationName = "silu"

    def resolve(self, context: BuildContext) -> dict[str, int | None]:
        return {"kv": 2 if self.separate_kv else 1, "query": self.query_size}

    def num_params(self, context: BuildContext) -> dict[str, int]:
        kv = 2 if self.separate_kv else 0
        width = self.embedding_size * (2 if self.separate_kv else 1)
        embeddings = (context.decoder.num_layers + kv) * self.embedding_size
        return {"embeddings": embeddings, "mlp": width * width + width + width * self.query_size + self.query_size}

    def cost(self, context: BuildContext) -> Cost:
        width = self.embedding_size * (2 if self.separate_kv else 1)
        rows = context.decoder.num_layers * (2 if self.separate_kv else 1)
        return Cost(per_step=2 * rows * (width * width + width * self.query_size))

    def build(self, context: BuildContext) -> EmbeddingMlpQuery:
        return EmbeddingMlpQuery(
            context.decoder.num_layers,
            embedding_size=self.embedding_size,
            query_size=self.query_size,
            separate_kv=self.separate_kv,
            activation_name=self.activation,
        )


class EmbeddingMlpQuery(nn.Module):
    """z[l, p] = MLP([e_l ; e_p]), MLP = Linear - activation - Linear with biases.

    Initialisation: PyTorch's defaults, N(0, 1) for embeddings, U(-1/sqrt(in), 1/sqrt(in)) for linear maps (**choice**).

    Shapes: nothing -> [decoder_layer, kv, query], kv = 2, or 1 without separate queries. Cost: one small MLP a step,
    whatever the batch. Source: DEHVF, equation 2.
    """

    def __init__(
        self,
        num_decoder_layers: int,
        embedding_size: int = 64,
        query_size: int = 64,
        separate_kv: bool = True,
        activation_name: str = "silu",
    ) -> None:
        super().__init__()
        self.layer_embedding = nn.Embedding(num_decoder_layers, embedding_size)
        self.kv_embedding = nn.Embedding(2, embedding_size) if separate_kv else None
        width = embedding_size * (2 if separate_kv else 1)
        self.fc1 = nn.Linear(width, width)
        self.fc2 = nn.Linear(width, query_size)
        self.activation = ACTIVATIONS[activation_name]

    def forward(self) -> Tensor:
        layers = self.layer_embedding.weight.unsqueeze(1)
        if self.kv_embedding is not None:
            kv = self.kv_embedding.weight.unsqueeze(0)
            layers = torch.cat([layers.expand(-1, 2, -1), kv.expand(layers.shape[0], -1, -1)], dim=-1)
        return self.fc2(self.activation(self.fc1(layers)))
