"""The hierarchical visual fuser: layer queries attend to global tokens and weigh the vision layers of their group.

Source: DEHVF, equations 5 and 6.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import ClassVar, Literal

import torch
from einops import rearrange, repeat
from pydantic import Field
from torch import Tensor, nn

from dehvf_kit.api.config import MAX_SIZE, BuildContext, ConfigMismatchError
from dehvf_kit.api.shapes import MAX_LAYERS, Cost, GroupLayers, Unprojected
from dehvf_kit.components.base import Fuser, FuserConfig
from dehvf_kit.ops.activations import ACTIVATIONS, ActivationName
from dehvf_kit.ops.attention import Backend, attention

ALIKE = 1e-3  # keys nearer to the mean of their group than this are alike, so that no direction is made of rounding
MOST_HEADS = 256  # counts of heads that a message proposes


class CrossAttentionFuserConfig(FuserConfig):
    """Softmax weights over a group's vision layers, per image, decoder layer and kv, from k cross-attention blocks.

    The score of member i is q . F_i / sqrt(r), with no parameters of its own (**choice**: it serves groups of any size), or
    `linear`: the i-th output of a linear map of q, as IGVA has it (arXiv 2025, public code 6fa8d84), or `cosine`: of q and of F_i
    less its group's mean, which is bounded, where q . F_i grows with |F_i| until one layer has all the weight.
    The activation inside the blocks is not named by the paper: GELU (**choice**).
    """

    takes: ClassVar[tuple[str, ...]] = (
        "members: batch group member vision_hidden",
        "levels: group member",
        "queries: decoder_layer kv query",
        "codes: batch layer patch code",
    )
    takes_unprojected: ClassVar[bool] = True
    type: Literal["cross_attention"] = "cross_attention"
    hidden_size: int = Field(64, ge=1, le=MAX_SIZE, description="width r of the queries and of the projected global tokens")
    num_blocks: int = Field(4, ge=1, le=MAX_LAYERS, description="cross-attention blocks k")
    num_heads: int = Field(4, ge=1, le=MAX_SIZE, description="attention heads; must divide hidden_size")
    intermediate_size: int = Field(256, ge=1, le=MAX_SIZE, description="width of the blocks' feed-forward networks")
    activation: ActivationName = "gelu"
    attention_backend: Backend = Field("auto", description="auto, xformers or sdpa")
    score: Literal["dot", "cosine", "linear"] = Field("dot", description="q . F / sqrt(r), a bounded cosine, or linear in q (IGVA)")

    def resolve(self, context: BuildContext) -> dict[str, int | None]:
        if self.hidden_size % self.num_heads:
            fits = [heads for heads in range(1, min(self.hidden_size, MOST_HEADS) + 1) if not self.hidden_size % heads]
            message = f"{self.num_heads} heads do not divide hidden_size {self.hidden_size}; use one of {', '.join(map(str, fits))}"
            raise ConfigMismatchError(message, "num_heads")
        if (query := context.axes.get("query") or self.hidden_size) != self.hidden_size:
            message = f"hidden_size is {self.hidden_size} but the queries it is wired to have {query}; make them equal"
            raise ConfigMismatchError(message, "hidden_size")
        return {}

    def num_params(self, context: BuildContext) -> dict[str, int]:
        r, inner = self.hidden_size, self.intermediate_size
        block = 4 * (r * r + r) + (r * inner + inner) + (inner * r + r) + 4 * r
        counts = {"input": context.size("vision_hidden") * r + r, "blocks": self.num_blocks * block}
        return {**counts, "score": (r + 1) * context.size("member")} if self.score == "linear" else counts

    def cost(self, context: BuildContext) -> Cost:
        r, inner = self.hidden_size, self.intermediate_size
        members, num_kv = context.size("group") * context.size("member"), context.size("kv")
        places = math.ceil(context.decoder.num_layers / context.size("group"))
        queries = context.size("group") * places * num_kv  # groups with fewer decoder layers are padded
        scores = 2 * queries * context.size("member") * r
        block = queries * (4 * r * r + 4 * r * inner) + 2 * scores + members * 4 * r * r
        weights = 2 * members * context.size("vision_hidden") * r + self.num_blocks * block + scores
        return Cost(per_image=weights + self.mix_cost(context, num_kv))

    def build(self, context: BuildContext) -> CrossAttentionFuser:
        sizes = self.hidden_size, self.num_blocks, self.num_heads, self.intermediate_size
        head, cosine = context.size("member") if self.score == "linear" else 0, self.score == "cosine"
        return CrossAttentionFuser(context.size("vision_hidden"), *sizes, self.activation, self.attention_backend, head, cosine)


class CrossAttentionFuser(Fuser):
    """Weights alpha[l, p] = softmax_i(q . F_i / sqrt(r)) after k blocks q <- LN(q + CA(q, F, F)); q <- LN(q + FFN(q)).

    All decoder layers' queries for keys and values go through the blocks in one pass. The weights are computed in float32.
    With the score `cosine` no weight exceeds e^2 / (e^2 + members - 1), whatever is learned: 0.71 of four, 0.55 of seven.
    Initialisation: PyTorch's defaults, U(-1/sqrt(in), 1/sqrt(in)) for linear maps (**choice**; the paper names none).
    Shapes: members [batch, group, member, vision_hidden], queries [decoder_layer, kv, query], codes
    [batch, layer, patch, code] -> fused [batch, decoder_layer, kv, patch, code] and weights
    [batch, decoder_layer, kv, member], which are non-negative and sum to one over `member`.
    Cost: k blocks of width r on decoder_layer * kv queries, and the mix. Source: DEHVF, equations 5 and 6.
    """

    def __init__(
        self,
        vision_hidden_size: int,
        hidden_size: int = 64,
        num_blocks: int = 4,
        num_heads: int = 4,
        intermediate_size: int = 256,
        activation_name: str = "gelu",
        attention_backend: Backend = "auto",
        score_members: int = 0,
        cosine: bool = False,
    ) -> None:
        super().__init__()
        self.cosine = cosine
        self.input = nn.Linear(vision_hidden_size, hidden_size)
        block = (hidden_size, num_heads, intermediate_size, activation_name, attention_backend)
        self.blocks = nn.ModuleList(CrossAttentionBlock(*block) for _ in range(num_blocks))
        self.score = nn.Linear(hidden_size, score_members) if score_members else None

    def forward(self, members: Tensor, levels: GroupLayers, queries: Tensor, codes: Tensor | Unprojected) -> tuple[Tensor, Tensor]:
        weights = self.weigh(members, levels, queries)
        return self.mix(weights, codes, levels), weights

    def weigh(self, members: Tensor, levels: GroupLayers, queries: Tensor) -> Tensor:
        """The weights alone: [batch, decoder_layer, kv, member]. In the fuser's own dtype, also under autocast."""
        dtype, device = self.input.weight.dtype, members.device.type
        exact = torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()
        with exact:
            return self._weigh(members.to(dtype), levels, queries.to(dtype))

    def _weigh(self, members: Tensor, levels: GroupLayers, queries: Tensor) -> Tensor:
        (batch, num_groups), num_kv = members.shape[:2], queries.shape[1]
        keys = rearrange(self.input(members), "batch group member query -> (batch group) member query")
        mask = None if levels.full else repeat(levels.mask, "group member -> (batch group) member", batch=batch)
        by_group = queries.new_zeros(num_groups * levels.largest, num_kv, queries.shape[-1]).index_copy(0, levels.place, queries)
        q = repeat(by_group, "(group place) kv query -> (batch group) (place kv) query", batch=batch, group=num_groups)
        for block in self.blocks:
            q = block(q, keys, mask)

        if self.cosine:
            share = torch.ones_like(keys[..., :1]) if mask is None else mask[..., None].to(keys)
            apart = keys - (keys * share).sum(1, keepdim=True) / share.sum(1, keepdim=True)
            keys, q = nn.functional.normalize(apart, dim=-1, eps=ALIKE), nn.functional.normalize(q, dim=-1) * math.sqrt(q.shape[-1])
        scores = (q @ keys.transpose(1, 2) / math.sqrt(q.shape[-1]) if self.score is None else self.score(q)).float()
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None, :], -math.inf)
        by_place = "(batch group) (place kv) member -> batch (group place) kv member"
        return rearrange(scores.softmax(-1), by_place, batch=batch, kv=num_kv)[:, levels.place]


class CrossAttentionBlock(nn.Module):
    """q <- LN(q + CrossAttention(q, F, F)); q <- LN(q + FFN(q)), with biases everywhere.

    Shapes: q [row, place, r], keys [row, member, r], mask [row, member] or None -> [row, place, r].
    """

    def __init__(self, hidden_size: int, num_heads: int, intermediate_size: int, activation_name: str, backend: Backend) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.backend: Backend = backend
        self.to_query, self.to_key, self.to_value, self.to_output = (nn.Linear(hidden_size, hidden_size) for _ in range(4))
        self.attention_norm = nn.LayerNorm(hidden_size)
        self.fc1 = nn.Linear(hidden_size, intermediate_size)
        self.fc2 = nn.Linear(intermediate_size, hidden_size)
        self.ffn_norm = nn.LayerNorm(hidden_size)
        self.activation = ACTIVATIONS[activation_name]

    def forward(self, q: Tensor, keys: Tensor, mask: Tensor | None) -> Tensor:
        projected = self.to_query(q), self.to_key(keys), self.to_value(keys)
        heads = [rearrange(x, "row place (head width) -> row place head width", head=self.num_heads) for x in projected]
        attended = rearrange(attention(*heads, mask=mask, backend=self.backend), "row place head width -> row place (head width)")
        q = self.attention_norm(q + self.to_output(attended))
        return self.ffn_norm(q + self.fc2(self.activation(self.fc1(q))))
